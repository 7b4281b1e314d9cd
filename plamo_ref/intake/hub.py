"""From the name of a model to a folder: "tiny", a folder, or a hub id such as "pfnet/plamo-2-1b".

Invariant: a folder that `find` has fetched holds config.json and every weight file that its index
names. Only JSON, safetensors and chat templates are asked for: neither code nor pickles reach the
disk. The hub's library is imported where something is fetched: a folder does not wait for it.
"""

import re
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from plamo_ref.errors import PlamoRefError
from plamo_ref.intake.checkpoint_files import CONFIG_FILE, CheckpointError, read_index
from plamo_ref.intake.conversions import advice, is_gguf
from plamo_ref.intake.json_files import is_file, is_folder, is_there
from plamo_ref.intake.values import Flag, Kind, NoneFor, Text, read, shown

EMBEDDED = "tiny"
TEMPLATE_FOLDER = "additional_chat_templates"  # Transformers puts all but the default one here
WANTED = ("*.json", "*.jsonl", "*.safetensors", "*.jinja")
# Other formats live in sub-folders, of which only this one is ours. A pattern cannot say "all but
# that", so each says for one letter of its name: as that one up to here, and then different.
UNWANTED = (
    *(f"{TEMPLATE_FOLDER[:i]}[!{letter}]*/*" for i, letter in enumerate(f"{TEMPLATE_FOLDER}/")),
    *(f"{TEMPLATE_FOLDER[:i]}/*" for i in range(len(TEMPLATE_FOLDER))),
    f"{TEMPLATE_FOLDER}/*/*",
)
HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)


class HubError(PlamoRefError, OSError):
    """A model that cannot be found or fetched; the message says what to do about it."""


class _Location:
    """A text or a path. A path stays one: "tiny" is the embedded model, Path("tiny") a folder."""

    wanted = "a text or a path"

    def read(self, value: Any) -> str | Path:
        text = Text().read(fspath(value) if isinstance(value, PathLike) else value)
        return Path(text) if isinstance(value, PathLike) else text


_ARGUMENTS: Mapping[str, Kind] = {
    "model": _Location(),
    "revision": NoneFor(Text()),
    "cache_dir": NoneFor(_Location()),
    "offline": Flag(),
}


def find_checked(error: type[PlamoRefError], **arguments: Any) -> Path:
    """As `find`, of arguments that may be anything.

    Raises:
        PlamoRefError: of class `error`: one is of another type; else as `find`.
    """
    return find(**{n: read(error, n, value, _ARGUMENTS[n]) for n, value in arguments.items()})


def find(
    model: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
) -> Path:
    """The folder of `model`, downloaded first if it is a hub id.

    The string "tiny" is the checkpoint inside this package (a folder of that name is "./tiny"); an
    existing folder is itself; "org/name" is looked up on the hub that HF_ENDPOINT names, with the
    token of HF_TOKEN or `hf auth login`. Files already there are not fetched again, and a
    connection that breaks is taken up where it broke.

    Args:
        revision: branch, tag or commit on the hub; None: its main branch.
        cache_dir: where downloads are kept; None: the hub library's own cache (HF_HOME).
        offline: ask nobody, use what is in the cache. HF_HUB_OFFLINE=1 does the same.

    Raises:
        HubError: no such model, no access to it, no connection, or an incomplete copy.
        CheckpointError: what was fetched is no safetensors checkpoint.
    """
    if model == EMBEDDED:
        return Path(__file__).parents[1] / "models" / EMBEDDED
    folder = _folder(model)
    if model and is_folder(folder):
        return folder
    if not isinstance(model, str) or not HUB_ID.fullmatch(model) or model[0] == ".":
        kind = "a file: give its folder" if is_there(folder) else "nothing of that name"
        kind = advice(folder) if is_gguf(folder) else kind
        raise HubError(
            f'{shown(str(model))}: expected "{EMBEDDED}", a folder, or a hub id "org/name"; '
            f"found {kind}"
        )
    folder = _download(model, revision, cache_dir, offline)
    _check_complete(model, folder)
    return folder


def _folder(model: str | Path) -> Path:
    path = Path(model)
    try:
        return path.expanduser()
    except RuntimeError:  # "~nobody"
        return path


def _download(
    model: str, revision: str | None, cache_dir: str | Path | None, offline: bool
) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HTTPError

    cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
    try:
        return Path(
            snapshot_download(
                model,
                revision=revision,
                cache_dir=cache,
                local_files_only=offline,
                allow_patterns=list(WANTED),
                ignore_patterns=list(UNWANTED),
            )
        )
    # HTTPError is the base of whatever the library's own HTTP client raises, broken reads included.
    except (HTTPError, OSError, ValueError) as error:
        raise HubError(_advice(error, model, revision or "main", cache, offline)) from error


def _advice(error: Exception, model: str, revision: str, cache: Path, offline: bool) -> str:
    """One line: what the hub said, and what to do about it."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    absent, answered = errors.LocalEntryNotFoundError, errors.HfHubHTTPError
    # A refusal is hidden behind "not in the cache either": what the hub said is the real reason.
    if isinstance(error, absent) and isinstance(error.__cause__, answered):
        error = error.__cause__
    if isinstance(error, errors.HFValidationError):
        return f"{model}: not a hub id: {error}"
    status = error.response.status_code if isinstance(error, answered) else None
    login = "set HF_TOKEN or run `hf auth login`"
    if isinstance(error, errors.GatedRepoError):
        return f"{model}: gated: accept its licence on {hub}/{model}, then {login}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{model}: {hub} has no revision {revision!r} of it: check the branch, tag or commit"
    if isinstance(error, errors.RepositoryNotFoundError) or status == 404:
        return f"{model}: not on {hub}: the id is misspelt, or it is private (then {login})"
    if status in (401, 403):
        return (
            f"{model}: {hub} refuses the token (HTTP {status}): {login} with one that may read it"
        )
    if status is not None:
        return f"{model}: {hub} answers with HTTP {status}: try again later"
    if isinstance(error, absent):
        have = f"revision {revision!r} is not, or not wholly, in the cache {cache}"
        if offline or constants.is_offline_mode():
            return f"{model}: offline, and {have}: run once online, or give cache_dir or a folder"
        return f"{model}: {hub} cannot be reached, and {have}: check the network or HF_ENDPOINT"
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{model}: the download from {hub} failed ({said}): run again, finished files are kept"


def _check_complete(model: str, folder: Path) -> None:
    """The hub library takes any folder in its cache for a whole one when it cannot ask the hub."""
    if is_gguf(model) and not any(folder.glob("*.safetensors")):
        raise HubError(f"{model}: expected safetensors, found {advice(model)}")
    if not is_file(folder / CONFIG_FILE):
        raise HubError(f"{model}: no {CONFIG_FILE} in {folder}: not a model, or half a download")
    try:
        read_index(folder)
    except CheckpointError as error:
        raise CheckpointError(
            f"{model}: {error}. Only safetensors are fetched, no pickles; if the hub has the file, "
            "run again online"
        ) from None
