"""What people, notebooks and attackers put where a value belongs.

Invariant tested: whatever is drawn, the answer to a caller is a result or a PlamoRefError.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from plamo_ref.errors import PlamoRefError

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 12),
    st.sampled_from([2**31, 2**63, 2**64, -(2**70), 10**400]),
    st.floats(),
    st.text(max_size=3),
    st.sampled_from(["\ud800", "auto", "4", "no", "V1", "cpu", "cuda:1", "float32"]),
    st.binary(max_size=3),
    st.sampled_from([b"x", 1j, object(), int, torch.float16, torch.device("cpu")]),
)
ARRAYS = st.one_of(
    st.sampled_from([np.int64, np.uint8, np.float32, np.bool_]).flatmap(
        lambda kind: st.integers(0, 9).map(kind)
    ),
    st.lists(st.integers(0, 9), max_size=3).flatmap(
        lambda items: st.sampled_from(
            [
                np.array(items),
                np.array([items]),
                np.array(items, dtype=float),
                np.array(items, dtype=object),
                torch.tensor(items),
                torch.tensor([items], dtype=torch.int32),
                torch.tensor(len(items)),
                torch.tensor(0.5),
                torch.tensor(True),
                torch.empty(2, device="meta"),
            ]
        )
    ),
    st.sampled_from([np.array(3), np.array("text"), np.str_("text"), np.array(["a", "b"])]),
)
LEAVES = st.one_of(SCALARS, ARRAYS)
HASHABLE = st.one_of(st.integers(-3, 12), st.text(max_size=2), st.booleans(), st.none())
JUNK = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.lists(inner, max_size=3).map(iter),
        st.sets(HASHABLE, max_size=2),
        st.dictionaries(HASHABLE, inner, max_size=2),
        st.dictionaries(st.sampled_from(["prompt", "prompt_token_ids", "x"]), inner, max_size=3),
    ),
    max_leaves=6,
)


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or its PlamoRefError. Anything else escapes, and fails the test."""
    try:
        return call()
    except PlamoRefError as error:
        text = str(error)
        assert text, "an error says something"
        assert "\n" not in text, "in one line"
        assert len(text) < 600
        return error
