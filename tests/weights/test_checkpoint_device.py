"""Tensors read ahead by several threads are those that are read one by one."""

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from plamo_ref.weights.checkpoint import Checkpoint, CheckpointError
from plamo_ref.weights.device import DeviceCopier, is_finite, read_ahead

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("case", ["c1_1b_like", "c5_step4_shard"])
@pytest.mark.parametrize("dtype", [None, torch.float64, torch.bfloat16])
def test_all_tensors_in_order_and_bit_by_bit(case, dtype):
    checkpoint = Checkpoint.open(GOLDEN / case)
    plain = list(checkpoint.tensors(dtype=dtype, progress=False, readers=0))
    ahead = list(checkpoint.tensors(dtype=dtype, progress=False, readers=3))
    assert [name for name, _ in ahead] == [name for name, _ in plain]
    for (_, got), (_, wanted) in zip(ahead, plain, strict=True):
        assert got.dtype == wanted.dtype
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 16, 17, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tensor_longer_than_a_buffer_comes_in_parts(length, dtype):
    copier = DeviceCopier(CPU, buffer_bytes=8 * dtype.itemsize)
    source = torch.randn(length).to(dtype)
    got = copier.copy(source, torch.float64)
    assert torch.equal(got, source.double())
    assert got.data_ptr() != source.data_ptr() or not length
    matrix = torch.randn(5, 3).to(dtype)
    assert torch.equal(copier.copy(matrix, dtype), matrix)


def test_only_a_few_tensors_are_under_way():
    asked, released = [], threading.Event()

    def open_tensor(name):
        asked.append(name)
        released.wait(10)
        return torch.zeros(2)

    names = [str(i) for i in range(20)]
    coming = read_ahead(names, open_tensor, None, CPU, readers=2)
    threading.Timer(0.2, released.set).start()
    assert next(coming)[0] == "0"
    assert len(asked) <= 4
    assert [name for name, _ in coming] == names[1:]


def test_a_reader_that_stops_early_leaves_no_thread():
    before = threading.active_count()
    coming = read_ahead(["a", "b", "c"], lambda name: torch.zeros(1), None, CPU, readers=2)
    next(coming)
    coming.close()
    assert threading.active_count() == before


def test_errors_are_those_of_reading_one_by_one(tmp_path):
    for file in (GOLDEN / "c1_1b_like").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"][3] = torch.inf
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    said = []
    for readers in (0, 3):
        with pytest.raises(CheckpointError, match=r"model\.norm\.weight.* at \[3\]") as error:
            list(checkpoint.tensors(progress=False, readers=readers))
        said.append(str(error.value))
    assert said[0] == said[1]


def test_what_is_finite():
    assert is_finite(torch.ones(3))
    assert is_finite(torch.empty(0))
    for wrong in (torch.nan, torch.inf, -torch.inf):
        assert not is_finite(torch.tensor([0.0, wrong, 1.0]))
