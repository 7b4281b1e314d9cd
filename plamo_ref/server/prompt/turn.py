"""One choice of a chat as it grows: the deltas of the engine, read as pieces of a message.

Invariant: the pieces, joined, are the message, whether they are streamed or not.
"""

import uuid
from typing import Any

from msgspec import UNSET
from msgspec.structs import asdict, replace

from plamo_ref.remote.calls import Delta
from plamo_ref.server.openai.answers import AssistantMessage, MadeCall, MadeCallFunction
from plamo_ref.server.tools.offered import ToolPlan
from plamo_ref.server.tools.reader import Arguments, CallBegins, Piece, Text


class Turn:
    """What the assistant says, and calls, in one choice.

    Attributes:
        texts, calls: what has come so far; a call is as the API has it.
    """

    def __init__(self, plan: ToolPlan | None) -> None:
        self._reader = None if plan is None else plan.reader()
        self._id_length = None if plan is None else plan.form.id_length
        self.texts: list[str] = []
        self.calls: list[MadeCall] = []
        self._arguments: list[list[str]] = []

    def read(self, delta: Delta) -> list[Piece]:
        """What a delta has added."""
        if self._reader is None:
            pieces: list[Piece] = [Text(delta.text)] if delta.text else []
        else:
            pieces = self._reader.push(delta.text)
            if delta.finish_reason is not None:
                pieces += self._reader.finish()
        for piece in pieces:
            self._keep(piece)
        return pieces

    def _keep(self, piece: Piece) -> None:
        match piece:
            case Text(text):
                self.texts.append(text)
            case CallBegins(_, name):
                self.calls.append(MadeCall(self._new_id(), "function", MadeCallFunction(name, "")))
                self._arguments.append([])
            case Arguments(index, text):
                self._arguments[index].append(text)

    def _new_id(self) -> str:
        random = uuid.uuid4().hex
        return f"call_{random}" if self._id_length is None else random[: self._id_length]

    def finish_reason(self, delta: Delta) -> str | None:
        """As the API names it: a turn that has called ends for that."""
        return "tool_calls" if self.calls and delta.finish_reason == "stop" else delta.finish_reason

    def message(self) -> AssistantMessage:
        """The whole of it. Its content is null where there are calls alone."""
        text = "".join(self.texts)
        content = None if self.calls and not text else text
        calls = [
            replace(call, function=replace(call.function, arguments="".join(arguments)))
            for call, arguments in zip(self.calls, self._arguments, strict=True)
        ]
        return AssistantMessage("assistant", content, tool_calls=calls or UNSET)

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """A piece as a stream has it."""
        match piece:
            case Text(text):
                return {"content": text}
            case CallBegins(index):
                return {"tool_calls": [{"index": index, **asdict(self.calls[index])}]}
            case Arguments(index, text):
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
