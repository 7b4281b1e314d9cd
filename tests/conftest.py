"""How thorough property tests are: HYPOTHESIS_PROFILE=ci (the default) or nightly; the order;
who collects first, and what the collector of garbage need not look at.

Invariant tested: a test without settings of its own follows the profile.
"""

import gc
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# jsonschema (nbformat imports it) makes 38 parsers of it as it is imported, 1.4 s in each process,
# for a format of addresses that no test of ours checks; without it, it leaves that format out.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

# torch.compile keeps processes that would compile Triton's kernels, each of which imports torch; on
# a CPU they have nothing to do.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

# What a shared machine does to a test's time says nothing about the test.
_PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}

settings.register_profile("ci", max_examples=100, derandomize=True, **_PATIENT)
settings.register_profile("nightly", max_examples=10_000, print_blob=True, **_PATIENT)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Processes share the tests a file at a time: were a long one begun last, the others would wait.
_LONGEST_FIRST = (
    "test_lab",
    "test_triton_compile",
    "test_triton_kernels",
    "test_editions",
    "test_notebooks",
    "test_faults",
    "test_teaching_gallery",
    "test_precompile",
    "test_bench_floors",
    "test_server_scenarios",
    "test_server_clients",
    "test_server_tools",
    "test_recovery",
    "test_engine_law",
    "test_bench",
    "test_parallel_processes",
    "test_compile_layers",
    "test_server",
    "test_async_llm",
    "test_compiling",
    "test_site",
    "test_teaching",
)

MOST_PATIENCE = 120  # s, for another process to collect


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"{name}.py": place for place, name in enumerate(_LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Thousands of tests and what they import live to the end: to look for garbage among them while
    they are made is a sixth of each process's collection. Nor is it looked for there later, until
    an engine that ends gives back what was set aside."""
    with _first_alone(session.config):
        gc.disable()
        try:
            return (yield)
        finally:
            gc.enable()
            gc.freeze()


@contextmanager
def _first_alone(config: pytest.Config) -> Iterator[None]:
    """Of a run's processes one collects first: in a new environment it compiles 3,000 files and all
    tests, which takes longer than the rest, and the others find that done."""
    run = getattr(config, "workerinput", {}).get("testrunuid")
    if run is None:
        yield
        return
    begun, end = Path(tempfile.gettempdir(), f"collecting-{run}"), time.monotonic() + MOST_PATIENCE
    try:
        begun.touch(exist_ok=False)
    except FileExistsError:
        while begun.exists() and time.monotonic() < end:
            time.sleep(0.1)
        yield
        return
    try:
        yield
    finally:
        begun.unlink()
