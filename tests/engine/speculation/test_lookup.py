"""What is looked up in a text, and what a guess is worth.

Invariant tested: the longest n-gram counts, of equal ones the last; nothing is found that is not
there; what was wrong lately is not guessed for long, and what is right is guessed further and
further.
"""

import random

import pytest

from plamo_ref.engine.request import Request
from plamo_ref.engine.speculation import lookup as lookup_module
from plamo_ref.engine.speculation.lookup import FIRST, LEAST, Lookup
from plamo_ref.sampling import SamplingParams


def request_of(prompt, outputs=()):
    request = Request("r", tuple(prompt), SamplingParams(), (), 0, 0)
    request.output_ids += outputs
    return request


def lookup_of(prompt, outputs=(), least=2, most=4):
    found = Lookup(request_of(prompt, outputs), least, most)
    found.read()
    return found


def slowly(text, least, most):
    """Where the longest n-gram that the text ends with goes on, of equal ones the last."""
    for size in range(most, least - 1, -1):
        for end in range(len(text) - 1, size - 1, -1):
            if text[end - size : end] == text[-size:]:
                return end
    return None


@pytest.mark.parametrize(("least", "most"), [(1, 1), (2, 4), (1, 3), (3, 3)])
def test_it_finds_what_a_look_at_the_whole_text_finds(least, most):
    rng = random.Random(0)
    for _ in range(60):
        text = [rng.randrange(4) for _ in range(rng.randrange(2, 30))]
        found = lookup_of(text[:-1], text[-1:], least, most)
        assert found.next == slowly(text, least, most)


def test_it_reads_token_by_token_what_it_would_read_at_once(monkeypatch):
    monkeypatch.setattr(lookup_module, "WEIGHT", 0)
    rng = random.Random(1)
    for _ in range(20):
        text = [rng.randrange(3) for _ in range(25)]
        request = request_of(text[:5])
        found = Lookup(request, 2, 3)
        for token in text[5:]:
            follows = found.next
            request.output_ids.append(token)
            found.read()
            known = [*request.prompt_ids, *request.output_ids]
            if follows is not None and known[follows] == token:
                assert found.next == follows + 1  # on and on
            else:
                assert found.next == slowly(known, 2, 3)


def test_a_longer_n_gram_counts_more_than_a_later_one():
    assert lookup_of([1, 2, 3, 7, 9, 2, 3, 8, 1, 2], [3]).guess(1) == [7]
    assert lookup_of([1, 2, 3, 7, 1, 2, 3, 8, 1, 2], [3]).guess(1) == [8]


def test_a_text_that_repeats_itself_goes_on_with_that():
    assert lookup_of([1, 2, 1, 2, 1], [2]).guess(5) == [1, 2, 1, 2, 1]
    assert lookup_of([5, 5], [5]).guess(3) == [5, 5, 5]


def test_nothing_is_guessed_where_nothing_is_found():
    found = lookup_of([1, 2, 3, 4], [5])
    assert (found.next, found.most, found.guess(3)) == (None, 0, [])
    assert lookup_of([5], [5]).next is None  # one token is no 2-gram


def test_a_long_prompt_is_read_in_parts(monkeypatch):
    monkeypatch.setattr(lookup_module, "MOST_INDEXED", 10)
    request = request_of([*range(100, 140), 1, 2], [3])
    found = Lookup(request, 2, 2)
    found.read()
    request.output_ids += [125, 126]
    found.read()
    assert found.next is None  # not come so far
    request.output_ids += [103, 104]
    found.read()
    assert found.guess(2) == [105, 106]


def test_right_guesses_go_further_and_wrong_ones_stop():
    request = request_of([*range(50), *range(4)], [4])
    found = Lookup(request, 2, 4)
    found.read()
    lengths = []
    for token in range(5, 45):
        lengths.append(found.most)
        request.output_ids.append(token)
        found.read()
    assert found.chance > 0.9 > FIRST
    assert lengths == sorted(lengths)
    assert lengths[0] == 1
    assert lengths[-1] >= 16

    wrong = request_of([t for i in range(40) for t in (i, i + 1, 99)], [0])
    found = Lookup(wrong, 2, 2)
    for token in range(1, 30):
        wrong.output_ids.append(token)
        found.read()
    assert found.next is not None
    assert found.chance < LEAST
    assert found.most == 0


def test_the_last_guess_of_a_draft_is_likely_enough():
    found = lookup_of([1, 2, 1, 2, 1], [2])
    for chance in (0.31, 0.5, 0.8, 0.95, 1.0):
        found.chance = chance
        most = found.most
        assert min(chance, 0.999) ** most >= LEAST > min(chance, 0.999) ** (most + 1)
        assert found.gain(most) == pytest.approx(
            sum(min(chance, 0.999) ** n for n in range(1, most + 1))
        )
