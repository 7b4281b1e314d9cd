"""Where conversations may part, in the tokens of a prompt.

Invariant tested: a border lies at the last token's end that is not behind the message's beginning;
text that cannot be found has none.
"""

from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from plamo_ref import Plamo2Tokenizer
from plamo_ref.chat.borders import borders
from plamo_ref.intake.hub import find


@cache
def tokenizer() -> Plamo2Tokenizer:
    return Plamo2Tokenizer.from_folder(find("tiny"))


def parts(messages: list[dict[str, str]], text: str, add_bos: bool = True) -> list[str]:
    """What stands before each border."""
    ids = tokenizer().encode(text, add_bos)
    ends = borders(messages, text, ids, tokenizer())
    assert all(0 <= end <= len(ids) for end in ends)
    return [tokenizer().decode(ids[:end], skip_special_tokens=True) for end in ends]


def test_the_first_message_behind_the_instructions_and_the_last_one_have_a_border():
    roles = ("system", "developer", "user", "assistant", "user")
    messages = [{"role": r, "content": f" {r} says {i}\n"} for i, r in enumerate(roles)]
    text = "".join(f"|{m['content'].strip()}" for m in messages)
    assert parts(messages, text) == [
        "|system says 0|developer says 1|",
        "|system says 0|developer says 1|user says 2|assistant says 3|",
    ]
    assert parts(messages[2:3], "|user says 2") == ["|"]
    assert parts(messages[:1], "|system says 0") == ["|"]
    assert parts(messages, "written in another way") == []


@given(
    st.lists(st.text("ab吾輩🙂", min_size=1, max_size=5), min_size=1, max_size=4),
    st.integers(0, 2),
    st.booleans(),
)
def test_before_a_border_are_whole_tokens_and_nothing_of_the_message(contents, system, add_bos):
    messages = [
        {"role": "system" if i < system else "user", "content": content}
        for i, content in enumerate(contents)
    ]
    text = "".join(f"<{i}>{m['content']}" for i, m in enumerate(messages))
    ends = parts(messages, text, add_bos)
    assert all(text.startswith(before) for before in ends)
    header = ends[-1][ends[-1].rindex("<") :]
    assert f"<{len(messages) - 1}>".startswith(header)
