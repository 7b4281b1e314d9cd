"""Settings of speculative decoding, by vLLM's names.

Invariant: what is read is complete and in range; a method that there is not is refused by name.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from plamo_ref.intake.values import OutOfRangeError, Whole, plain

METHOD = "ngram"
RANGES = {"num_speculative_tokens": 32, "prompt_lookup_max": 16, "prompt_lookup_min": 16}


@dataclass(frozen=True)
class NgramSettings:
    """Drafts from the request's own text (`plamo_ref/engine/speculation/`)."""

    num_speculative_tokens: int = 8  # of a draft, at the most
    prompt_lookup_max: int = 4  # tokens of an n-gram that is looked up
    prompt_lookup_min: int = 2

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "NgramSettings":
        """From what `Speculation` has read."""
        return cls(**{name: config[name] for name in RANGES})

    @property
    def most_new(self) -> int:
        """Tokens that a request can get in a step."""
        return 1 + self.num_speculative_tokens


@dataclass(frozen=True)
class Speculation:
    """A mapping as vLLM's `speculative_config`; what is left out has its default."""

    wanted: str = 'a mapping as {"method": "ngram", "num_speculative_tokens": 8}'

    def read(self, value: Any) -> dict[str, Any]:
        """The whole of it, in Python's own values."""
        if not isinstance(value, Mapping):
            raise TypeError("no mapping")
        given = {name: plain(each) for name, each in value.items() if each is not None}
        if given.pop("method", METHOD) != METHOD or "model" in given:
            raise OutOfRangeError(
                f'a mapping with method "{METHOD}" and no model: drafts come from the text itself'
            )
        for name, number in given.items():
            if name not in RANGES:
                raise OutOfRangeError(f"a mapping of method, {', '.join(RANGES)} and no {name!r}")
            kind = Whole(f"1 to {RANGES[name]}", least=1, most=RANGES[name])
            try:
                given[name] = kind.read(number)
            except (TypeError, ValueError, OverflowError):
                raise OutOfRangeError(f"a mapping in which {name} is {kind.wanted}") from None
        least, most = given.get("prompt_lookup_min"), given.get("prompt_lookup_max")
        if least is not None and most is not None and least > most:
            raise OutOfRangeError(f"a mapping with prompt_lookup_min ≤ prompt_lookup_max ({most})")
        usual = NgramSettings()
        given["prompt_lookup_max"] = most or max(usual.prompt_lookup_max, least or 0)
        given["prompt_lookup_min"] = least or min(usual.prompt_lookup_min, most or 2)
        return {"method": METHOD, **asdict(NgramSettings(**given))}
