"""The Makefile and its scripts, with stand-ins for Python, pip and apt-get: nothing installs."""

import os
import re
import shutil
import stat
import subprocess
import time
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
TARGETS = {
    "demo",
    "test",
    "lab",
    "student",
    "slides",
    "site",
    "badges",
    "lite",
    "lite-check",
    "newest",
    "lint",
    "format",
    "clean",
}
PYTEST = "pytest -n 3 --dist loadfile --no-loadscope-reorder -m "  # … and the marks

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

BROWSER_TEST = "@pytest.mark" + ".browser\n"  # in two: the script searches this file as well

# A Python of version $VERSION; `-m venv` puts itself in place, everything is written down.
FAKE_PYTHON = """#!/bin/sh
echo "$*" >>"$LOG"
case "$1 $2" in
    "-c "*"not ("*) case "$VERSION" in 3.11 | 3.12 | 3.13) exit 0 ;; *) exit 1 ;; esac ;;
    "-c "*"%d.%d"*) echo "$VERSION" ;;
    "-c "*ensurepip*) [ -z "${NO_VENV:-}" ] ;;
    "-m venv") mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
    "--version "*) echo "Python $VERSION" ;;
    "-m ${BROKEN:-nothing}") exit 1 ;;
esac
"""


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def clone(tmp_path):
    """A folder with what `make` needs, and a fake python3 before all others in PATH."""
    folder = tmp_path / "clone"
    shutil.copytree(ROOT / "tools", folder / "tools")
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    program(tmp_path / "bin" / "python3", FAKE_PYTHON)
    return folder


def call(clone: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    base = {
        k: v for k, v in os.environ.items() if k not in ("PYTHON", "JOBS", "MAKEFLAGS", "MAKELEVEL")
    }
    path = f"{clone.parent / 'bin'}:{environment.pop('PATH', os.environ['PATH'])}"
    mine = {"PATH": path, "LOG": str(clone.parent / "log"), "VERSION": "3.12"}
    return subprocess.run(
        command,
        cwd=clone,
        env=base | mine | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def calls_of(clone: Path, *command: str, **environment: str) -> list[str]:
    """What Python was asked to do."""
    log = clone.parent / "log"
    log.unlink(missing_ok=True)
    done = call(clone, *command, **environment)
    assert done.returncode == 0, done.stderr
    return log.read_text(encoding="utf-8").splitlines()


def installs(calls: list[str]) -> list[str]:
    asked = [line for line in calls if line.startswith("-m pip install") and "--up" not in line]
    assert all("--no-compile" in line for line in asked)
    return [line.rpartition(" ")[2] for line in asked]


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))
    time.sleep(0.05)  # what is touched next is newer, by the coarser clock of files as well


@needs_make
def test_demo_installs_the_project_alone_and_only_when_pyproject_changes(clone):
    age(clone / "pyproject.toml", 60)
    first = calls_of(clone, "make", "demo")
    assert sum(line.startswith("-m venv") for line in first) == 1
    assert installs(first) == ["."]
    second = calls_of(clone, "make", "demo")
    assert installs(second) == []
    assert [line.split()[:3] for line in second] == [["-m", "plamo_ref", "generate"]] * 2
    age(clone / "pyproject.toml", -60)
    third = calls_of(clone, "make", "demo")
    assert installs(third) == ["."]
    assert not any(line.startswith("-m venv") for line in third)


@needs_make
def test_a_new_environment_has_the_newest_pip_or_goes_on_with_its_own(clone):
    old = FAKE_PYTHON.replace("case", 'case "$*" in *--upgrade*) exit 1 ;; esac\ncase', 1)
    program(clone.parent / "old", old)
    for python in ("python3", str(clone.parent / "old")):
        shutil.rmtree(clone / ".venv", ignore_errors=True)
        calls = calls_of(clone, "make", "demo", "PIP_ARGS=--index-url x", f"PYTHON={python}")
        upgrade, install = (line for line in calls if line.startswith("-m pip install"))
        assert "--upgrade" in upgrade
        assert upgrade.endswith("--index-url x pip")
        assert install.endswith("--no-compile --index-url x -e .")


@needs_make
def test_demo_speaks_japanese_and_english_with_the_embedded_model(clone):
    lines = [line for line in calls_of(clone, "make", "demo") if " generate " in line]
    assert all("--model tiny" in line and "--stats" in line for line in lines)
    assert ["吾輩は" in lines[0], "To be, or" in lines[1]] == [True, True]


@needs_make
def test_test_lints_and_runs_pytest_once_side_by_side(clone):
    age(clone / "pyproject.toml", 60)
    calls = calls_of(clone, "make", "test")
    assert installs(calls) == [".", "plamo-ref[test]"]
    tools = [line.removeprefix("-m ") for line in calls if re.match("-m (ruff|mypy|pytest)", line)]
    assert sorted(tools) == sorted(["ruff check .", "ruff format --check .", "mypy", PYTEST])
    assert installs(calls_of(clone, "make", "demo")) == []
    age(clone / "pyproject.toml", 0)
    assert installs(calls_of(clone, "make", "test")) == installs(calls)


@needs_make
@pytest.mark.parametrize("tool", ["ruff", "mypy", "pytest"])
def test_test_fails_with_any_tool_and_runs_pytest_all_the_same(clone, tool):
    assert call(clone, "make", "test", BROKEN=tool).returncode != 0
    log = (clone.parent / "log").read_text(encoding="utf-8")
    assert f"-m {PYTEST}" in log.splitlines()


@needs_make
def test_test_leaves_browser_tests_out_without_chromium(clone):
    program(clone / "tools" / "chromium.sh", "#!/bin/sh\nexit 1\n")
    assert f"-m {PYTEST}not browser" in calls_of(clone, "make", "test")


@needs_make
def test_lab_opens_the_lessons(clone):
    calls = calls_of(clone, "make", "lab")
    assert installs(calls) == [".", "plamo-ref[notebooks]"]
    assert calls[-1].startswith("-m jupyterlab ")
    assert "/lab/tree/notebooks" in calls[-1]


@needs_make
@pytest.mark.parametrize(
    ("target", "modules"),
    [("student", ("editions", "restart", "quiz")), ("slides", ("slides",))],
)
def test_editions_are_written_where_git_does_not_look(clone, target, modules):
    calls = calls_of(clone, "make", target)
    extra = "slides" if target == "slides" else "notebooks"
    assert installs(calls) == [".", f"plamo-ref[{extra}]"]
    wanted = [f"-m tools.course.{module} build/{target}" for module in modules]
    assert calls[-len(wanted) :] == wanted
    assert "build/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


@needs_make
def test_clean_keeps_the_virtual_environment_and_the_sources(clone):
    kept = [clone / ".venv" / "__pycache__" / "x", clone / "plamo_ref" / "x.py"]
    gone = [clone / "plamo_ref" / "__pycache__" / "x.pyc", clone / "build" / "x"]
    for path in kept + gone:
        program(path, "")
    assert call(clone, "make", "clean").returncode == 0
    assert [path.exists() for path in kept + gone] == [True, True, False, False]


@needs_make
def test_help_names_every_target(clone):
    out = call(clone, "make").stdout
    assert {line.split()[1] for line in out.splitlines()} == TARGETS


@needs_make
def test_lite_is_built_in_an_environment_of_its_own(clone):
    asked = calls_of(clone, "make", "lite")
    assert [line for line in asked if line.startswith("-m venv")] == [
        "-m venv --clear .venv",
        "-m venv --clear .venv/lite",
    ]
    assert not any("plamo-ref" in wanted or " -e " in wanted for wanted in installs(asked))
    assert any(line.startswith("-c ") and "['lite']" in line for line in asked)
    assert any(line.startswith("-m pip install ") and " -e " not in line for line in asked)
    assert asked[-1] == "-m tools.course.lite build/lite"


@pytest.mark.parametrize("version", ["3.10", "2.7", "3.14"])
def test_an_unsuitable_python_is_named_with_its_version(clone, version):
    # No other Python in PATH.
    done = call(clone, "/bin/sh", "tools/venv.sh", ".venv", VERSION=version, PYTHON="python3")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"python3 is {version}" in done.stderr
    assert not (clone / ".venv").exists()


def test_no_python_at_all_is_said_so(clone):
    done = call(clone, "/bin/sh", "tools/venv.sh", ".venv", PYTHON="no-such-python")
    assert done.returncode == 1
    assert "found none" in done.stderr
    assert "needs Python 3.11 to 3.13" in done.stderr


def test_another_suitable_python_is_taken_when_python3_is_too_old(clone):
    old = FAKE_PYTHON.replace("#!/bin/sh", "#!/bin/sh\nVERSION=3.9")
    program(clone.parent / "bin" / "python3", old)
    program(clone.parent / "bin" / "python3.13", FAKE_PYTHON)
    done = call(clone, "/bin/sh", "tools/venv.sh", ".venv", VERSION="3.13")
    assert done.returncode == 0, done.stderr
    assert "Python 3.13" in done.stdout


def test_a_python_without_venv_is_explained(clone):
    done = call(clone, "/bin/sh", "tools/venv.sh", ".venv", NO_VENV="1")
    assert done.returncode == 1
    assert "python3-venv" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_script_and_pyproject_agree_on_the_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = SpecifierSet(project["requires-python"])
    script = (ROOT / "tools" / "venv.sh").read_text(encoding="utf-8")
    bounds = dict(re.findall(r"^(oldest|newest)='3, (\d+)'$", script, re.MULTILINE))
    supported = [minor for minor in range(30) if wanted.contains(f"3.{minor}.0")]
    assert [int(bounds["oldest"]), int(bounds["newest"])] == [supported[0], supported[-1]]
    names = re.findall(r"python3\.(\d+)", script)
    assert sorted(map(int, names)) == supported


# --- chromium ------------------------------------------------------------------------------------


def chromium(clone: Path, *, uid: int = 0, tests: str = BROWSER_TEST, **programs: str):
    """Run the script where only `programs` and the plainest tools exist."""
    box = clone.parent / "box"
    box.mkdir()
    for name in ("grep", "sh"):
        (box / name).symlink_to(str(shutil.which(name)))
    for name, text in {"id": f"echo {uid}", **programs}.items():
        program(box / name.replace("_", "-"), f"#!/bin/sh\n{text}\n")
    program(clone / "tests" / "test_lab.py", tests)
    base = {"PATH": str(box), "LOG": str(clone.parent / "log")}
    return subprocess.run(
        ["/bin/sh", "tools/chromium.sh"],
        cwd=clone,
        env=base,
        capture_output=True,
        text=True,
        check=False,
    )


def test_chromium_is_not_asked_for_without_browser_tests(clone):
    done = chromium(clone, tests="def test(): ...\n", apt_get='echo "$*" >>"$LOG"')
    assert (done.returncode, done.stdout) == (0, "")
    assert not (clone.parent / "log").exists()


def test_chromium_that_is_there_is_taken(clone):
    done = chromium(clone, chromium="", apt_get='echo "$*" >>"$LOG"')
    assert (done.returncode, done.stdout) == (0, "")
    assert not (clone.parent / "log").exists()


def test_root_with_apt_get_installs_chromium_and_says_so(clone):
    done = chromium(clone, apt_get='echo "$*" >>"$LOG"')
    assert done.returncode == 0
    assert "installing the packages chromium" in done.stdout
    log = (clone.parent / "log").read_text(encoding="utf-8")
    assert "install -y" in log
    assert "chromium fonts-noto-cjk" in log


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"uid": 1000, "apt_get": "exit 0"}, "needs root"),
        ({}, "no apt-get"),
        ({"apt_get": "exit 100"}, "could not be installed"),
    ],
)
def test_where_chromium_cannot_be_installed_the_reason_is_given(clone, more, why):
    done = chromium(clone, **more)
    assert done.returncode == 1
    assert "Browser tests are left out" in done.stdout
    assert why in done.stdout


# --- CI ------------------------------------------------------------------------------------------


def test_the_test_files_that_begin_first_exist_and_do(request):
    """The others follow them, in the order of their names."""
    begun = list(dict.fromkeys(item.path.stem for item in request.session.items))
    text = (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8")
    first = re.findall(r'^    "(test_\w+)",$', text, re.MULTILINE)
    assert len(first) > 10
    files = [path.stem for path in (ROOT / "tests").rglob("test_*.py")]
    assert [name for name in first if files.count(name) != 1] == []
    known = [name for name in first if name in begun]
    assert begun[: len(known)] == known


@needs_make
@pytest.mark.parametrize(("demo", "test", "code"), [(0, 0, 0), (1, 0, 1), (0, 1, 1)])
def test_ci_runs_both_parts_and_fails_if_either_does(tmp_path, demo, test, code):
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    recipe = f"demo:\n\t@echo shown; exit {demo}\ntest:\n\t@echo 7 passed in 1s; exit {test}\n"
    recipe += ".venv/.installed:\n\t@echo installed\n"
    (tmp_path / "Makefile").write_text(recipe, encoding="utf-8")
    program(tmp_path / "tools" / "chromium.sh", "#!/bin/sh\necho Chromium is looked for; exit 1\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    done = subprocess.run(
        [tmp_path / ".ci" / "run"], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == code
    assert done.stdout.splitlines() == ["7 passed in 1s"]
    # With what the project asks for, before what tests want has come.
    assert done.stderr.index("installed\n") < done.stderr.index("shown")
    assert "Chromium is looked for" in done.stderr  # meanwhile
