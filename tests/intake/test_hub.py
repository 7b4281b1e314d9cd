"""`find`: the embedded model, folders, and the hub, spoken to through a server on loopback.

The client is the real one, in a process of its own, because it reads HF_ENDPOINT when imported.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import COMMIT, HubServer, Repo

import plamo_ref
from plamo_ref.errors import PlamoRefError
from plamo_ref.intake.hub import HubError, find
from plamo_ref.weights.checkpoint import Checkpoint, CheckpointError

GOLDEN = Path(__file__).parents[1] / "golden"
SHARDED = GOLDEN / "c5_step4_shard"

CLIENT = """
import json, os, sys
from plamo_ref.errors import PlamoRefError
from plamo_ref.intake.hub import find
for line in sys.stdin:
    request = json.loads(line)
    token = request.pop("token", None)
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    try:
        answer = {"folder": str(find(**request))}
    except PlamoRefError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(answer), flush=True)
"""


class Client:
    """A process that calls `find` with the arguments it is sent, one line at a time."""

    def __init__(self, endpoint: str, home: Path, **more: str) -> None:
        keep = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        mine = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
        # A file, not a pipe: nobody reads it before the end, and a full pipe would block.
        self.stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed in close)
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            env=keep | quiet | mine | more,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            text=True,
        )

    def find(self, model: str, **options: object) -> dict[str, str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"model": model, **options}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> str:
        """End the process; everything that it wrote to its standard error."""
        self.process.communicate(timeout=30)
        with self.stderr:
            self.stderr.seek(0)
            return self.stderr.read()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HubServer, Client]]:
    server = HubServer()
    client = Client(server.endpoint, tmp_path_factory.mktemp("home"))
    yield server, client
    client.close()
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(shared: tuple[HubServer, Client]) -> HubServer:
    server = shared[0]
    server.repos.clear()
    server.requests.clear()
    files = {p.name: p.read_bytes() for p in SHARDED.iterdir() if p.name != "expected.safetensors"}
    files |= {"modeling_plamo.py": b"raise SystemExit", "pytorch_model.bin": b"pickle"}
    files |= {"onnx/config.json": b"{}", "README.md": b"# card"}
    server.repos["org/plamo"] = Repo(files)
    return server


@pytest.fixture
def client(shared: tuple[HubServer, Client], hub: HubServer) -> Client:
    return shared[1]


def fails(answer: dict[str, str], *parts: str, error: str = "HubError") -> None:
    assert answer.get("error") == error, answer
    assert "\n" not in answer["message"]
    for part in parts:
        assert part in answer["message"]


# --- without a hub ---------------------------------------------------------------------------


def test_tiny_is_the_folder_inside_the_package() -> None:
    assert find("tiny") == Path(plamo_ref.__file__).parent / "models" / "tiny"
    assert find("tiny").is_dir()


def test_an_existing_folder_is_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(SHARDED) == SHARDED
    assert find(str(SHARDED)) == SHARDED
    monkeypatch.chdir(GOLDEN.parent)
    assert find("golden/c5_step4_shard") == Path("golden/c5_step4_shard")  # not a hub id


@pytest.mark.parametrize(
    "name", ["tinny", "./no/where", "/no/where", "a/b/c", "~/nobody", "~nobody/at/all", "a\0b", ""]
)
def test_a_name_that_is_nothing_says_what_it_could_have_been(name: str) -> None:
    with pytest.raises(HubError, match=r'expected "tiny", a folder, or a hub id') as caught:
        find(name)
    assert isinstance(caught.value, PlamoRefError)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["x" * 5000, "x/" * 2000, f"org/{'x' * 5000}"])
def test_a_name_of_five_thousand_characters_is_one_short_line(name: str) -> None:
    with pytest.raises(HubError, match=r'expected "tiny", a folder, or a hub id') as caught:
        find(name)
    assert len(str(caught.value)) < 300


def test_a_file_is_answered_with_the_hint_to_give_its_folder() -> None:
    with pytest.raises(HubError, match="give its folder"):
        find(SHARDED / "config.json")


# --- from the hub ----------------------------------------------------------------------------


def test_a_download_holds_exactly_the_files_that_are_needed(
    hub: HubServer, client: Client, tmp_path: Path
) -> None:
    answer = client.find("org/plamo", cache_dir=str(tmp_path))
    folder = Path(answer["folder"])
    assert folder == tmp_path / "models--org--plamo" / "snapshots" / COMMIT
    wanted = {p.name for p in SHARDED.iterdir()} - {"expected.safetensors"}
    assert {p.name for p in folder.rglob("*")} == wanted  # no code, no pickle, no sub-folder
    assert {name for name, _ in hub.downloads()} == wanted
    for name in wanted:
        assert (folder / name).read_bytes() == (SHARDED / name).read_bytes()
    assert Checkpoint.open(folder).names == Checkpoint.open(SHARDED).names


def test_chat_templates_come_along_and_code_does_not(
    hub: HubServer, client: Client, tmp_path: Path
) -> None:
    wanted = {
        "chat_template.jinja": b"{{ 1 }}",
        "additional_chat_templates/tool_use.jinja": b"{{ 2 }}",
        "additional_chat_templates/rag.jinja": b"{{ 3 }}",
    }
    unwanted = {
        "additional_chat_templates/sub/x.jinja/y.py": b"code",
        "additional_chat_templates/run.py": b"code",
        "additional_chat_templates_/x.jinja": b"",
        "additional/x.jinja": b"",
        "a/config.json": b"",
        "mlx/chat_template.jinja": b"",
        "x/additional_chat_templates/x.jinja": b"",
    }
    hub.repos["org/plamo"].files |= wanted | unwanted
    folder = Path(client.find("org/plamo", cache_dir=str(tmp_path))["folder"])
    plain = {p.name for p in SHARDED.iterdir()} - {"expected.safetensors"}
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert found == plain | wanted.keys()
    assert all((folder / name).read_bytes() == data for name, data in wanted.items())


def test_a_repository_of_another_format_is_named_with_the_original(
    hub: HubServer, client: Client, tmp_path: Path
) -> None:
    name = "org/plamo-2-translate-gguf"
    hub.repos[name] = Repo({"README.md": b"# card", "model-Q4.gguf": b"GGUF"})
    said = ("GGUF, llama.cpp's format", "take the original, pfnet/plamo-2-translate")
    fails(client.find(name, cache_dir=str(tmp_path)), name, *said)


def test_a_second_find_downloads_nothing(hub: HubServer, client: Client, tmp_path: Path) -> None:
    first = client.find("org/plamo", cache_dir=str(tmp_path))
    hub.requests.clear()
    assert client.find("org/plamo", cache_dir=str(tmp_path)) == first
    assert hub.downloads() == []


def test_a_revision_may_be_a_commit(client: Client, tmp_path: Path) -> None:
    answer = client.find("org/plamo", cache_dir=str(tmp_path), revision=COMMIT)
    assert Path(answer["folder"]).name == COMMIT


def test_a_broken_connection_is_resumed_where_it_broke(
    hub: HubServer, client: Client, tmp_path: Path
) -> None:
    data = random.Random(0).randbytes(12_000_000)  # the client writes in pieces of 10 MiB
    hub.repos["org/plamo"].files["more.safetensors"] = data
    hub.repos["org/plamo"].cuts["more.safetensors"] = [11_000_000]
    answer = client.find("org/plamo", cache_dir=str(tmp_path))
    spans = [span for name, span in hub.downloads() if name == "more.safetensors"]
    assert spans == [None, f"bytes={10 * 2**20}-"]
    assert (Path(answer["folder"]) / "more.safetensors").read_bytes() == data


def test_an_interrupted_download_is_an_error_and_the_next_fetches_only_what_is_missing(
    hub: HubServer, client: Client, tmp_path: Path
) -> None:
    shard = "model-00001-of-00004.safetensors"
    hub.repos["org/plamo"].resets.add(shard)
    said = ("org/plamo", hub.endpoint, "failed", "run again, finished files are kept")
    fails(client.find("org/plamo", cache_dir=str(tmp_path)), *said)
    fails(client.find("org/plamo", cache_dir=str(tmp_path), offline=True), "not wholly", "online")
    hub.repos["org/plamo"].resets.clear()
    done = {p.name for p in tmp_path.glob("*/snapshots/*/*")}
    hub.requests.clear()
    assert Checkpoint.open(client.find("org/plamo", cache_dir=str(tmp_path))["folder"])
    missing = {name for name, _ in hub.downloads()}
    assert shard in missing
    assert done
    assert not done & missing


def test_gated_says_accept_the_licence_with_and_without_a_token(
    hub: HubServer, client: Client, tmp_path: Path
) -> None:
    hub.repos["org/plamo"].gated = True
    for token in (None, "hf_mine"):
        answer = client.find("org/plamo", cache_dir=str(tmp_path), token=token)
        fails(answer, "accept its licence", f"{hub.endpoint}/org/plamo", "HF_TOKEN")


def test_a_private_model_opens_with_its_token_only(
    hub: HubServer, client: Client, tmp_path: Path
) -> None:
    hub.repos["org/plamo"].need_token = "hf_right"
    fails(client.find("org/plamo", cache_dir=str(tmp_path)), "misspelt, or it is private")
    answer = client.find("org/plamo", cache_dir=str(tmp_path), token="hf_wrong")
    fails(answer, "misspelt, or it is private")
    assert "folder" in client.find("org/plamo", cache_dir=str(tmp_path), token="hf_right")


@pytest.mark.parametrize(("status", "said"), [(403, "refuses the token"), (501, "HTTP 501")])
def test_other_refusals_name_the_status(
    hub: HubServer, client: Client, tmp_path: Path, status: int, said: str
) -> None:
    hub.repos["org/plamo"].refuse = status
    fails(client.find("org/plamo", cache_dir=str(tmp_path)), said, str(status))


def test_an_unknown_id_and_an_unknown_revision_are_told_apart(
    client: Client, tmp_path: Path
) -> None:
    answer = client.find("org/plomo", cache_dir=str(tmp_path), token="hf_mine")
    fails(answer, "org/plomo", "misspelt")
    answer = client.find("org/plamo", cache_dir=str(tmp_path), revision="v9")
    fails(answer, "no revision 'v9'", "branch, tag or commit")
    fails(client.find("org/pl--amo", cache_dir=str(tmp_path)), "not a hub id")


def test_a_repository_with_pickles_only_is_refused_and_none_is_fetched(
    hub: HubServer, client: Client, tmp_path: Path
) -> None:
    config = (SHARDED / "config.json").read_bytes()
    hub.repos["org/old"] = Repo({"config.json": config, "pytorch_model.bin": b"pickle"})
    answer = client.find("org/old", cache_dir=str(tmp_path))
    fails(answer, "expected model.safetensors", "no pickles", error="CheckpointError")
    assert [name for name, _ in hub.downloads()] == ["config.json"]


# --- offline ---------------------------------------------------------------------------------


def test_offline_uses_the_cache_and_asks_nobody(
    hub: HubServer, client: Client, tmp_path: Path
) -> None:
    online = client.find("org/plamo", cache_dir=str(tmp_path))
    hub.requests.clear()
    assert client.find("org/plamo", cache_dir=str(tmp_path), offline=True) == online
    assert hub.requests == []


def test_offline_without_a_cache_says_where_it_looked_and_how_to_get_it(
    hub: HubServer, client: Client, tmp_path: Path
) -> None:
    answer = client.find("org/plamo", cache_dir=str(tmp_path), offline=True)
    fails(answer, "offline", str(tmp_path), "run once online")
    assert hub.requests == []


def cache_of(folder: Path, cache: Path) -> Path:
    """A hub cache made by hand: no record of which files there ought to be."""
    repo = cache / "models--org--plamo"
    shutil.copytree(folder, repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    return repo / "snapshots" / COMMIT


def test_offline_a_cached_folder_that_lacks_files_is_not_taken_for_whole(tmp_path: Path) -> None:
    folder = cache_of(SHARDED, tmp_path)
    assert find("org/plamo", cache_dir=tmp_path, offline=True) == folder
    (folder / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00004.*no such file.*run again"):
        find("org/plamo", cache_dir=tmp_path, offline=True)
    (folder / "config.json").unlink()
    with pytest.raises(HubError, match=r"no config\.json"):
        find("org/plamo", cache_dir=tmp_path, offline=True)


def test_the_hub_librarys_own_offline_switch_and_a_dead_address(tmp_path: Path) -> None:
    dead = "http://127.0.0.1:9"
    switched = Client(dead, tmp_path, HF_HUB_OFFLINE="1")
    unreachable = Client(dead, tmp_path)
    fails(switched.find("org/plamo"), "offline", str(tmp_path / "hub"))
    fails(unreachable.find("org/plamo"), dead, "cannot be reached", "HF_ENDPOINT")
    switched.close()
    unreachable.close()


def test_a_download_shows_its_progress(hub: HubServer, tmp_path: Path) -> None:
    client = Client(hub.endpoint, tmp_path, HF_HUB_DISABLE_PROGRESS_BARS="0")
    assert "folder" in client.find("org/plamo")
    assert "100%" in client.close()
