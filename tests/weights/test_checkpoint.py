"""A checkpoint folder: what opens, what each defect says, slices, memory, and saving."""

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from plamo_ref.config import ConfigError, Plamo2Config
from plamo_ref.errors import PlamoRefError
from plamo_ref.weights import save as checkpoint_save
from plamo_ref.weights.checkpoint import Checkpoint, CheckpointError, save

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ("c1_1b_like", "c3_full_mix", "c5_step4_shard", "c9_vocab_pad")
EMBED = "model.embed_tokens.weight"
QKV = "model.layers.layers.1.mixer.qkv_proj.weight"
NORM = "model.norm.weight"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TINY = Plamo2Config(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    hidden_size_per_head=8,
    mamba_d_state=4,
    mamba_num_heads=2,
    intermediate_size=24,
    vocab_size=40,
)


def random_tensors(config: Plamo2Config, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=g) for n, s in config.tensor_shapes.items()}


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """A sound checkpoint in one file."""
    save(tmp_path / "model", TINY, random_tensors(TINY))
    return tmp_path / "model"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A sound checkpoint in several files."""
    save(tmp_path / "shards", TINY, random_tensors(TINY), max_shard_bytes=8_000)
    return tmp_path / "shards"


def edit_weights(file: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def edit_json(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def refused(folder: Path, *parts: object, read: str | None = None) -> None:
    """Opening `folder`, or reading tensor `read`, fails with one line that has all the parts."""
    checkpoint = Checkpoint.open(folder) if read else None
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(read) if checkpoint and read else Checkpoint.open(folder)
    message = str(caught.value)
    assert isinstance(caught.value, PlamoRefError)
    assert "\n" not in message
    assert "expected" in message
    assert "found" in message
    for part in parts:
        assert str(part) in message


# --- what opens ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_golden_checkpoints_open_and_read_as_they_are_stored(case: str) -> None:
    checkpoint = Checkpoint.open(GOLDEN / case)
    stored: dict[str, torch.Tensor] = {}
    for file in sorted((GOLDEN / case).glob("model*.safetensors")):
        stored |= load_file(file)
    read = dict(checkpoint.tensors(progress=False))
    assert list(read) == list(checkpoint.config.tensor_shapes) == list(checkpoint.names)
    assert read.keys() == stored.keys()
    assert all(torch.equal(read[name], stored[name]) for name in stored)
    assert all(read[name].dtype == torch.float32 for name in stored)
    assert checkpoint.nbytes == sum(tensor.nbytes for tensor in stored.values())
    assert checkpoint.stop_token_ids == (2, 1)


def test_a_shard_without_tensors_is_legal() -> None:
    folder = GOLDEN / "c5_step4_shard"
    empty = "model-00004-of-00004.safetensors"  # plamo-2-1b has such a one
    assert (folder / empty).stat().st_size == 40
    assert empty not in json.loads((folder / INDEX).read_text())["weight_map"].values()
    Checkpoint.open(folder)


def test_a_tied_model_may_carry_an_lm_head_which_is_ignored(single: Path) -> None:
    edit_weights(single / SINGLE, lambda t: t.update({"lm_head.weight": torch.ones(3, dtype=int)}))
    assert "lm_head.weight" not in Checkpoint.open(single).names


@pytest.mark.parametrize(
    ("generation", "ids"),
    [
        ({"eos_token_id": [1, 4]}, (1, 4)),
        ({"eos_token_id": 4}, (4, 1)),
        ({}, (2, 1)),
        (None, (2, 1)),
    ],
)
def test_stop_ids_come_from_the_generation_config_before_the_config(
    single: Path, generation: dict[str, Any] | None, ids: tuple[int, ...]
) -> None:
    file = single / "generation_config.json"
    file.unlink()
    if generation is not None:
        file.write_text(json.dumps(generation))
    assert Checkpoint.open(single).stop_token_ids == ids


def test_names_shapes_and_dtypes_are_those_on_disk(tmp_path: Path) -> None:
    save(tmp_path, TINY, random_tensors(TINY), dtype=torch.bfloat16)
    checkpoint = Checkpoint.open(str(tmp_path))
    assert {n: tuple(checkpoint.shape(n)) for n in checkpoint.names} == TINY.tensor_shapes
    assert {checkpoint.dtype(n) for n in checkpoint.names} == {torch.bfloat16}
    with pytest.raises(CheckpointError, match=r"nonsense: expected one of the \d+ tensors"):
        checkpoint.shape("nonsense")


def test_reading_casts_and_never_gives_a_view_of_the_file(single: Path) -> None:
    checkpoint = Checkpoint.open(single)
    truth = random_tensors(TINY)[QKV]
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        tensor = checkpoint.read(QKV, dtype=dtype)
        assert tensor.dtype == dtype
        assert torch.equal(tensor, truth.to(dtype))
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
    tensor = checkpoint.read(QKV)
    assert str(single) not in Path("/proc/self/maps").read_text()
    tensor.zero_()  # the caller's own
    assert torch.equal(checkpoint.read(QKV), truth)


@pytest.mark.parametrize(
    "index",
    [
        slice(3, 11),
        slice(-5, None),
        slice(0, 0),
        (slice(None), slice(2, 7)),
        (slice(4, 9), slice(-3, None)),
    ],
)
def test_a_slice_equals_the_slice_of_the_whole(
    sharded: Path, index: slice | tuple[slice, ...]
) -> None:
    checkpoint = Checkpoint.open(sharded)
    for dtype in (torch.float32, torch.bfloat16):
        part = checkpoint.read_slice(QKV, index, dtype=dtype)
        assert torch.equal(part, checkpoint.read(QKV, dtype=dtype)[index])
        assert part.is_contiguous()
        assert part.untyped_storage().nbytes() == part.nbytes


@pytest.mark.parametrize("index", [slice(0, 8, 2), (slice(None),) * 3, 3, (slice(None), 0)])
def test_other_indices_are_refused(single: Path, index: Any) -> None:
    with pytest.raises(CheckpointError, match="expected up to 2 slices of step 1"):
        Checkpoint.open(single).read_slice(QKV, index)


def test_only_the_slice_leaves_the_disk(tmp_path: Path) -> None:
    """The table is 16 GB, nearly all of it a hole in the file: reading all of it would show."""
    config = replace(TINY, vocab_size=250_000_000)
    save(tmp_path, TINY, random_tensors(TINY))
    with (tmp_path / SINGLE).open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
        body = file.read()
    small, huge = (c.vocab_size * c.hidden_size * 4 for c in (TINY, config))
    start = header[EMBED]["data_offsets"][0]
    for name, value in header.items():
        if name != "__metadata__" and value["data_offsets"][0] > start:
            value["data_offsets"] = [offset + huge - small for offset in value["data_offsets"]]
    header[EMBED] |= {"shape": [config.vocab_size, 16], "data_offsets": [start, start + huge]}
    text = json.dumps(header).encode()
    with (tmp_path / SINGLE).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + body[:start])
        base = file.tell()
        file.seek(base + (config.vocab_size - 2) * 64)
        file.write(struct.pack("<16f", *range(16)))
        file.seek(base + huge)
        file.write(body[start + small :])
    edit_json(tmp_path / "config.json", lambda c: c.update(vocab_size=config.vocab_size))
    checkpoint = Checkpoint.open(tmp_path)
    before = resident_bytes()
    part = checkpoint.read_slice(EMBED, slice(-3, -1))
    assert resident_bytes() - before < 64e6
    assert part.tolist() == [[0.0] * 16, [float(i) for i in range(16)]]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# --- defects ---------------------------------------------------------------------------------


def test_a_folder_that_is_not_there_and_one_without_config(tmp_path: Path) -> None:
    refused(tmp_path / "none", tmp_path / "none", "no such folder")
    with pytest.raises(ConfigError, match=r"config\.json: no such file"):
        Checkpoint.open(tmp_path)


def test_another_architecture_is_refused(single: Path) -> None:
    edit_json(single / "config.json", lambda c: c.update(model_type="llama"))
    with pytest.raises(ConfigError, match=r"config\.json: model_type is 'llama', expected"):
        Checkpoint.open(single)


@pytest.mark.parametrize("missing_bytes", [1, 60])
def test_a_truncated_file_names_the_tensor_that_is_cut(single: Path, missing_bytes: int) -> None:
    file, size = single / SINGLE, (single / SINGLE).stat().st_size
    with safe_open(file, "pt") as sound:
        last = sound.offset_keys()[-1]  # of 64 bytes
    os.truncate(file, size - missing_bytes)
    cut = f"expected a file of {size} bytes, found {size - missing_bytes}: it is truncated"
    refused(single, f"{file}: {last}: {cut}")


@pytest.mark.parametrize("size", [0, 5, 8, 200])
def test_a_file_truncated_in_its_header_says_how_many_bytes_there_are(
    single: Path, size: int
) -> None:
    os.truncate(single / SINGLE, size)
    refused(single, single / SINGLE, f"found {size} bytes" if size < 8 else f"found {size - 8}: ")


def test_bytes_that_are_no_safetensors_are_refused(single: Path) -> None:
    (single / SINGLE).write_bytes(b"PK\x03\x04" + bytes(5_000))
    refused(single, single / SINGLE, "header")
    (single / SINGLE).write_bytes(struct.pack("<Q", 20) + b"not json".ljust(20))
    refused(single, single / SINGLE, "header")
    save(single, TINY, random_tensors(TINY))
    size = (single / SINGLE).stat().st_size
    with (single / SINGLE).open("ab") as file:
        file.write(b"more")
    refused(single, single / SINGLE, f"{size} bytes", size + 4)


def test_missing_tensors_are_named_and_counted(single: Path) -> None:
    edit_weights(single / SINGLE, lambda t: [t.pop(QKV), t.pop(NORM)])
    shape = list(TINY.tensor_shapes[QKV])
    refused(single, single / SINGLE, QKV, f"shape {shape}", "no such tensor", "1 more")


def test_an_untied_model_needs_its_lm_head(single: Path) -> None:
    edit_json(single / "config.json", lambda c: c.update(tie_word_embeddings=False))
    refused(single, single / SINGLE, "lm_head.weight", "shape [48, 16]", "no such tensor")


def test_an_extra_tensor_is_refused(single: Path) -> None:
    name = "model.layers.layers.2.mixer.o_proj.weight"
    edit_weights(single / SINGLE, lambda t: t.update({name: torch.ones(3, 4)}))
    refused(single, single / SINGLE, name, "[3, 4]", "config.json")


def test_a_wrong_shape_gives_both_shapes(sharded: Path) -> None:
    file = sharded / json.loads((sharded / INDEX).read_text())["weight_map"][QKV]
    edit_weights(file, lambda t: t.update({QKV: t[QKV].T.contiguous()}))
    refused(sharded, file, QKV, "[32, 16] from config.json", "[16, 32]")


@pytest.mark.parametrize(
    ("dtype", "code"), [(torch.int8, "I8"), (torch.int64, "I64"), (torch.float64, "F64")]
)
def test_a_wrong_dtype_is_refused(single: Path, dtype: torch.dtype, code: str) -> None:
    edit_weights(single / SINGLE, lambda t: t.update({NORM: t[NORM].to(dtype)}))
    refused(single, single / SINGLE, NORM, "F32, BF16, F16", code)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_found_where_it_is(
    tmp_path: Path, bad: float, dtype: torch.dtype
) -> None:
    save(tmp_path, TINY, random_tensors(TINY), dtype=dtype)

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[QKV][7, 3] = tensors[QKV][9, 1] = bad

    edit_weights(tmp_path / SINGLE, spoil)
    refused(tmp_path, tmp_path / SINGLE, QKV, "finite", f"{bad} at [7, 3]", "2 such", read=QKV)
    checkpoint = Checkpoint.open(tmp_path)
    with pytest.raises(CheckpointError, match=r"at \[9, 1\] \(1 such"):
        checkpoint.read_slice(QKV, (slice(8, 10), slice(1, 3)), dtype=torch.float32)
    assert not checkpoint.read(QKV, check_finite=False).isfinite().all()
    assert checkpoint.read_slice(QKV, slice(10, 20)).isfinite().all()


def test_a_cast_that_overflows_is_not_silent(single: Path) -> None:
    edit_weights(single / SINGLE, lambda t: t[NORM].fill_(70_000.0))
    assert Checkpoint.open(single).read(NORM)[0] == 70_000
    with pytest.raises(CheckpointError, match=r"finite numbers in torch\.float16, found 70000"):
        Checkpoint.open(single).read(NORM, dtype=torch.float16)


def test_a_missing_shard_names_a_tensor_that_it_holds(sharded: Path) -> None:
    file = sharded / json.loads((sharded / INDEX).read_text())["weight_map"][NORM]
    file.unlink()
    refused(sharded, file, "model.", "no such file")


@pytest.mark.parametrize(
    "outside",
    [
        "../other/model.safetensors",
        "/etc/model.safetensors",
        "sub/model.safetensors",
        "C:\\model.safetensors",
        "pytorch_model.bin",
        "..",
        "",
        7,
    ],
)
def test_an_index_may_only_name_safetensors_in_its_own_folder(
    sharded: Path, outside: object
) -> None:
    # The files exist and are sound: it is the name alone that is refused.
    for where in (sharded.parent / "other", sharded / "sub"):
        where.mkdir()
        shutil.copy(sorted(sharded.glob("model-*"))[0], where / SINGLE)
    edit_json(sharded / INDEX, lambda i: i["weight_map"].update({EMBED: outside}))
    refused(sharded, sharded / INDEX, EMBED, "in the same folder", repr(outside))


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_a_broken_index_is_refused(sharded: Path, text: str) -> None:
    (sharded / INDEX).write_text(text)
    refused(sharded, sharded / INDEX)


@pytest.mark.parametrize("name", [INDEX, "generation_config.json"])
@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"a": NaN}', '{"a": 1, "a": 1}', "\ud800"])
def test_json_beyond_its_limits_is_refused_by_the_name_of_its_file(sharded, name, text) -> None:
    (sharded / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match=f"^{sharded / name}: ") as caught:
        Checkpoint.open(sharded)
    assert "\n" not in str(caught.value)


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 10573745\n"


def test_a_git_lfs_pointer_is_not_taken_for_a_header_of_exabytes(
    single: Path, sharded: Path
) -> None:
    (single / SINGLE).write_text(POINTER)
    refused(single, single / SINGLE, "Git LFS pointer", "git lfs pull")
    shard = sorted(sharded.glob("model-*"))[0]
    shard.write_text(POINTER)
    refused(sharded, shard, "Git LFS pointer", "git lfs pull")


def test_a_folder_or_a_link_to_nothing_is_no_file_of_weights(single: Path, sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*"))[0]
    for folder, file in ((single, single / SINGLE), (sharded, shard)):
        file.unlink()
        file.mkdir()
        refused(folder, file, "found a folder")
        file.rmdir()
        file.symlink_to("nowhere")
        refused(folder, file, "no such file")


def test_names_of_five_thousand_characters_are_cut(sharded: Path) -> None:
    name = "x" * 5000 + ".safetensors"
    edit_json(sharded / INDEX, lambda i: i["weight_map"].update({NORM: name}))
    with pytest.raises(CheckpointError, match="in the same folder") as caught:
        Checkpoint.open(sharded)
    assert len(str(caught.value)) < 600
    with pytest.raises(CheckpointError, match="no such folder"):
        Checkpoint.open("y" * 5000)


def test_a_tensor_with_a_name_of_five_thousand_characters_is_refused_shortly(single: Path) -> None:
    edit_weights(single / SINGLE, lambda t: t.update({"n" * 5000: torch.ones(3)}))
    with pytest.raises(CheckpointError, match="extra one") as caught:
        Checkpoint.open(single)
    assert len(str(caught.value)) < 600


def test_mlx_order_of_a_convolutions_axes_is_refused_by_name(single: Path) -> None:
    name = "model.layers.layers.0.mixer.conv1d.weight"
    turn = lambda t: t.update({name: t[name].transpose(1, 2).contiguous()})  # noqa: E731
    edit_weights(single / SINGLE, turn)
    refused(single, name, "[16, 1, 4]", "[16, 4, 1]", "MLX", "swap the last two")


def test_an_index_that_disagrees_with_the_shards_is_refused(sharded: Path) -> None:
    weight_map = json.loads((sharded / INDEX).read_text())["weight_map"]
    mine, other = weight_map[NORM], next(f for f in weight_map.values() if f != weight_map[NORM])
    edit_json(sharded / INDEX, lambda i: i["weight_map"].update({NORM: other}))
    refused(sharded, NORM, mine, other)
    edit_json(sharded / INDEX, lambda i: i["weight_map"].pop(NORM))
    refused(sharded, sharded / mine, NORM, "no file")
    edit_json(sharded / INDEX, lambda i: i["weight_map"].update({NORM: mine, "ghost": mine}))
    refused(sharded, sharded / mine, "ghost", "nothing")


@pytest.mark.parametrize("text", ["[]", "3", '"x"', "null"])
def test_a_broken_generation_config_is_refused(single: Path, text: str) -> None:
    (single / "generation_config.json").write_text(text)
    refused(single, single / "generation_config.json")


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickles_are_never_read_and_remote_code_is_never_run(single: Path, tmp_path: Path) -> None:
    boom = tmp_path / "boom"
    (single / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(boom)))
    (single / "modeling_plamo.py").write_text(f"open({str(boom)!r}, 'w')")
    edit_json(
        single / "config.json", lambda c: c.update(auto_map={"AutoConfig": "modeling_plamo.X"})
    )
    assert dict(Checkpoint.open(single).tensors(progress=False))
    (single / SINGLE).unlink()
    refused(single, single, SINGLE, "pytorch_model.bin", "a pickle", "never read")
    (single / "pytorch_model.bin").unlink()
    refused(single, single, SINGLE, INDEX, "neither")
    assert not boom.exists()
    pickle.loads(pickle.dumps(Bomb(boom)))
    assert boom.exists()  # the bomb was live


# --- memory ----------------------------------------------------------------------------------

MEASURE = """
import sys, threading
import torch
from plamo_ref.weights.checkpoint import Checkpoint

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

peak, done = 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())

checkpoint = Checkpoint.open(sys.argv[1])
checkpoint.read("model.norm.weight", dtype=torch.bfloat16)
start = anonymous()
threading.Thread(target=watch, daemon=True).start()
kept, worst, peak = {}, 0, anonymous()
for name, tensor in checkpoint.tensors(dtype=torch.bfloat16, progress=False):
    kept[name] = tensor
    del tensor
    worst = max(worst, peak - start - sum(t.nbytes for t in kept.values()))
    peak = anonymous()
done = True
print(worst, peak - start, sum(t.nbytes for t in kept.values()))
"""


def test_loading_needs_no_memory_beside_the_weights_that_stay(tmp_path: Path) -> None:
    """The bound asked for is the largest tensor and 1 GB; a quarter of that tensor is held."""
    config = replace(TINY, hidden_size=512, intermediate_size=16_384, vocab_size=49_152)
    config = replace(config, num_hidden_layers=2, tie_word_embeddings=False)
    g = torch.Generator().manual_seed(0)
    stream = ((n, torch.empty(s).normal_(generator=g)) for n, s in config.tensor_shapes.items())
    save(tmp_path, config, stream, max_shard_bytes=200_000_000)
    total = Checkpoint.open(tmp_path).nbytes
    assert 300e6 < total < 450e6
    largest = 49_152 * 512 * 4
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    worst, grown, kept = map(int, output.split())
    assert kept == total // 2
    assert grown > 0.9 * kept  # the measure sees the weights themselves
    assert worst < largest / 4


# --- saving ----------------------------------------------------------------------------------


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_save_and_open_give_back_every_bit(data: st.DataObject, tmp_path: Path) -> None:
    draw = data.draw
    kv = draw(st.integers(1, 2))
    config = replace(
        TINY,
        hidden_size=draw(st.integers(1, 12)),
        num_hidden_layers=draw(st.integers(1, 4)),
        num_attention_heads=kv * draw(st.integers(1, 2)),
        num_key_value_heads=kv,
        mamba_step=draw(st.integers(2, 5)),
        mamba_enabled=draw(st.booleans()),
        vocab_size=draw(st.integers(40, 60)),
        tie_word_embeddings=draw(st.booleans()),
        eos_token_id=draw(st.sampled_from([None, 2, 39, (39, 2)])),
    )
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    tensors = {n: t.to(dtype) for n, t in random_tensors(config, draw(st.integers(0, 9))).items()}
    # Always into the same folder: each checkpoint has to replace all of the one before.
    save(tmp_path, config, tensors, max_shard_bytes=draw(st.sampled_from([1, 9_000, 10**9])))
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.config == config
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] in str(dtype)
    assert checkpoint.names == tuple(tensors)
    bits = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    for name, tensor in checkpoint.tensors(progress=False):
        assert tensor.dtype == dtype
        assert torch.equal(tensor.view(bits), tensors[name].view(bits))


@pytest.mark.parametrize("case", CASES)
def test_a_golden_checkpoint_saved_again_is_the_genuine_format(case: str, tmp_path: Path) -> None:
    golden = Checkpoint.open(GOLDEN / case)
    limit = 500_000 if case == "c5_step4_shard" else 10**9
    save(tmp_path, golden.config, golden.tensors(progress=False), max_shard_bytes=limit)
    again = Checkpoint.open(tmp_path)
    assert again.config == golden.config
    for name in golden.names:
        assert torch.equal(again.read(name), golden.read(name))
    ours, theirs = (json.loads((f / "config.json").read_text()) for f in (tmp_path, golden.folder))
    assert all(
        ours[key] == theirs[key] for key in ours.keys() & theirs.keys() - {"tokenizer_class"}
    )
    if limit < 10**9:
        index = json.loads((tmp_path / INDEX).read_text())
        assert index["metadata"]["total_size"] == golden.nbytes
        assert set(index["weight_map"]) == set(golden.names)
        assert len({*index["weight_map"].values()}) > 1
        assert max(f.stat().st_size for f in tmp_path.glob("model-*")) < limit + 10_000
    else:
        assert load_file(tmp_path / SINGLE).keys() == load_file(golden.folder / SINGLE).keys()
        assert (tmp_path / SINGLE).read_bytes()[8:].startswith(b'{"__metadata__":{"format":"pt"}')


def test_an_lm_head_of_v_rows_is_padded_to_a_multiple_of_16(tmp_path: Path) -> None:
    config = replace(TINY, vocab_size=41, tie_word_embeddings=False)
    tensors = random_tensors(config)
    short = tensors["lm_head.weight"][:41]
    save(tmp_path, config, tensors | {"lm_head.weight": short})
    stored = Checkpoint.open(tmp_path).read("lm_head.weight")
    assert stored.shape == (48, 16)
    assert torch.equal(stored[:41], short)
    assert not stored[41:].any()


def test_tensors_that_share_memory_are_saved_each_for_itself(tmp_path: Path) -> None:
    config = replace(TINY, tie_word_embeddings=False, vocab_size=48)
    tensors = random_tensors(config)
    tensors["lm_head.weight"] = tensors[EMBED]
    tensors[QKV] = tensors[QKV].T.contiguous().T
    tensors[NORM] = torch.ones(1, requires_grad=True).expand(16)
    save(tmp_path, config, tensors)
    checkpoint = Checkpoint.open(tmp_path)
    assert all(torch.equal(checkpoint.read(name), tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(NORM), "1 missing"),
        (lambda t: t.update(ghost=torch.ones(2)), "ghost: expected each.*an extra tensor"),
        (lambda t: t.update({NORM: torch.ones(3)}), r"shape \[16\], found \[3\]"),
        (lambda t: t.update({NORM: torch.ones(16, dtype=torch.int32)}), r"found torch\.int32"),
        (lambda t: t.update({NORM: torch.full((16,), float("nan"))}), "NaN"),
    ],
)
def test_a_save_that_fails_leaves_the_old_checkpoint_alone(
    single: Path, change: Callable[[dict[str, torch.Tensor]], Any], said: str
) -> None:
    before = {p.name: p.read_bytes() for p in single.iterdir()}
    tensors = random_tensors(TINY, seed=1)
    change(tensors)
    with pytest.raises(CheckpointError, match=said):
        save(single, TINY, tensors, max_shard_bytes=5_000)
    assert {p.name: p.read_bytes() for p in single.iterdir()} == before


def test_a_tensor_given_twice_is_refused(tmp_path: Path) -> None:
    pairs = [*random_tensors(TINY).items(), (NORM, torch.ones(16))]
    with pytest.raises(CheckpointError, match=rf"{NORM}.*it twice"):
        save(tmp_path, TINY, pairs)


@pytest.mark.parametrize("moves", range(5))
def test_a_save_interrupted_at_any_move_never_looks_whole_unless_it_is(
    sharded: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    replace_file, count = os.replace, iter(range(100))

    def until_the_plug_is_pulled(source: Path, target: Path) -> None:
        if next(count) == moves:
            raise KeyboardInterrupt
        replace_file(source, target)

    monkeypatch.setattr(checkpoint_save.os, "replace", until_the_plug_is_pulled)
    with pytest.raises(KeyboardInterrupt):
        save(sharded, TINY, random_tensors(TINY, seed=1), max_shard_bytes=8_000)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="no such file"):
        Checkpoint.open(sharded)
    save(sharded, TINY, random_tensors(TINY, seed=1))
    assert torch.equal(Checkpoint.open(sharded).read(NORM), random_tensors(TINY, seed=1)[NORM])


def test_a_save_keeps_files_that_are_not_its_own(single: Path) -> None:
    (single / "tokenizer.jsonl").write_text("[]")
    save(single, TINY, random_tensors(TINY), generation_config={"eos_token_id": [1, 4]})
    assert (single / "tokenizer.jsonl").read_text() == "[]"
    assert Checkpoint.open(single).stop_token_ids == (1, 4)
    names = {p.name for p in single.iterdir()}
    assert names == {SINGLE, "config.json", "generation_config.json", "tokenizer.jsonl"}
