"""Lesson 10's kernels pass its checks, agree with the package's, and its mistakes are told apart.

Invariant tested: a trial's expectation, the lesson's kernel and the package's are the same numbers;
each known mistake changes them, and no two lead to the same.
"""

from itertools import combinations

import pytest
import torch

from plamo_ref.kernels.choice import triton_table
from plamo_ref.kernels.rope.twin import rope_tables
from plamo_ref.teaching import lending
from plamo_ref.teaching.attention_ramp import kernels, paged_trials, timing, trials
from plamo_ref.teaching.attention_ramp.pictures import RAMP, draw, lend, picture
from plamo_ref.teaching.checks import CheckFailed
from plamo_ref.teaching.kernel_checks import check_kernel


@pytest.mark.parametrize("name", RAMP)
def test_our_kernels_pass_the_checks(name, capsys):
    timing.check_ours(name)
    assert capsys.readouterr().out.startswith(f"✓ {name}")


@pytest.mark.parametrize("name", RAMP)
def test_every_mistake_changes_the_result_in_its_own_way(name):
    make, mistakes = paged_trials.BY_LAUNCHER[name]
    first = make()[0]
    (expected,) = first.expected.values()
    found = {sentence: lead(first) for sentence, lead in mistakes.items()}
    for sentence, wrong in found.items():
        assert wrong.shape == expected.shape
        assert not torch.allclose(wrong, expected, atol=1e-3), sentence
    for one, other in combinations(found, 2):
        assert not torch.allclose(found[one], found[other], atol=1e-4), (one, other)


def test_they_agree_with_the_packages_kernels():
    table = triton_table()
    given = dict(trials.norms()[1].given)
    kernels.norm(*given.values())
    torch.testing.assert_close(given["out"], table.rms_norm(given["x"], given["gain"], 1e-6))
    for trial in paged_trials.split_decodes():
        q, keys, values, blocks, lens, window, parts, out = trial.given.values()
        theirs = table.paged_decode(q, keys, values, blocks, 0 * lens, lens, window)
        kernels.split_decode(q, keys, values, blocks, lens, window, parts, out)
        torch.testing.assert_close(out, theirs, atol=3e-5, rtol=0)
        kernels.decode(q, keys, values, blocks, lens, window, out.fill_(0))
        torch.testing.assert_close(out, theirs, atol=3e-5, rtol=0)


def test_norm_rotation_and_write_are_the_packages_one_launch():
    qkv, gain, slots = torch.randn(3, 4, 8), torch.randn(3, 8), torch.tensor([5, 0, 2])
    tables = rope_tables(torch.arange(3), 8, 10_000.0, torch.float32)
    mine, theirs = torch.zeros(2, 2, 3, 2, 1, 8)
    out = torch.empty(3, 3, 8)
    kernels.rotate(qkv[:, :3].contiguous(), gain, *tables[:, :, 0].contiguous(), out)
    kernels.write(out[:, 2:].contiguous(), mine[0], slots)
    kernels.write(qkv[:, 3:].contiguous(), mine[1], slots)
    fused = triton_table().qk_norm_rope_write
    q = fused(qkv.flatten(1), gain[:2], gain[2:], tables, *theirs, slots)
    torch.testing.assert_close(out[:, :2], q)
    torch.testing.assert_close(mine, theirs)


def test_a_request_that_reads_its_neighbours_keys_is_noticed():
    """A table row of another request: the check of the paged kernel must not pass."""

    def shifted(q, keys, values, table, lens, window, out):
        table.copy_(table.roll(1, 0))
        kernels.decode(q, keys, values, table, lens, window, out)

    with pytest.raises(CheckFailed, match="table was changed before decode_kernel ran"):
        check_kernel("decode", shifted, [kernels.decode_kernel], paged_trials.decodes())


@pytest.mark.parametrize("name", RAMP)
def test_a_picture_shows_the_programs(name):
    fig, alt = picture(name)
    texts = {text.get_text() for ax in fig.axes for text in ax.texts}
    wanted = {"copy": "2", "norm": "2", "rotate": "2 · 1", "write": "4", "attend": "2",
              "decode": "2", "split_decode": "2 · 3"}  # fmt: skip
    assert wanted[name] in texts
    assert len(alt) > 30


def test_a_picture_can_be_of_the_readers_own_kernel(capsys):
    def half(x, out):
        kernels.copy_kernel[(1,)](x, out, len(x), BLOCK=8)

    fig, _ = picture("copy", half)
    assert [text.get_text() for text in fig.axes[0].texts] == ["0"]
    draw("copy")
    assert "[figure] programs 0 and 1" in capsys.readouterr().out


def test_only_what_is_open_is_lent_unless_asked_for(capsys):
    def copy(x, out):
        raise NotImplementedError

    def decode(q, keys, values, table, lens, window, out):
        return None

    names = {"copy": copy, "decode": decode}
    assert lending.is_open(copy)
    lend(names, "copy", "decode")
    assert names["copy"] is kernels.copy
    assert names["copy_kernel"] is kernels.copy_kernel
    assert names["decode"] is decode
    assert "walk" not in names
    lend(names, "decode", anyway=True)
    assert (names["decode"], names["walk"]) == (kernels.decode, kernels.walk)
    said = "copy: lent, until yours passes\ndecode: yours\ndecode: lent, until yours passes\n"
    assert capsys.readouterr().out == said
