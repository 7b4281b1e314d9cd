"""The rules of the house, read from the source: sizes, directions, and what must not be there."""

import ast
import graphlib
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "plamo_ref"
MAX_LINES = 300
MAX_FUNCTION, MAX_TRITON = 50, 120  # lines; a Triton kernel is one function, and long

# Which shelves a shelf may import, besides itself. A shelf is a module or folder of the package.
TEXT_TO_TEXT = {
    *("errors", "config", "batch", "budget", "linear", "model", "quantization"),
    *("intake", "text", "weights", "sampling", "grammar", "chat", "kernels"),
    *("engine", "engine.memory", "engine.scheduling"),
}
OVER_THE_ENGINE = TEXT_TO_TEXT | {"reference"}
MAY_IMPORT = {
    "errors": set(),
    "quantization": set(),
    "config": {"errors", "intake", "quantization"},
    "batch": {"config"},
    "budget": {"config"},
    "kernels": {
        "errors",
        "config",
        "batch",
        "quantization",
    },  # whole-batch operations take the batch
    "linear": {"kernels", "quantization"},
    "model": {"config", "batch", "kernels", "linear", "quantization"},
    "intake": {"errors", "config", "sampling", "grammar", "quantization"},
    "text": {"errors", "intake", "sampling"},
    "grammar": {"errors", "text"},
    "chat": {"errors", "intake", "sampling", "text"},
    "sampling": {"errors", "intake", "grammar", "kernels"},
    "weights": {"errors", "config", "intake", "kernels", "linear", "model", "quantization"},
    # `test_book.py` says who: build.py alone
    "engine": TEXT_TO_TEXT
    | {"engine.fast", "engine.speculation", "parallel", "cluster", "recorder"},
    "engine.memory": {"errors", "config", "engine"},
    "engine.scheduling": {"errors", "config", "intake", "sampling", "engine", "engine.memory"},
    "engine.fast": TEXT_TO_TEXT,
    "engine.speculation": {"engine", "engine.memory", "engine.scheduling", "intake"},
    "parallel": TEXT_TO_TEXT | {"engine.fast"},
    "__init__": {"errors", "config", "engine", "sampling", "text", "remote"},
    "recorder": {"errors", "config", "engine", "engine.memory"},
    "reference": {"errors", "config", "intake", "text", "weights", "sampling"},
    "remote": TEXT_TO_TEXT,
    "server": TEXT_TO_TEXT | {"remote", "__init__"},
    "translation": {"errors", "intake", "sampling", "text", "chat", "engine"},
    "cluster": TEXT_TO_TEXT | {"remote", "server"},
    "proof": OVER_THE_ENGINE | {"parallel", "engine.speculation"},
    "bench": OVER_THE_ENGINE | {"engine.fast", "__init__"},
    "teaching": OVER_THE_ENGINE | {"proof", "bench", "parallel", "recorder"},
    "models": set(),
    "commands": OVER_THE_ENGINE
    | {"cli", "remote", "server", "cluster", "bench", "translation"}
    | {"teaching"},  # the pre-flight of a workshop asks what the lessons would
    "cli": {"errors", "commands"},
    "__main__": {"cli"},
}
NO_PICKLE = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def modules(root: Path) -> dict[str, ast.Module]:
    """Module name → syntax tree, for every file of the package under `root`."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


@pytest.fixture(scope="module")
def package() -> dict[str, ast.Module]:
    return modules(ROOT)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports(tree: ast.AST, *, types: bool = True) -> Iterator[str]:
    """Dotted names that a tree imports anywhere; `types=False` leaves out TYPE_CHECKING blocks."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif types or not is_type_checking(node):
            yield from imports(node, types=types)


def shelf(dotted: str) -> str:
    """`plamo_ref.engine.memory.cache` → engine.memory; `plamo_ref.server.edge.gate` → server."""
    names = dotted.split(".")[1:]
    two = ".".join(names[:2])
    return two if two in MAY_IMPORT else names[0] if names else "__init__"


def wrong_directions(package: dict[str, ast.Module]) -> list[str]:
    wrong = []
    for name, tree in package.items():
        mine = shelf(name)
        for target in imports(tree):
            if not target.startswith(f"{PACKAGE}."):
                continue
            theirs = shelf(target) if shelf(target) in MAY_IMPORT else "__init__"
            if theirs != mine and theirs not in MAY_IMPORT.get(mine, set()):
                wrong.append(f"{name} imports {target}")
    return wrong


def circle(package: dict[str, ast.Module]) -> list[str]:
    """Names of modules that import each other in a circle, at run time; [] if none do."""
    graph = {}
    for name, tree in package.items():
        targets = set()
        for dotted in imports(tree, types=False):
            owner = dotted if dotted in package else dotted.rpartition(".")[0]
            if owner in package and owner != name:
                targets.add(owner)
        graph[name] = targets
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def aliases(tree: ast.Module) -> dict[str, str]:
    """Local name → what it stands for: `import torch.nn.functional as F` → {"F": "torch.nn…"}."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                names[name] = alias.name if alias.asname else name
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


@cache  # two rules ask, and it takes as long as all others together
def dotted_uses(tree: ast.Module) -> set[str]:
    """Everything imported, and every `a.b.c` in the code with `a` spelt out."""
    names, uses = aliases(tree), set(imports(tree))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        chain = re.fullmatch(r"(\w+)(\.[\w.]+)", ast.unparse(node))
        if chain:
            uses.add(names.get(chain[1], chain[1]) + chain[2])
    return uses


def private_torch(tree: ast.Module) -> list[str]:
    private = re.compile(r"torch\b.*\._(?!_)")
    return sorted(use for use in dotted_uses(tree) if private.match(use))


def pickles(tree: ast.Module) -> list[str]:
    uses = dotted_uses(tree)
    found = [use for use in uses if use.partition(".")[0] in NO_PICKLE]
    found += [use for use in uses if use in {"torch.load", "torch.save"}]
    found += [use for use in uses if use.startswith("multiprocessing.reduction")]
    found += [
        "allow_pickle"
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle"
    ]
    return sorted(found)


def test_no_module_is_over_300_lines():
    sizes = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in (ROOT / PACKAGE).rglob("*.py")
    }
    assert {path: size for path, size in sizes.items() if size > MAX_LINES} == {}


def test_no_function_is_over_50_lines_and_none_of_triton_over_120():
    long = []
    for path in (ROOT / PACKAGE).rglob("*.py"):
        limit = MAX_TRITON if path.name.startswith("triton") else MAX_FUNCTION
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or 0) - node.lineno + 1
                if size > limit:
                    long.append((path.relative_to(ROOT).as_posix(), node.name, size))
    assert long == []


def test_contributing_says_the_sizes_that_are_tested():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    sizes = f"at most {MAX_LINES} lines, a function {MAX_FUNCTION} (in a Triton file {MAX_TRITON})"
    assert sizes in text
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]
    assert f"a line {ruff['line-length']} columns" in text


def test_every_module_says_what_it_never_breaks(package):
    """A folder's own file and the way in have nothing to keep."""
    folders = {n for n in package if (ROOT / n.replace(".", "/")).is_dir()}
    silent = [
        name
        for name, tree in package.items()
        if name not in {*folders - {PACKAGE}, f"{PACKAGE}.__main__"}
        and not re.search(r"Invariants?\b", ast.get_docstring(tree) or "")
    ]
    assert silent == []


def test_every_module_says_what_it_is(package):
    """An __init__.py without a line of code has nothing to say."""
    silent = [n for n, tree in package.items() if tree.body and not ast.get_docstring(tree)]
    assert silent == []


def test_imports_run_one_way(package):
    assert wrong_directions(package) == []


def test_no_modules_import_each_other_in_a_circle(package):
    assert circle(package) == []


def test_nobody_imports_notebooks_tests_or_tools(package):
    outside = {"notebooks", "tests", "tools", "benchmarks"}
    wrong = [(n, i) for n, tree in package.items() for i in imports(tree)]
    assert [(n, i) for n, i in wrong if i.partition(".")[0] in outside] == []


def test_no_private_torch(package):
    assert {n: found for n, tree in package.items() if (found := private_torch(tree))} == {}


def test_no_pickle(package):
    assert {n: found for n, tree in package.items() if (found := pickles(tree))} == {}


def test_no_code_is_made_from_strings_and_no_globals(package):
    calls = {"eval", "exec", "compile"}
    slips = "plamo_ref.teaching.mutants"  # of lessons: our own source, a word changed
    wrong = []
    assert slips in package
    for name, tree in package.items():
        if name == slips:
            continue
        for node in ast.walk(tree):
            named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if (named and node.func.id in calls) or isinstance(node, ast.Global):
                wrong.append(f"{name}, line {node.lineno}: {ast.unparse(node)}")
    assert wrong == []


# --- what no file may name -----------------------------------------------------------------------

# Joined here, so that this file does not name them either.
HOSTS = [
    ".".join(name)
    for name in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("anaconda", "com"),
        ("anaconda", "org"),
        ("npmjs", "org"),
        ("debian", "org"),
        ("ubuntu", "com"),
        ("pytorch", "org/whl"),
        ("crates", "io"),
    )
]
FOLDERS = ["/".join(("", name, "")) for name in ("work", "root", "opt")]
FORBIDDEN = re.compile(
    "|".join(
        [
            *(rf"(?<![\w-]){re.escape(host)}" for host in HOSTS),
            # A path of its own, not the middle of a URL or of another path.
            *(rf"(?<![\w.:/-]){re.escape(folder)}(?=\w|\.)" for folder in FOLDERS),
            re.escape("../" + "shared"),
        ]
    )
)


def files_of_the_repository() -> list[Path]:
    """Tracked files and those that could be; without git, all that are not hidden."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listing.returncode == 0:
        found = [ROOT / name for name in listing.stdout.decode().split("\0") if name]
    else:
        inside = (path.relative_to(ROOT) for path in ROOT.rglob("*"))
        found = [ROOT / p for p in inside if not any(name.startswith(".") for name in p.parts)]
    return [path for path in found if path.is_file()]


def text_files() -> dict[str, str]:
    texts = {}
    for path in files_of_the_repository():
        content = path.read_bytes()
        if b"\0" not in content:
            texts[path.relative_to(ROOT).as_posix()] = content.decode("utf-8", "replace")
    return texts


def test_no_file_names_a_registry_or_a_folder_of_one_machine():
    texts = text_files()
    assert "pyproject.toml" in texts
    found = {name: match[0] for name, text in texts.items() if (match := FORBIDDEN.search(text))}
    assert found == {}


# --- the rules themselves notice what they are there for ------------------------------------------


def made_of(tmp_path: Path, **sources: str) -> dict[str, ast.Module]:
    for name, source in sources.items():
        path = tmp_path / PACKAGE / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return modules(tmp_path)


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("kernels__norm", "engine__cache", False),
        ("kernels__norm", "model", False),
        ("kernels__norm", "text__tokenizer", False),
        ("kernels__norm", "errors", True),
        ("model", "kernels__norm", True),
        ("engine__memory__cache", "engine__scheduling__scheduler", False),
        ("engine__scheduling__scheduler", "engine__memory__cache", True),
        ("engine__core", "proof__law", False),
        ("engine__fast__graphs", "remote__async_llm", False),
        ("somewhere_new", "errors", False),
        ("model", "engine__cache", False),
        ("reference__model", "cli", False),
        ("engine__core", "model", True),
        ("engine__core", "server__app", False),
        ("engine__core", "teaching__checks", False),
        ("config", "errors", True),
        ("config", "kernels__norm", False),
        ("server__app", "engine__core", True),
        ("server__app", "commands__serve", False),
        ("commands__serve", "server__app", True),
    ],
)
@pytest.mark.parametrize(
    "form", ["import plamo_ref.{}", "def f():\n    from plamo_ref.{} import x"]
)
def test_import_directions_are_noticed(tmp_path, importer, imported, allowed, form):
    statement = form.format(imported.replace("__", "."))
    package = made_of(tmp_path, **{importer: statement, imported: "x = 1"})
    assert (wrong_directions(package) == []) is allowed


def test_circles_are_noticed(tmp_path):
    one, other = "from plamo_ref.b import x", "from plamo_ref import a"
    assert set(circle(made_of(tmp_path, a=one, b=other))) == {"plamo_ref.a", "plamo_ref.b"}
    guarded = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from plamo_ref import a"
    assert circle(made_of(tmp_path, a=one, b=guarded)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch._dynamo",
        "from torch import _C",
        "from torch._inductor import config",
        "import torch\ntorch.ops._x.y(1)",
        "import torch.nn.functional as F\nF._scaled(1)",
        "from torch import nn\nnn.modules._Loss",
    ],
)
def test_private_torch_is_noticed(source):
    assert private_torch(ast.parse(source)) != []


def test_public_torch_is_left_alone():
    source = "import torch\nprint(torch.__version__, torch.nn.Linear, self._torch, torch_._x)"
    assert private_torch(ast.parse(source)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from multiprocessing.reduction import ForkingPickler",
        "from torch import load",
        "import torch as t\nt.save(1)",
        "f(allow_pickle=1)",
    ],
)
def test_pickles_are_noticed(source):
    assert pickles(ast.parse(source)) != []


@pytest.mark.parametrize("host", HOSTS)
def test_hosts_are_noticed(host):
    assert FORBIDDEN.search(f"see https://{host}/x")
    assert FORBIDDEN.search(f"mirror files.{host}")


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_of_one_machine_are_noticed(folder):
    assert FORBIDDEN.search(f"open('{folder}main/x')")
    assert not FORBIDDEN.search(f"https://example.com{folder}main")
    assert not FORBIDDEN.search(f"tests{folder}main")
