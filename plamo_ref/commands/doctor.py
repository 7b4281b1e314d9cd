"""Check what will run on this machine, what will not, and why.

Invariant: the exit code is 0 exactly if the main job, generating with the embedded model, was done
here and now, and, with --workshop, the first lesson has its packages. Every other line is advice.
"""

import os
import platform
from collections.abc import Iterator
from importlib import metadata

import click

from plamo_ref.commands._findings import PROJECT, Finding, memory_bytes, packages, version_of
from plamo_ref.errors import PlamoRefError


def python() -> Finding:
    wanted = metadata.metadata(PROJECT)["Requires-Python"]
    from packaging.specifiers import SpecifierSet

    version = platform.python_version()
    ok = SpecifierSet(wanted).contains(version)
    return Finding(ok, f"Python {version}", "" if ok else f"this project wants {wanted}")


def memory() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    nbytes = memory_bytes()
    if nbytes is None:
        return Finding(True, f"{platform.machine()}, {cores} cores")
    return Finding(True, f"{platform.machine()}, {cores} cores, {nbytes / 2**30:.1f} GiB memory")


def devices() -> Iterator[Finding]:
    """The GPUs, and whether the Triton kernels run on them."""
    import torch

    if not torch.cuda.is_available():
        built = "has no CUDA in it" if torch.version.cuda is None else "sees no GPU"
        why = f"torch {torch.__version__} {built}; everything else runs on the CPU"
        yield Finding(False, "GPU and its lessons", why)
        yield Finding(True, "Triton kernels: small sizes only, in its interpreter")
        return
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        size = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        yield Finding(True, f"GPU {index}: {gpu.name}, sm_{gpu.major}{gpu.minor}, {size}")
    triton = version_of("triton")
    yield Finding(triton is not None, "Triton kernels", "" if triton else "pip install triton")


def main_job() -> Finding:
    """Load the embedded model and generate one token."""
    what = "generate with tiny"
    try:
        from plamo_ref.engine.llm import LLM
        from plamo_ref.sampling import SamplingParams

        LLM("tiny").generate("吾輩は", SamplingParams(max_tokens=1), use_tqdm=False)
    except (PlamoRefError, OSError, ImportError) as error:
        return Finding(False, what, " ".join(str(error).split()))
    return Finding(True, what)


@click.command()
@click.option("--workshop", is_flag=True, help="which lessons will run here, lesson by lesson")
@click.pass_context
def doctor(context: click.Context, workshop: bool) -> None:
    """Check this machine: versions, devices, what will run and what will not.

    The exit code is 0 unless generating with the embedded model is impossible; with --workshop,
    unless that or the first lesson is.
    """
    click.echo(python())
    lessons_run = _workshop() if workshop else _everything()
    job = main_job()
    click.echo(job)
    if not (job.ok and lessons_run):
        context.exit(1)


def _everything() -> bool:
    for finding in packages():
        click.echo(finding)
    click.echo(memory())
    try:
        for finding in devices():
            click.echo(finding)
    except ImportError as error:
        click.echo(Finding(False, "torch", f"cannot be imported: {error}"))
    return True


def _workshop() -> bool:
    """The pre-flight; whether the lessons run at all."""
    from plamo_ref.commands import _workshop as preflight

    found = preflight.findings()
    for finding in found.values():
        click.echo(finding)
    try:
        slower = preflight.speed() / preflight.REFERENCE_SECONDS
    except ImportError as error:
        click.echo(Finding(False, "torch", f"cannot be imported: {error}"))
        return False
    for line in preflight.report(found, slower):
        click.echo(line)
    return found["lessons"].ok
