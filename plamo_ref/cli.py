"""The command line `plamo-ref`: finds its commands, runs one, turns errors into one line.

Invariant: a mistake of the user is one line on stderr and exit code 2, an interrupt is 130, a
closed pipe is silent; a traceback means a bug. `plamo-ref --help` imports no command, so no torch.

Each module of plamo_ref/commands is a command: the file NAME.py has a click command called NAME,
and the first line of its docstring is its line in `--help`. A leading _ marks a shared part.
"""

import ast
import importlib
import importlib.util
import io
import os
import pkgutil
import sys
import warnings
from collections.abc import Sequence

import click

from plamo_ref import commands
from plamo_ref.errors import PlamoRefError

PROGRAM = "plamo-ref"
USAGE_ERROR = 2
INTERRUPTED = 128 + 2  # what a shell reports for SIGINT
PIPE_CLOSED = 128 + 13  # … and for SIGPIPE


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        found = (module.name for module in pkgutil.iter_modules(commands.__path__))
        return sorted(name for name in found if not name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"{commands.__name__}.{cmd_name}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command), f"{module.__name__}: {cmd_name} is no command"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in `--help`, from the docstrings alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _first_line(name)) for name in self.list_commands(ctx)])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name=PROGRAM)
def cli() -> None:
    """PLaMo 2, small enough to read in a day.

    A model is "tiny" (inside this package), a folder, or a hub id such as pfnet/plamo-2-1b.
    """


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line `args` (None: that of the process) and return its exit code."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no Japanese shows "?"
    arguments = list(sys.argv[1:] if args is None else args)
    try:
        # Not cli.main(): it turns a closed pipe into exit code 1 and an interrupt into a message.
        with cli.make_context(PROGRAM, arguments or ["--help"]) as context:
            cli.invoke(context)
        sys.stdout.flush()  # here, where a closed pipe can still be caught
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()
        return PIPE_CLOSED
    except click.ClickException as error:
        return _refuse(_with_hint(error))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == __package__:
            raise  # a bug of ours, not a missing extra
        hint = f"pip install '{PROGRAM}[notebooks,server]', or see `{PROGRAM} doctor`"
        return _refuse(f"{error.name} is not installed: {hint}")
    except (PlamoRefError, OSError) as error:
        return _refuse(str(error) or type(error).__name__)
    return 0


def _first_line(name: str) -> str:
    """First line of the docstring of a command's module, which is not imported."""
    spec = importlib.util.find_spec(f"{commands.__name__}.{name}")
    source = spec.loader.get_source(spec.name) if spec and spec.loader else None  # type: ignore[attr-defined]
    return (ast.get_docstring(ast.parse(source or "")) or "").partition("\n")[0]


def _with_hint(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context else PROGRAM
    return f"{error.format_message().rstrip('.')} (see {command} --help)"


def _refuse(message: str) -> int:
    click.echo(f"{PROGRAM}: {' '.join(message.split())}", err=True)
    return USAGE_ERROR


def _forget_stdout() -> None:
    """Nobody reads any more: keep the interpreter from failing when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
