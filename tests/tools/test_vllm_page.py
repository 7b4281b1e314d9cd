"""docs/coming_from_vllm.md: every rule, in the words of its error.

Invariant tested: the page is what the rules say now, and says of each keyword what becomes of it.
"""

import pytest

from plamo_ref.commands._vllm_options import SERVER
from plamo_ref.intake.vllm_names import CALL, MODEL, SAMPLING, ignored, missing, only
from tools.vllm_page import PAGE, kind, page, rows


def test_the_page_says_what_the_rules_say():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tools.vllm_page"


def test_no_keyword_is_left_out():
    text = page()
    for name in (*MODEL, *SAMPLING, *CALL):
        assert f"| `{name}` | " in text
    for name in SERVER:
        assert f"| `--{name.replace('_', '-')}` | " in text


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (ignored("why"), "harmless"),
        (missing("cure"), "refused"),
        (only(1, 1.0, cure="cure"), "only `1`, `1.0`"),
        (only(False, cure="cure"), "only `False`"),
        (MODEL["enforce_eager"], "translated"),
        (MODEL["tokenizer"], "only the model itself"),
    ],
)
def test_a_rule_is_of_one_kind(rule, said):
    assert kind(rule) == said


def test_a_bar_in_a_cure_does_not_end_its_cell():
    assert "a \\| b" in rows("t", {"x": missing("a | b")})
