"""How many tokens a request has taken so far.

Invariant: what the last chunk of a stream says is what the whole answer would have said.
"""

from dataclasses import dataclass
from typing import Any

from plamo_ref.remote.calls import Delta
from plamo_ref.server.openai import answers
from plamo_ref.server.openai.schemas import StreamOptions


@dataclass
class Usage:
    """Counts of tokens: of all prompts, and of all choices."""

    prompt_tokens: int
    choices: int = 1  # of each prompt
    completion_tokens: int = 0
    cached_tokens: int = 0  # of the prompts: found computed, by the first choice of each

    def add(self, delta: Delta, tokens: int = 1) -> None:
        """Count what a delta has brought; of those who want none, its token does not count."""
        self.completion_tokens += tokens
        if delta.index % self.choices == 0:
            self.cached_tokens += delta.num_cached_tokens

    def so_far(self) -> answers.Usage:
        prompt, written = self.prompt_tokens, self.completion_tokens
        details = answers.PromptDetails(self.cached_tokens)
        return answers.Usage(prompt, written, prompt + written, details)

    def in_chunk(self, options: StreamOptions | None) -> dict[str, Any]:
        """What a chunk that has choices says of it: nothing unless the client has asked."""
        if options is None or not options.usage:
            return {}
        return {"usage": self.so_far() if options.continuous_usage_stats else None}
