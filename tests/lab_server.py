"""JupyterLab on a copy of the lessons, with all its state in one temporary folder."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

TOKEN = "lesson"
START_SECONDS = 60


def write_setting(folder: Path, plugin: str, values: dict) -> None:
    file = folder / f"{plugin}.jupyterlab-settings"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def jupyter_lab(root: Path, state: Path) -> Iterator[str]:
    """Serve `root`; yields the address. What Lab keeps goes to `state`, where `kernels` may have
    other kernels than the installed one."""
    settings = state / "settings"
    news = {"fetchNews": "false", "checkForUpdates": False}
    write_setting(settings, "@jupyterlab/apputils-extension/notification", news)
    # All cells are in the page, so that a test sees outputs without scrolling to them.
    write_setting(settings, "@jupyterlab/notebook-extension/tracker", {"windowingMode": "none"})
    names = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "runtime"}
    env = dict(os.environ) | {f"JUPYTER_{k}": str(state / v) for k, v in names.items()}
    env |= {
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "JUPYTERLAB_WORKSPACES_DIR": str(state / "workspaces"),
        "JUPYTER_PATH": str(state / "kernels"),
    }
    port = free_port()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += ["--expose-app-in-browser", "--ServerApp.ip=127.0.0.1", "--ServerApp.port_retries=0"]
    command += [f"--ServerApp.port={port}", f"--IdentityProvider.token={TOKEN}"]
    command += [f"--ServerApp.root_dir={root}", "--LabApp.extension_manager=readonly"]
    with (state / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until_up(address, server)
        yield address
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_until_up(address: str, server: subprocess.Popen) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"JupyterLab ended with {server.returncode} before it was up")
        try:
            urllib.request.urlopen(f"{address}/api/status?token={TOKEN}", timeout=2).read()
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"JupyterLab was not up after {START_SECONDS} s")


def chromium() -> str | None:
    """The browser, if this machine has one."""
    return next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
