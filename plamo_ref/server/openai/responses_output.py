"""The output of a response as it grows: items, and the events that tell of them.

Invariant: an item is told of from its beginning to its end before the next one begins; the items of
the last event are what the events before it have built.
"""

import uuid
from collections.abc import Sequence
from typing import Any

from plamo_ref.server.tools.reader import Arguments, CallBegins, Piece, Text

Event = dict[str, Any]


class Output:
    """The items of one response."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._open: _Message | _Call | None = None

    def add(self, piece: Piece, call_id: str, scores: Sequence[Any]) -> list[Event]:
        """What a piece changes. `scores` are the log probabilities of its tokens, for a text;
        `call_id` is for the call that the piece may begin."""
        events: list[Event] = []
        match piece:
            case Text(text):
                if not isinstance(self._open, _Message):
                    events += self._begin(_Message(len(self.items)))
                assert isinstance(self._open, _Message)
                events.append(self._open.add(text, scores))
            case CallBegins(_, name):
                events += self._begin(_Call(len(self.items), call_id, name))
            case Arguments(_, text):
                assert isinstance(self._open, _Call)
                events.append(self._open.add(text))
        return events

    def close(self, status: str) -> list[Event]:
        """No more comes. An answer without a word has an empty message."""
        events = [] if self.items else self._begin(_Message(0))
        return events + self._end(status)

    def _begin(self, item: "_Message | _Call") -> list[Event]:
        events = self._end("completed")
        self._open = item
        self.items.append(item.item("in_progress"))
        return events + item.begin()

    def _end(self, status: str) -> list[Event]:
        if self._open is None:
            return []
        self.items[-1] = self._open.item(status)
        events = self._open.end()
        events.append(
            {
                "type": "response.output_item.done",
                "output_index": self._open.index,
                "item": self.items[-1],
            }
        )
        self._open = None
        return events


class _Message:
    """What the assistant says."""

    def __init__(self, index: int) -> None:
        self.index = index
        self._texts: list[str] = []
        self._scores: list[Any] = []
        self._id = f"msg_{uuid.uuid4().hex}"
        self._place = {"item_id": self._id, "output_index": index, "content_index": 0}

    def _part(self) -> dict[str, Any]:
        text = "".join(self._texts)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._scores}

    def item(self, status: str) -> dict[str, Any]:
        content = [] if status == "in_progress" else [self._part()]
        head = {"id": self._id, "type": "message", "status": status}
        return {**head, "role": "assistant", "content": content}

    def begin(self) -> list[Event]:
        added = {"type": "response.output_item.added", "output_index": self.index}
        part = {"type": "response.content_part.added", **self._place, "part": self._part()}
        return [{**added, "item": self.item("in_progress")}, part]

    def add(self, text: str, scores: Sequence[Any]) -> Event:
        self._texts.append(text)
        self._scores += scores
        head = {"type": "response.output_text.delta", **self._place}
        return {**head, "delta": text, "logprobs": list(scores)}

    def end(self) -> list[Event]:
        part = self._part()
        done = {"type": "response.output_text.done", **self._place}
        return [
            {**done, "text": part["text"], "logprobs": self._scores},
            {"type": "response.content_part.done", **self._place, "part": part},
        ]


class _Call:
    """A function that shall be called."""

    def __init__(self, index: int, call_id: str, name: str) -> None:
        self.index, self._call_id, self._name = index, call_id, name
        self._arguments: list[str] = []
        self._id = f"fc_{uuid.uuid4().hex}"
        self._place = {"item_id": self._id, "output_index": index}

    def item(self, status: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "function_call",
            "status": status,
            "call_id": self._call_id,
            "name": self._name,
            "arguments": "".join(self._arguments),
        }

    def begin(self) -> list[Event]:
        added = {"type": "response.output_item.added", "output_index": self.index}
        return [{**added, "item": self.item("in_progress")}]

    def add(self, text: str) -> Event:
        self._arguments.append(text)
        return {"type": "response.function_call_arguments.delta", **self._place, "delta": text}

    def end(self) -> list[Event]:
        done = {"type": "response.function_call_arguments.done", **self._place}
        return [{**done, "name": self._name, "arguments": "".join(self._arguments)}]
