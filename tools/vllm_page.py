"""`python -m tools.vllm_page`: docs/coming_from_vllm.md, made from the rules themselves.

Invariant: the page has every keyword that `plamo_ref.intake.vllm_names` and the server's command
know, with the words that an error or a notice would have.
"""

from collections.abc import Mapping
from pathlib import Path

from plamo_ref.commands._vllm_options import SERVER, names
from plamo_ref.intake.vllm_names import CALL, MODEL, SAMPLING, Rule

PAGE = Path(__file__).parents[1] / "docs" / "coming_from_vllm.md"

BEGINNING = """\
<!-- Made by `python -m tools.vllm_page`; edit the rules in plamo_ref/intake/vllm_names.py. -->

# Coming from vLLM

vLLM served PLaMo 2 up to version 0.26. A program written for it runs here with one changed import:

```python
from plamo_ref import LLM, SamplingParams  # was: from vllm import …

llm = LLM(model="pfnet/plamo-2-translate", trust_remote_code=True, max_model_len=2000)
params = SamplingParams(temperature=0, max_tokens=1024, stop=["<|plamo:op|>"])
outputs = llm.generate([prompt], sampling_params=params)
```

and a script that starts a server with one changed word, `plamo-ref serve` for `vllm serve`
(`plamo-ref serve pfnet/plamo-2-8b --trust-remote-code --max-model-len 8192`).

What has the same name here means the same and is not listed below. Every other keyword of vLLM is
one of three kinds, and none is dropped without a word:

- **harmless**: it changes nothing here; one line of notice says so;
- **translated**: it is asked for under our name, with one line of notice;
- **refused**: an error says what there is instead. Where values are named, these are harmless and
  others are refused. `None` always means that nothing is asked for.
"""


def kind(rule: Rule) -> str:
    """In which of the three ways a keyword is taken."""
    if rule.is_harmless:
        return "harmless"
    if rule.becomes is not None:
        return "translated"
    values = [value for value in rule.neutral if value not in ([], {}, ())]
    if values:
        return "only " + ", ".join(f"`{value!r}`" for value in values)
    return "refused" if rule.neutral else "only the model itself"


def rows(title: str, rules: Mapping[str, Rule], form: str = "`{}`") -> str:
    """A section with a row for each keyword, those of a kind together."""
    order = {"harmless": 0, "translated": 1, "refused": 3}
    ranked = sorted(rules.items(), key=lambda item: (order.get(kind(item[1]), 2), item[0]))
    lines = [f"## {title}", "", "| vLLM's | here | what there is |", "|---|---|---|"]
    for name, rule in ranked:
        cure = rule.cure.replace("|", "\\|")
        lines.append(f"| {form.format(name)} | {kind(rule)} | {cure} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The whole text."""
    only_server = {name: rule for name, rule in SERVER.items() if name in names()}
    options = {name.replace("_", "-"): rule for name, rule in only_server.items()}
    return "\n".join(
        (
            BEGINNING,
            rows("Settings of `LLM` and `AsyncLLM`, and options of `serve`", MODEL),
            rows("Options that only `serve` has", options, "`--{}`"),
            rows("`SamplingParams`", SAMPLING),
            rows("Arguments of `generate` and `chat`", CALL),
        )
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
