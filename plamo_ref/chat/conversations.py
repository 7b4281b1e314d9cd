"""Conversations as prompts for an engine in this process.

Invariant: a conversation is rendered with the checkpoint's own template, encoded as the template
wants it, and ends where its turns end; a base model's is refused, not guessed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plamo_ref.chat.borders import borders
from plamo_ref.chat.templates import ChatTemplate, TemplateLoadError, load_template
from plamo_ref.intake.values import shown
from plamo_ref.sampling import SamplingParams
from plamo_ref.text.tokenizer import Plamo2Tokenizer

Message = Mapping[str, Any]
Conversation = Sequence[Message]


@dataclass(frozen=True)
class ChatPrompts:
    """A template and the tokenizer that it writes for."""

    template: ChatTemplate
    tokenizer: Plamo2Tokenizer

    @classmethod
    def of(cls, folder: Path, wanted: str | None, tokenizer: Plamo2Tokenizer) -> "ChatPrompts":
        """For a checkpoint; `wanted` as in `load_template`.

        Raises:
            TemplateLoadError: there is no template, or it cannot be read.
        """
        template = load_template(folder, wanted, tokenizer)
        if template is None:
            raise TemplateLoadError(
                f"{folder} is a base model without a chat template: give chat_template, a file or "
                'a name such as "plain", or complete texts with `generate`'
            )
        return cls(template, tokenizer)

    def prompt(
        self, conversation: Conversation, extra: Mapping[str, Any], **options: Any
    ) -> dict[str, Any]:
        """A conversation as a prompt for `LLM.generate`; arguments as of `ChatTemplate.render`."""
        text = self.template.render(conversation, extra, **options)
        ids = self.tokenizer.encode(text, self.template.add_bos(text))
        ends = borders(conversation, text, ids, self.tokenizer)
        return {"prompt": text, "prompt_token_ids": ids, "borders": ends}

    def params(self, params: SamplingParams) -> SamplingParams:
        """The same, ending where the assistant's turn ends."""
        return self.template.with_stops(params, self.tokenizer)


def read_conversations(given: Any) -> list[Conversation]:
    """One conversation, or many → many.

    Raises:
        TemplateLoadError: something in it is no message.
    """
    is_list = isinstance(given, Sequence) and not isinstance(given, str | bytes)
    items = list(given) if is_list else []
    listed = [items] if items and isinstance(items[0], Mapping) else items
    for place, conversation in enumerate(listed):
        if not isinstance(conversation, Sequence) or not conversation:
            raise _no_message(place, conversation)
        for message in conversation:
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise _no_message(place, message)
    if not listed:
        raise _no_message(0, given)
    return listed


def _no_message(place: int, value: Any) -> TemplateLoadError:
    return TemplateLoadError(
        f"conversation {place}: {shown(value)} is no message: give a list of objects with a role "
        'and a content, such as [{"role": "user", "content": "…"}]'
    )
