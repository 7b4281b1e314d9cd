"""`plamo-ref` as its users meet it: what it prints where, its exit codes, no tracebacks."""

import ast
import dataclasses
import inspect
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from plamo_ref import budget, cli
from plamo_ref.commands import _findings, _options, doctor, info
from plamo_ref.commands._tables import human_bytes, human_flops
from plamo_ref.config import Plamo2Config
from plamo_ref.errors import PlamoRefError
from plamo_ref.reference import Plamo2Reference, generate_text
from plamo_ref.sampling import SamplingParams
from plamo_ref.text.tokenizer import Plamo2Tokenizer
from plamo_ref.weights.checkpoint import Checkpoint

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden"
MODEL = GOLDEN / "c1_1b_like"
EIGHT_B = Plamo2Config(intermediate_size=16384, vocab_size=100_000)


def run(capsys, *args: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of a command line run in this process."""
    code = cli.main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return code, out, err


def start(*args: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "plamo_ref", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def generated(prompt: str, **sampling) -> str:
    """What the reference, asked directly, answers."""
    tokenizer = Plamo2Tokenizer.from_folder(MODEL)
    stop_ids = Checkpoint.open(MODEL).stop_token_ids
    model = Plamo2Reference.from_pretrained(MODEL)
    pieces = generate_text(model, tokenizer, prompt, SamplingParams(**sampling), stop_ids)
    return "".join(piece.text for piece in pieces)


# --- the frame -----------------------------------------------------------------------------------


def test_every_command_has_a_line_of_help_and_a_command_of_its_name(capsys):
    code, out, err = run(capsys, "--help")
    assert (code, err) == (0, "")
    names = cli.cli.list_commands(click.Context(cli.cli))
    assert {"doctor", "generate", "info"} <= set(names)
    listed = out.partition("Commands:")[2].splitlines()
    lines = [line.split() for line in listed if re.match(r"  \S", line)]
    assert [words[0] for words in lines] == names
    assert all(len(words) > 2 for words in lines)
    for name in names:
        command = cli.cli.get_command(click.Context(cli.cli), name)
        assert isinstance(command, click.Command)
        assert command.name == name


def test_no_arguments_print_the_help(capsys):
    assert run(capsys) == run(capsys, "--help")


def test_help_version_and_the_finding_of_a_folder_import_no_torch_and_no_hub():
    names = cli.cli.list_commands(click.Context(cli.cli))
    asked = [
        [],
        ["--version"],
        *([name, "--help"] for name in names),
        ["bench", "decode", "--help"],
    ]
    code = (
        "import sys; from plamo_ref.cli import main; "
        f"assert not any([main(args) for args in {asked}]); "
        "from plamo_ref.intake.hub import find; assert find('tiny') == find(str(find('tiny'))); "
        "print({'torch', 'huggingface_hub', 'uvicorn', 'fastapi'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "set()"


def test_version_is_that_of_pyproject(capsys):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] in run(capsys, "--version")[1]


def test_package_and_console_script_are_the_same_program():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"plamo-ref": "plamo_ref.cli:main"}
    module = ast.parse((ROOT / "plamo_ref" / "__main__.py").read_text(encoding="utf-8"))
    assert ast.unparse(module.body[-1]) == "sys.exit(main())"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["nonsense"], "nonsense"),
        (["generate"], "--prompt"),
        (["generate", "--prompt"], "--prompt"),
        (["generate", "--prompt", "x", "--top-k", "many"], "many"),
        (["generate", "--prompt", "x", "--model", "no such folder"], "no such folder"),
        (["generate", "--prompt", "x", "--model", GOLDEN], "config.json"),
        (["generate", "--prompt", "x", "--model", MODEL, "--top-p", "3"], "top_p must be"),
        (["generate", "--prompt", "x", "--model", MODEL, "--stop", ""], "stop must be"),
        (["generate", "--prompt", "\ud800", "--model", MODEL], "surrogate"),
        (["info", "--model", GOLDEN], "config.json"),
        (["info", "--model", MODEL / "meta.json"], "model_type"),
        (["info", "--model", MODEL, "--length", "0"], "--length"),
        (["info", "--model", "org/name", "--offline"], "org/name"),
        (["serve", "--api-key", ""], "a key is empty"),
    ],
)
def test_mistakes_are_one_line_on_stderr_and_exit_code_2(capsys, monkeypatch, args, says):
    monkeypatch.setenv("COLUMNS", "80")  # a width must not break the line
    code, out, err = run(capsys, *args)
    assert (code, out) == (2, "")
    assert err.startswith("plamo-ref: ")
    assert err.count("\n") == 1
    assert says in err


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (PlamoRefError("two\nlines"), 2, "plamo-ref: two lines\n"),
        (OSError(28, "No space left on device"), 2, "No space left"),
        (MemoryError(), None, ""),
        (ModuleNotFoundError("No module named 'fastapi'", name="fastapi"), 2, "plamo-ref[not"),
        (ModuleNotFoundError("No module named 'plamo_ref.x'", name="plamo_ref.x"), None, ""),
        (KeyboardInterrupt(), 130, ""),
        (click.Abort(), 130, ""),
    ],
)
def test_errors_of_a_command_become_an_exit_code_but_bugs_stay(
    capsys, monkeypatch, error, code, says
):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(_options, "read_prompt", fail)
    if code is None:
        with pytest.raises(type(error)):
            run(capsys, "generate", "--prompt", "x")
    else:
        got, out, err = run(capsys, "generate", "--prompt", "x")
        assert (got, out) == (code, "")
        assert says in err


# --- generate ------------------------------------------------------------------------------------


def test_generate_prints_what_the_reference_generates(capsys):
    wanted = generated("吾輩は", max_tokens=20, seed=3, top_k=20)
    args = ["--model", MODEL, "--prompt", "吾輩は", "--max-tokens", 20, "--seed", 3, "--top-k", 20]
    assert run(capsys, "generate", *args) == (0, wanted + "\n", "")
    assert run(capsys, "generate", *args, "--echo") == (0, "吾輩は" + wanted + "\n", "")


def test_generate_passes_every_sampling_option_on(capsys, monkeypatch):
    seen = {}

    def note(options):
        seen.update(options)
        raise PlamoRefError("enough")

    monkeypatch.setattr(_options, "sampling_params", note)
    wanted = {
        "max_tokens": 7,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.1,
        "seed": 11,
        "stop": ("a", "b"),
    }
    flags = []
    for name, value in wanted.items():
        for one in value if isinstance(value, tuple) else [value]:
            flags += ["--" + name.replace("_", "-"), one]
    run(capsys, "generate", "--model", MODEL, "--prompt", "x", *flags)
    assert seen == wanted


def test_defaults_of_the_options_are_those_of_sampling_params():
    command = _options.sampling_options(click.command()(lambda **_: None))
    given = command.make_context("no options", []).params
    fields = {field.name: field.default for field in dataclasses.fields(SamplingParams)}
    assert given.pop("max_tokens") > fields["max_tokens"]  # 16 are too few to read
    assert given == {name: fields[name] for name in given}


def test_stats_go_to_stderr_and_leave_the_text_alone(capsys):
    args = ["--model", MODEL, "--prompt", "To be, or", "--max-tokens", 5, "--temperature", 0]
    plain = run(capsys, "generate", *args)
    code, out, err = run(capsys, "generate", *args, "--stats")
    tokens = len(Plamo2Tokenizer.from_folder(MODEL).encode("To be, or"))
    assert (code, out) == plain[:2]
    assert f"prefill: {tokens} tokens in" in err
    assert "decode: 4 tokens in" in err
    assert "finished because of: length" in err


def test_speeds_leave_the_first_token_to_prefill():
    from plamo_ref.commands.generate import speeds

    assert speeds(100, 10.0, [12.0, 12.5, 13.0]) == (
        "prefill: 100 tokens in 2.000 s, 50.0/s\ndecode: 2 tokens in 1.000 s, 2.0/s"
    )
    assert speeds(1, 0.0, [1.0]).endswith("decode: 0 tokens in 0.000 s")


def test_prompt_from_stdin_loses_one_newline_and_a_stop_string_ends_the_text(capsys, monkeypatch):
    text = generated("吾輩は\n", max_tokens=12, temperature=0)
    stop = text[3:5]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("吾輩は\n\n".encode())))
    args = ["--model", MODEL, "--prompt", "-", "--temperature", 0, "--max-tokens", 12]
    code, out, err = run(capsys, "generate", *args, "--stop", stop)
    assert (code, out, err) == (0, text[: text.index(stop)] + "\n", "")


def test_stdin_that_is_not_utf_8_is_a_mistake(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe")))
    code, out, err = run(capsys, "generate", "--model", MODEL, "--prompt", "-")
    assert (code, out) == (2, "")
    assert "UTF-8" in err
    assert err.count("\n") == 1


def test_an_interrupt_ends_with_130_and_no_traceback():
    process = start("generate", "--model", MODEL, "--prompt", "x", "--max-tokens", 1_000_000)
    assert process.stdout is not None
    first = process.stdout.read(1)  # text is streaming, long before the end
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert first
    assert (process.returncode, err) == (130, b"")


def test_a_closed_pipe_is_silent():
    process = start("generate", "--model", MODEL, "--prompt", "x", "--max-tokens", 1_000_000)
    assert process.stdout is not None
    process.stdout.read(1)
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (141, b"")


def test_a_terminal_without_japanese_gets_question_marks(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="latin-1"))
    args = ["--model", str(MODEL), "--prompt", "吾輩は", "--max-tokens", "1", "--echo"]
    assert cli.main(["generate", *args]) == 0
    assert shown.getvalue().startswith(b"???")


# --- info ----------------------------------------------------------------------------------------


def config_file(folder: Path, config: Plamo2Config, **more: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(config.to_dict() | more), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["c1_1b_like", "c3_full_mix", "c5_step4_shard", "c9_vocab_pad"])
def test_info_of_a_folder_counts_what_is_in_its_files(capsys, name):
    code, out, err = run(capsys, "info", "--model", GOLDEN / name, "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    checkpoint = Checkpoint.open(GOLDEN / name)
    stored = sum(math.prod(checkpoint.shape(n)) for n in checkpoint.names)
    assert facts["parameters"] == sum(facts["parameters_by_part"].values()) == stored
    assert facts["stored"]["bytes"] == checkpoint.nbytes == 4 * stored
    assert facts["stored"]["dtype"] == "float32"
    assert len(facts["layer_kinds"]) == checkpoint.config.num_hidden_layers
    layers = sorted(i for group in facts["groups"].values() for i in group["layers"])
    assert layers == list(range(checkpoint.config.num_hidden_layers))


def test_info_of_a_config_alone_knows_the_8b_shape(capsys, tmp_path):
    path = config_file(tmp_path, EIGHT_B, torch_dtype="float32")
    args = ["--model", path, "--json", "--bandwidth", 4280, "--length", 300]
    facts = json.loads(run(capsys, "info", *args)[1])
    # Known from elsewhere: 9.118e9 parameters, "34 GB" in float32, 32 MiB of state beside the conv,
    # 17.4 GFLOP a prefill token, 4.26 ms to read the weights at 4.28 TB/s.
    assert round(facts["parameters"] / 1e6) == 9118
    assert round(facts["stored"]["bytes"] / 2**30) == 34
    assert facts["state_bytes"] == 32 * 2**20 + 16 * 8192 * 3 * 2
    assert facts["groups"]["sliding_window"]["kv_bytes_per_token"] == 32 * 1024
    assert [cost["length"] for cost in facts["costs"]] == [300, 1000, 10_000, 100_000]
    first = facts["costs"][0]
    assert first["prefill_flops_per_token"] == pytest.approx(17.45e9, rel=0.01)
    assert first["decode_floor_ms"] == pytest.approx(4.28, abs=0.02)


def test_info_of_a_config_without_a_dtype_says_so(capsys, tmp_path):
    code, out, _ = run(capsys, "info", "--model", config_file(tmp_path, EIGHT_B))
    assert code == 0
    assert "names no dtype" in out


def test_info_shows_what_its_json_says(capsys, tmp_path):
    config = dataclasses.replace(EIGHT_B, full_attention_idx=(3,))
    path = config_file(tmp_path, config, torch_dtype="bfloat16")
    _, out, _ = run(capsys, "info", "--model", path, "--length", 77)
    assert "MSMFMSMS MSMSMSMS" in out
    assert "S sliding_window ×15" in out
    assert f"{config.num_parameters:,}" in out
    assert human_bytes(config.state_bytes()) in out
    cost = budget.cost_at(config, 77, bandwidth=1e12)
    (row,) = [line for line in out.splitlines() if line.split()[:1] == ["77"]]
    assert human_bytes(cost.request_bytes) in row
    assert human_flops(cost.decode_flops_per_token) in row
    assert f"{cost.decode_floor_ms:.3g} ms" in row


def test_info_does_not_overlook_broken_weights(capsys, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    code, _, err = run(capsys, "info", "--model", folder)
    assert code == 2
    assert "truncated" in err


def test_info_of_a_config_of_another_name_does_not_take_its_neighbours_for_its_weights(
    capsys, tmp_path
):
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    config_file(folder, EIGHT_B, torch_dtype="bfloat16").rename(folder / "other.json")
    facts = json.loads(run(capsys, "info", "--model", folder / "other.json", "--json")[1])
    assert facts["stored"]["bytes"] == 2 * EIGHT_B.num_parameters


# --- budget --------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 66, 200])
def test_prefill_is_the_sum_of_its_tokens(length):
    config = Plamo2Config(attention_window_size=64, full_attention_idx=(3,), hidden_size=64)
    each = [budget.decode_flops(config, n) for n in range(1, length + 1)]
    without_logits = sum(each) - (length - 1) * budget.head_flops(config)
    assert length * budget.prefill_flops(config, length) == pytest.approx(without_logits)


def test_linear_flops_are_two_for_each_weight_of_a_matrix():
    shapes = EIGHT_B.tensor_shapes.items()
    matrices = [s for n, s in shapes if len(s) == 2 and "embed" not in n and "_weight" not in n]
    assert budget.linear_flops(EIGHT_B) == 2 * sum(a * b for a, b in matrices)


def test_recurrence_and_head_counted_by_hand():
    config = Plamo2Config(
        num_hidden_layers=3,  # Mamba, attention, Mamba
        hidden_size_per_head=2,
        mamba_num_heads=3,  # 6 inner channels
        mamba_d_state=5,
        mamba_d_conv=4,
        hidden_size=10,
        vocab_size=17,  # 32 rows in an lm_head
    )
    assert budget.recurrence_flops(config) == 2 * 6 * (5 * 5 + 2 * 4)
    assert budget.head_flops(config) == 2 * 17 * 10
    untied = dataclasses.replace(config, tie_word_embeddings=False)
    assert budget.head_flops(untied) == 2 * 32 * 10


def test_a_window_bounds_what_decode_costs():
    far, farther = (budget.cost_at(EIGHT_B, n, bandwidth=1e12) for n in (5_000, 50_000))
    assert far.decode_flops_per_token == farther.decode_flops_per_token
    assert far.decode_floor_ms == farther.decode_floor_ms
    full = dataclasses.replace(EIGHT_B, full_attention_idx=(1,))
    seen = budget.decode_flops(full, 50_000) - budget.decode_flops(EIGHT_B, 50_000)
    assert seen == 4 * full.q_size * (50_000 - 2049)


def test_a_batch_reads_the_weights_once_and_moves_each_state_twice():
    one, two = (budget.decode_bytes(EIGHT_B, 100, batch=n) for n in (1, 2))
    kv = 100 * EIGHT_B.kv_bytes_per_token("sliding_window")
    assert two - one == kv + 2 * EIGHT_B.state_bytes()
    untied = dataclasses.replace(EIGHT_B, tie_word_embeddings=False)
    assert budget.weight_bytes_per_step(untied) == budget.weight_bytes_per_step(EIGHT_B)


# --- doctor --------------------------------------------------------------------------------------


def embed(monkeypatch, folder: Path) -> None:
    """Let "tiny" be the model in `folder`."""
    from plamo_ref.intake import hub

    find = hub.find
    monkeypatch.setattr(
        hub, "find", lambda model, **more: folder if model == "tiny" else find(model)
    )


def test_doctor_reports_versions_and_does_the_main_job(capsys, monkeypatch):
    embed(monkeypatch, MODEL)
    code, out, err = run(capsys, "doctor")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert all(line[:2] in ("✓ ", "✗ ") for line in lines)
    assert f"✓ Python {sys.version.split()[0]}" in lines
    assert lines[-1] == "✓ generate with tiny"
    import torch

    assert f"torch {torch.__version__}" in out


def test_doctor_fails_when_the_embedded_model_cannot_generate(capsys, monkeypatch, tmp_path):
    embed(monkeypatch, tmp_path)
    code, out, _ = run(capsys, "doctor")
    assert code == 1
    assert out.splitlines()[-1].startswith("✗ generate with tiny: ")


def test_doctor_says_what_to_install_for_a_missing_or_old_package(capsys, monkeypatch):
    version = _findings.version_of
    fakes = {"fastapi": None, "jupyterlab": "4.0.0"}
    monkeypatch.setattr(_findings, "version_of", lambda name: fakes.get(name, version(name)))
    server, lessons = "pip install 'plamo-ref[server]'", "pip install 'plamo-ref[notebooks]'"
    found = [str(finding) for finding in doctor.packages()]
    (line,) = [text for text in found if server in text]
    assert line.startswith("✗ packages for the HTTP server")
    assert "fastapi" in line
    assert "found none" in line
    (line,) = [text for text in found if lessons in text]
    assert "found 4.0.0" in line


# --- numbers as people read them -----------------------------------------------------------------


def test_bytes_and_flops_are_written_with_their_units():
    assert [human_bytes(n) for n in (0, 1023, 1536, 34 * 2**30, None)] == [
        "0 B",
        "1023 B",
        "1.50 KiB",
        "34.00 GiB",
        "unknown",
    ]
    assert [human_flops(n) for n in (0, 17.4e9, 2e15)] == ["0 FLOP", "17.4 GFLOP", "2e+03 TFLOP"]


def test_info_describes_without_reading_any_file():
    assert "path" not in inspect.signature(info.describe).parameters
    facts = info.describe(EIGHT_B, (10,), "float32", 1e12)
    assert facts["weight_bytes"] == 4 * EIGHT_B.num_parameters
