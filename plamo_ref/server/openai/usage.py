"""How many tokens a request has taken so far.

Invariant: what the last chunk of a stream says is what the whole answer would have said.
"""

from dataclasses import dataclass
from typing import Any

from plamo_ref.server.openai.schemas import StreamOptions


@dataclass
class Usage:
    """Counts of tokens: of all prompts, and of all choices."""

    prompt_tokens: int
    completion_tokens: int = 0

    def so_far(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }

    def in_chunk(self, options: StreamOptions | None) -> dict[str, Any]:
        """What a chunk that has choices says of it: nothing unless the client has asked."""
        if options is None or not options.usage:
            return {}
        return {"usage": self.so_far() if options.continuous_usage_stats else None}
