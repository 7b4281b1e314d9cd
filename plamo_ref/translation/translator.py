"""Translates a document piece by piece, all of them together, and gives them in order.

A piece may run away: a model repeats itself until its tokens are used up, or says nothing at all.
It is then translated in halves, each a piece of its own; a single sentence once more, with a
penalty on repetition. What has still no translation keeps its original text, and says so.

Invariant: every piece of the document is given exactly once, in order, as soon as it and all before
it are ready: whoever stops in the middle has a translation of the beginning.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from plamo_ref.chat.conversations import ChatPrompts
from plamo_ref.errors import PlamoRefError
from plamo_ref.intake.values import shown
from plamo_ref.sampling import SamplingParams
from plamo_ref.text.tokenizer import Plamo2Tokenizer
from plamo_ref.translation.pieces import Piece, halves, joint, paragraphs, shortened

if TYPE_CHECKING:
    from plamo_ref.engine.outputs import StreamPiece

GREEDY = SamplingParams(temperature=0)
SECOND_TRY_PENALTY = 1.1  # on repetition, for a sentence that ran away: enough to leave a loop
PLACE = "\0"  # stands for a text in a prompt
LONGEST_FACTOR, LONGEST_CONSTANT = 3, 64  # of a translation in tokens, by those of its original


class TranslationError(PlamoRefError, ValueError):
    """Something that cannot be translated so; the message says what to change."""


class Streaming(Protocol):
    """What is needed of an `LLM`."""

    tokenizer: Plamo2Tokenizer

    def stream(self, prompts: Any, sampling_params: Any) -> Iterator["StreamPiece"]: ...


@dataclass(frozen=True)
class TranslatedPiece:
    """A piece of the document and its translation."""

    source: str
    text: str  # with what comes before it and after it: all texts together are the translation
    tries: int  # how many prompts it took
    untranslated: tuple[str, ...] = ()  # what of the source stands in `text` as it was
    prompt_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True)
class Translation:
    """A whole document."""

    pieces: tuple[TranslatedPiece, ...]

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def untranslated(self) -> tuple[str, ...]:
        """What the model found no end of; it stands in the text as it was."""
        return tuple(part for piece in self.pieces for part in piece.untranslated)


@dataclass(eq=False)
class _Part:
    """What is asked for with one prompt."""

    piece: Piece
    is_second_try: bool = False
    text: str = ""
    is_done: bool = False
    is_translated: bool = True


@dataclass(eq=False)
class _Job:
    """A piece of the document: one part, or several once it had to be cut."""

    source: Piece
    parts: list[_Part]
    tries: int = 1
    prompt_tokens: int = 0  # of tries that came to nothing, too
    output_tokens: int = 0

    @property
    def is_done(self) -> bool:
        return all(part.is_done for part in self.parts)

    def result(self, before: str) -> TranslatedPiece:
        text = before
        for part, following in zip(self.parts, [*self.parts[1:], None], strict=True):
            after, right = part.piece.after, following.text if following else ""
            text += part.text + (joint(part.text, after, right) if following else after)
        kept = tuple(part.piece.text for part in self.parts if not part.is_translated)
        source, tries = self.source.text, self.tries
        return TranslatedPiece(source, text, tries, kept, self.prompt_tokens, self.output_tokens)


@dataclass
class Translator:
    """A model that translates, and how.

    Args:
        llm: one with a model that knows the format, such as pfnet/plamo-2-translate.
        source_lang, target_lang: as the model names them: "English", "Japanese"; None: it finds out
            by itself, between English and Japanese.
        piece_tokens: of a piece at most. Longer pieces know more of what they are about.

    Raises:
        TranslationError: `piece_tokens` is no such number.
    """

    llm: Streaming
    source_lang: str | None = None
    target_lang: str | None = None
    piece_tokens: int = 400
    _chats: ChatPrompts = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._chats = ChatPrompts.of(Path(), "translate", self.llm.tokenizer)
        if type(self.piece_tokens) is not int or self.piece_tokens < 1:
            raise TranslationError(
                f"piece_tokens must be an integer, 1 or more, not {shown(self.piece_tokens)}"
            )

    def translate(self, document: str) -> Translation:
        """All of it at once.

        Raises:
            PlamoRefError: as `LLM.generate`.
        """
        return Translation(tuple(self.stream(document)))

    def pieces(self, document: str) -> tuple[str, list[Piece]]:
        """White space at the beginning, and what will be translated, one prompt for each."""
        before, whole = paragraphs(document)
        cut = [part for one in whole for part in shortened(one, self.piece_tokens, self._length)]
        return before, cut

    def stream(self, document: str) -> Iterator[TranslatedPiece]:
        """The pieces, each as soon as it and all before it are ready.

        Raises: as `translate`.
        """
        before, cut = self.pieces(document)
        jobs = [_Job(piece, [_Part(piece)]) for piece in cut]
        if not jobs and before:
            yield TranslatedPiece("", before, 0)
        waiting = [(job, part) for job in jobs for part in job.parts]
        given = 0
        while waiting:
            again: list[tuple[_Job, _Part]] = []
            for job, part, text, ended in self._answers(waiting):
                again += self._take(job, part, text, ended)
                while given < len(jobs) and jobs[given].is_done:
                    yield jobs[given].result(before)
                    before, given = "", given + 1
            waiting = again

    def _take(self, job: _Job, part: _Part, text: str, ended: bool) -> list[tuple[_Job, _Part]]:
        """Note what came of a part; what has to be asked for because of it."""
        if ended and text:
            part.text, part.is_done = text, True
            return []
        both = halves(part.piece)
        if len(both) > 1:
            new = [_Part(piece) for piece in both]
        elif not part.is_second_try:
            new = [_Part(part.piece, is_second_try=True)]
        else:
            part.text, part.is_done, part.is_translated = part.piece.text, True, False
            return []
        at = job.parts.index(part)
        job.parts[at : at + 1] = new
        job.tries += len(new)
        return [(job, one) for one in new]

    def _answers(
        self, asked: Sequence[tuple[_Job, _Part]]
    ) -> Iterator[tuple[_Job, _Part, str, bool]]:
        """Each part with its text, and whether that came to an end; as they come to it."""
        prompts, params = [], []
        for job, part in asked:
            prompt = self._prompt(part.piece.text)
            longest = LONGEST_FACTOR * self._length(part.piece.text) + LONGEST_CONSTANT
            how = replace(GREEDY, max_tokens=longest)
            if part.is_second_try:
                how = replace(how, repetition_penalty=SECOND_TRY_PENALTY)
            params.append(self._chats.params(how))
            prompts.append({"prompt_token_ids": prompt})
            job.prompt_tokens += len(prompt)
        texts = [""] * len(asked)
        for piece in self.llm.stream(prompts, params):
            job, part = asked[piece.index]
            texts[piece.index] += piece.text
            job.output_tokens += piece.token_id is not None
            if piece.finish_reason is not None:
                yield job, part, texts[piece.index].strip(), piece.finish_reason == "stop"

    def _prompt(self, text: str) -> list[int]:
        """The ids of a prompt for this text. What is spelt like a control token in it is text."""
        languages = {"source_lang": self.source_lang, "target_lang": self.target_lang}
        extra = {name: value for name, value in languages.items() if value is not None}

        def prompt(content: str) -> dict[str, Any]:
            return self._chats.prompt([{"role": "user", "content": content}], extra)

        encode = self.llm.tokenizer.encode
        as_text = encode(text, add_bos=False, specials=False)
        if as_text == encode(text, add_bos=False):
            ids: list[int] = prompt(text)["prompt_token_ids"]
            return ids
        head, _, tail = prompt(PLACE)["prompt"].partition(PLACE)
        return [*encode(head), *as_text, *encode(tail, add_bos=False)]

    def _length(self, text: str) -> int:
        return len(self.llm.tokenizer.encode(text, add_bos=False, specials=False))
