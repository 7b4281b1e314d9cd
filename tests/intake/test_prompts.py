"""What may be given as prompts: all of it arrives, in order and as Python's own integers.

Invariant tested: no prompt is lost, doubled or replaced; what is no prompt is refused by place.
"""

from collections import deque

import numpy as np
import pytest
import torch
from engines import GREEDY
from hypothesis import given
from hypothesis import strategies as st
from junk import JUNK, outcome

from plamo_ref.errors import PlamoRefError
from plamo_ref.intake.prompts import Prompt, PromptError, read_params, read_prompts
from plamo_ref.sampling import SamplingParams

CAT, DOG = Prompt("猫", None), Prompt("犬", None)
IDS, OTHER = Prompt(None, (1, 5)), Prompt(None, (7, 8))


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("猫", [CAT]),
        (np.str_("猫"), [CAT]),
        (["猫", "犬"], [CAT, DOG]),
        (("猫", "犬"), [CAT, DOG]),
        ((text for text in ("猫", "犬")), [CAT, DOG]),
        (iter(["猫"]), [CAT]),
        (deque(["猫", "犬"]), [CAT, DOG]),
        ({"猫": 1, "犬": 2}.keys(), [CAT, DOG]),
        (np.array(["猫", "犬"]), [CAT, DOG]),
        ([1, 5], [IDS]),
        ((1, 5), [IDS]),
        (range(7, 9), [OTHER]),
        ((i for i in (1, 5)), [IDS]),
        (np.array([1, 5]), [IDS]),
        (np.array([1, 5], dtype=np.uint8), [IDS]),
        (torch.tensor([1, 5], dtype=torch.int32), [IDS]),
        ([np.int64(1), torch.tensor(5)], [IDS]),
        (list(torch.tensor([1, 5])), [IDS]),
        ([[1, 5], [7, 8]], [IDS, OTHER]),
        ([[1, 5], (7, 8)], [IDS, OTHER]),
        (np.array([[1, 5], [7, 8]]), [IDS, OTHER]),
        (torch.tensor([[1, 5], [7, 8]]), [IDS, OTHER]),
        ([np.array([1, 5]), torch.tensor([7, 8])], [IDS, OTHER]),
        ([(i for i in (1, 5)), "猫"], [IDS, CAT]),
        ({"prompt": "猫"}, [CAT]),
        ({"prompt": "猫", "multi_modal_data": None, "mm_processor_kwargs": {}}, [CAT]),
        ({"prompt_token_ids": [1, 5]}, [IDS]),
        ([{"prompt_token_ids": np.array([1, 5])}, {"prompt": "犬"}], [IDS, DOG]),
        ({"prompt": "猫", "prompt_token_ids": [1, 5]}, [Prompt("猫", (1, 5))]),
        ([], []),
        (np.array([]), []),
        (iter(()), []),
        ([[]], [Prompt(None, ())]),
        ("", [Prompt("", None)]),
    ],
)
def test_prompts_are_read_as_they_are_meant(given, prompts):
    read = read_prompts(given)
    assert read == prompts
    assert all(type(i) is int for prompt in read for i in prompt.token_ids or ())
    assert all(type(prompt.text) in (str, type(None)) for prompt in read)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (None, "prompts: None is of no use; give a text"),
        (5, "prompts: 5 is of no use"),
        (np.array(5), "prompts: 5 is of no use"),
        (b"cat", "prompts: b'cat' is bytes; decode"),
        (["a", b"cat"], "prompt 1: b'cat' is bytes"),
        ({"a"}, "prompts: {'a'} has no order; make it a list"),
        (frozenset({1}), "has no order"),
        ([5.0, 6.5], "the prompt: token 0 is 5.0; ids are integers"),
        ([[1, 6.5]], "prompt 0: token 1 is 6.5"),
        (np.array([1.0]), r"token 0 is 1\.0"),
        ([True, False], "token 0 is True"),
        ([[1, None]], "prompt 0: token 1 is None"),
        (np.array([True]), "token 0 is True"),
        (torch.tensor([[0.5]]), r"prompt 0: token 0 is 0\.5"),
        (np.zeros((1, 2, 3), dtype=int), r"prompt 0: token 0 is \[0, 0, 0\]"),
        (["a", 5], "prompt 1: 5 is of no use"),
        (["a", None], "prompt 1: None"),
        ([["a"]], "prompt 0: token 0 is 'a'"),
        (torch.empty(3, device="meta"), "of no use"),
        ({}, 'neither "prompt" nor "prompt_token_ids"'),
        ({"prompt": None}, "neither"),
        ({"prompt": [1, 2]}, r"its text is \[1, 2\]"),
        ({"prompt": "a", "multi_modal_data": {"image": 1}}, "'multi_modal_data' is not supported"),
        ({"prompt_embeds": [[0.5]]}, "'prompt_embeds' is not supported"),
        ([{"prompt": "a"}, {"prompt_token_ids": "a"}], "prompt 1: prompt_token_ids: 'a'"),
    ],
)
def test_what_is_no_prompt_is_refused_by_place(given, reason):
    with pytest.raises(PromptError, match=reason):
        read_prompts(given)


def test_a_mapping_inside_itself_is_refused():
    loop: dict = {}
    loop["prompt"] = loop
    with pytest.raises(PromptError, match="its text is"):
        read_prompts(loop)


def test_an_error_of_the_users_own_generator_is_the_users():
    def broken():
        yield "a"
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        read_prompts(broken())


def test_parameters_are_for_all_or_for_each():
    other = SamplingParams(n=2)
    assert read_params(None, 2) == [SamplingParams()] * 2
    assert read_params(other, 2) == [other, other]
    assert read_params(iter([GREEDY, other]), 2) == [GREEDY, other]
    for wrong, reason in (
        ({"max_tokens": 3}, r"write SamplingParams\(\*\*these\)"),
        ([GREEDY, {"max_tokens": 3}], "{'max_tokens': 3} is no SamplingParams"),
        ([GREEDY], "2 prompts but 1 sampling parameters"),
        (0.7, "0.7 is of no use; give one SamplingParams"),
    ):
        with pytest.raises(PromptError, match=reason):
            read_params(wrong, 2)


@given(st.one_of(JUNK, st.lists(JUNK, max_size=3)))
def test_anything_is_prompts_or_refused(junk):
    read = outcome(lambda: read_prompts(junk))
    if not isinstance(read, PlamoRefError):
        assert all(isinstance(prompt, Prompt) for prompt in read)
        assert all(type(i) is int for prompt in read for i in prompt.token_ids or ())


@given(JUNK)
def test_anything_is_parameters_or_refused(junk):
    read = outcome(lambda: read_params(junk, 1))
    assert isinstance(read, PlamoRefError) or read == [SamplingParams()]
