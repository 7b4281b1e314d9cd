"""The slides of a lesson in their order, from its title to what has been built.

Invariant: every step has a slide with code of its definition, every exercise one with a countdown
of its own minutes, and the lesson's whole text is in the notes.
"""

import re
from collections.abc import Iterator

from nbformat import NotebookNode

from tools.course.editions import tags
from tools.course.quiz import LETTERS
from tools.course.slides.cells import Code, Said, Shown, shown
from tools.course.slides.layout import (
    HEIGHT,
    Box,
    Clock,
    Prose,
    Slide,
    added,
    joined,
    paged,
    placed,
    split,
)
from tools.course.slides.lesson import Beat, Help, Lesson, Part
from tools.course.slides.prose import blocks, gist, html, inline, is_shown_whole, sentences

WITH_CODE, WITH_PICTURE, ALONE = 230, 420, 900  # characters of text
ROOM_OF_TITLE = 400  # px, less where the title is so large
_SKIPPED = re.compile(r"\d+\. Set[ -]up")  # nobody projects imports
_EXERCISES = re.compile(r"\d+\. Exercises?")  # how a notebook is used is for the speaker
_SUMMARY = re.compile(r"\d+\. Summary")
_CARD = re.compile(r"^\| *\**([^|*]+?)\** *\| *(.*?) *\|$", re.MULTILINE)
_DIFFICULTY = re.compile(
    r"^difficulty (\S+) · importance (\d of 5) · up to (\d+) min", re.MULTILINE
)
_NUMBERED = re.compile(r"^(Step|Exercise) \d+[. ·]+(Exercise \d+ · )?")
_BOLD_PARAGRAPH = re.compile(r"^\*\*([^*]+)\*\* *(.*)$", re.DOTALL)


def deck(lesson: Lesson) -> list[Slide]:
    """All slides of a lesson."""
    title, *parts = lesson.parts
    slides, held = [*_opening(title, lesson)], ""
    for part in parts:
        if _SKIPPED.match(part.title):
            continue
        if part.pause:
            slides.append(pause(part.pause, part.title))
        if _EXERCISES.fullmatch(part.title) and not any(beat.cells for beat in part.beats):
            held = html(part.text) + "\n<hr>\n"
            continue
        mine = list(_summary(part) if _SUMMARY.match(part.section) else _part(part, lesson))
        for slide in mine:
            slide.where, slide.span = part.section, lesson.page.span(part.number)
            slide.part, slide.row = part.name, lesson.page.row(part.number)
        if mine:
            mine[0].notes, held = held + mine[0].notes, ""
        slides += mine
    slides += [*_quiz(lesson), *_discussion(lesson), _built(lesson)]
    for slide in slides:
        slide.where = slide.where or title.title
    return numbered(slides)


def numbered(slides: list[Slide]) -> list[Slide]:
    """Slides that share a heading are told apart by a count; breaks are not counted."""
    for slide in (each for each in slides if each.kind != "pause"):
        same = [other for other in slides if other.heading == slide.heading]
        slide.count = (next(i for i, s in enumerate(same, 1) if s is slide), len(same))
    return slides


def pause(minutes: int, where: str) -> Slide:
    boxes: list[Box] = [Prose(f"We go on with **{where}**."), Clock(minutes)]
    notes = f"<p>{minutes} minutes. Start the clock when people leave (C).</p>"
    return Slide("Break", boxes, kind="pause", notes=notes, part="break")


# --- beginning ------------------------------------------------------------------------------------


def _opening(title: Part, lesson: Lesson) -> Iterator[Slide]:
    text = title.text
    promise, _, _ = text.partition("\n\n")
    card = {key.lower(): value for key, value in _CARD.findall(text) if key.strip("- ")}
    name, _, subtitle = title.title.partition(":")
    boxes: list[Box] = [Prose(subtitle.strip()), Prose(promise.strip("*"))]
    for word in ("time", "prerequisites", "lane"):
        boxes.append(Prose(f"**{word.capitalize()}:** {card[word]}"))
    notes = html(text.partition("**要約**")[0])
    yield _must(Slide(name.strip(), boxes, kind="title", notes=notes), ROOM_OF_TITLE)
    if "**要約**" in text:
        japanese = text.partition("**要約**")[2].strip().split("\n\n")[0]
        yield _must(Slide("要約", [Prose(japanese)], kind="japanese"))
    rows = "\n".join(f"| {label} | {minutes} |" for label, minutes in lesson.page.minutes)
    total = sum(minutes for _, minutes in lesson.page.minutes)
    agenda = f"| section | minutes |\n|---|---|\n{rows}\n| **all** | **{total}** |"
    more = re.split(r"^\|.*\|$", lesson.page.parts.get("Minutes", ""), flags=re.MULTILINE)[-1]
    notes = html(more.strip())
    yield _must(Slide("Agenda", [Prose(agenda)], kind="agenda", notes=notes, part="agenda"))


def _must(slide: Slide, room: float = HEIGHT) -> Slide:
    """Placed; a slide that does not fit shows it in the browser's test."""
    placed(slide, room)
    return slide


# --- middle ---------------------------------------------------------------------------------------


def _part(part: Part, lesson: Lesson) -> Iterator[Slide]:
    if part.exercise is not None:
        yield from _exercise(part, lesson)
        return
    found: list[Slide] = []
    predicts = part.title.endswith("Predict first")
    for beat in part.beats:
        mine = _beat(part.title, beat, alone=len(part.beats) == 1)
        if found and len(mine) == 1 and not predicts and joined(found[-1], mine[0]):
            found[-1].notes += "\n<hr>\n" + html(beat.text)
            continue
        if mine:
            mine[0].notes = html(beat.text)
        elif found and beat.text and not predicts:
            found[-1].notes += "\n<hr>\n" + html(beat.text)
        elif beat.text:
            mine = _text(part.title, beat.text)
        found += mine
    for slide in found:
        slide.kind = "predict" if predicts else ""
    kit = {"idea": "On the board", "build": "Where people get stuck"}
    for word, name in kit.items():
        if found and re.match(rf"\d+\. [^:]*\b{word}\b", part.title, re.IGNORECASE):
            found[0].notes += f"\n<h4>{name}</h4>\n" + html(lesson.page.parts.get(name, ""))
    yield from found


def _beat(heading: str, beat: Beat, *, alone: bool = False) -> list[Slide]:
    groups = [group for cell in beat.cells if (group := shown(cell))]
    if not groups:
        return _text(heading, beat.text) if alone and beat.text else []
    codes = any(isinstance(box, Code | Said) for box in groups[0])
    most = WITH_CODE if codes else WITH_PICTURE
    leads = [_prose(beat.text, n) for n in (most, most // 2, 90)]
    return paged(heading, leads, groups)


def _text(heading: str, text: str) -> list[Slide]:
    slides = split(heading, _prose(text, ALONE))
    slides[0].notes = html(text)
    return slides


def _prose(text: str, most: int) -> list[Box]:
    return [Prose(block) for block in gist(text, most)]


def _exercise(part: Part, lesson: Lesson) -> Iterator[Slide]:
    """What is asked, with its picture; "your turn" with clock and stub; what comes after it."""
    asked = re.sub(r"^difficulty.*$", "", part.beats[0].text, flags=re.MULTILINE).strip()
    card = _DIFFICULTY.search(part.text)
    number = part.exercise
    assert card is not None  # the gate demands it
    assert number is not None
    before, stub, after = _around_stub(part)
    if groups := [group for cell in before if (group := shown(cell))]:
        yield from paged(part.title, [_prose(asked, WITH_PICTURE), []], groups)
    clock = Clock(int(card[3]))
    turn = _your_turn(part.title, asked, [*stub, clock])
    if turn is None:
        if not groups:
            yield from _text(part.title, asked)
        turn = _must(Slide(f"Your turn: {part.title}", [*stub, clock]))
    turn.kind = "turn"
    turn.notes = _help(lesson.help[number], f"{card[1]} · importance {card[2]}", asked)
    yield turn
    for beat in after:
        mine = _beat(part.title, beat)
        if mine:
            mine[0].notes = html(beat.text)
        elif beat.text:
            turn.notes += "\n<hr>\n" + html(beat.text)
        yield from mine


def _around_stub(part: Part) -> tuple[list[NotebookNode], list[Code], list[Beat]]:
    """The cells before the stub, the stub's code, and the beats after it."""
    cells = [(cell, beat) for beat in part.beats for cell in beat.cells]
    place = next(i for i, (cell, _) in enumerate(cells) if "exercise" in tags(cell))
    stub, its_beat = cells[place]
    rest = its_beat.cells[its_beat.cells.index(stub) + 1 :]
    later = part.beats[part.beats.index(its_beat) + 1 :]
    code = [box for box in shown(stub) if isinstance(box, Code)]
    said = [] if its_beat is part.beats[0] else [its_beat.text]
    return [cell for cell, _ in cells[:place]], code, [Beat("\n".join(said), rest), *later]


def _your_turn(title: str, asked: str, boxes: list[Box]) -> Slide | None:
    for most in (700, 500, 350, 200):
        slide = Slide(f"Your turn: {title}")
        if added(slide, [*_prose(asked, most), *boxes]):
            return slide
    return None


def _help(known: Help, card: str, asked: str) -> str:
    """For the speaker: the task, the hints, what people get wrong."""
    hints = "".join(f"<li>{hint}</li>" for hint in known.hints)
    wrong = "".join(f"<li>{inline(mistake)}</li>" for mistake in known.mistakes)
    return (
        f"<p>{card}</p>\n{html(asked)}\n<h4>Hints, the weaker one first</h4>\n<ol>{hints}</ol>\n"
        f"<h4>What people get wrong</h4>\n<ul>{wrong}</ul>"
    )


# --- end ------------------------------------------------------------------------------------------


def _summary(part: Part) -> Iterator[Slide]:
    """The bullets, the prediction's answer, what others do differently."""
    bullets = [b for b in blocks(part.text) if re.match(r"[-*] ", b)]
    yield from split("Summary", [Prose(b) for b in bullets])
    others = ""
    answer: list[str] = []
    groups: list[list[Shown]] = []
    for beat in part.beats:
        for block in blocks(beat.text):
            label = _BOLD_PARAGRAPH.match(block)
            if label and label[1].startswith("What others"):
                others = label[2]
            elif label and re.match(r"(Read on|Where to read|Next|Back to)", label[1]):
                continue
            elif not is_shown_whole(block):
                answer.append(label[2] if label else block)
        groups += [group for cell in beat.cells if (group := shown(cell))]
    text = "\n\n".join(answer)
    slides = paged("The prediction’s answer", [_prose(text, n) for n in (500, 300, 150)], groups)
    slides[0].notes = html(text)
    yield from slides
    if others:
        yield from _others(others)


def _others(text: str) -> list[Slide]:
    slides = split("What others do differently", [Prose(s) for s in _joined(sentences(text), 600)])
    slides[0].notes = html(text)
    return slides


def _joined(some: list[str], most: int) -> list[str]:
    kept, room = [], most
    for sentence in some:
        room -= len(sentence)
        if room < 0:
            break  # a later one may lean on this one
        kept.append(sentence)
    return kept


def _quiz(lesson: Lesson) -> Iterator[Slide]:
    """The questions with their options; in the notes, which is right and why not the others."""
    for question in lesson.quiz:
        options = list(zip(LETTERS, question.options, strict=False))
        boxes: list[Box] = [
            Prose(question.ask),
            *(Prose(f"**{letter}** {o.text}") for letter, o in options),
        ]
        why = (f"- {'✓' if o.is_right else '✗'} **{letter}** {o.why}" for letter, o in options)
        notes = html(f"Section {question.section}.\n\n" + "\n".join(why))
        yield _must(Slide(f"Quiz, question {question.number}", boxes, notes=notes, kind="predict"))


def _discussion(lesson: Lesson) -> Iterator[Slide]:
    """The questions; what may be answered is in the notes."""
    text = lesson.page.parts.get("Two questions to discuss", "")
    if asked := re.findall(r"^(\d+\. .*?)(?=\n\n|\n\d+\. |\Z)", text, re.MULTILINE | re.DOTALL):
        yield _must(Slide("To discuss", [Prose("\n".join(asked))], notes=html(text)))


def _built(lesson: Lesson) -> Slide:
    """The last one: what there is now, and where it goes on."""
    built = (p for p in lesson.parts if re.match(r"Step \d", p.title) or _is_built(p))
    steps = [_NUMBERED.sub("", part.title) for part in built]
    card = dict(_CARD.findall(lesson.parts[0].text))
    files = next((v for k, v in card.items() if "understand" in k.lower()), "")
    ending = lesson.parts[-1].text
    next_one = re.search(r"\*\*(?:Next|Back to):\*\* *(.*?)(?:\n\n|$)", ending, re.DOTALL)
    boxes: list[Box] = [Prose("\n".join(f"- {step}" for step in steps))] if steps else []
    boxes += [Prose(f"You can now read {files}")]
    boxes += [Prose(f"**Next:** {next_one[1]}")] if next_one else []
    return _must(Slide("What we have built", boxes, kind="built", notes=html(ending)))


def _is_built(part: Part) -> bool:
    """An exercise that is the building itself, not one after it."""
    return part.exercise is not None and "Build it" in part.section
