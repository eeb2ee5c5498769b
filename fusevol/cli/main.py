"""The command `fusevol`: its subcommands, and how their failures are told."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

from fusevol import __version__
from fusevol.cli.mount import mount
from fusevol.cli.status import status
from fusevol.cli.unmount import unmount
from fusevol.cli.wait import wait
from fusevol.model.errors import UserError

INTERRUPTED = 130
"""What shells call a program that was ended by SIGINT."""

app = typer.Typer(
    name="fusevol",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command()(mount)
app.command()(wait)
app.command()(status)
app.command()(unmount)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fusevol {__version__}")
        raise typer.Exit


@app.callback()
def fusevol(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """One FUSE mount that serves the volumes of every Pod of a Kubernetes node.

    Every command finds the running instance by its mount point.

    Exit codes: 0 done, 1 not satisfied or failed, 2 wrong usage, 3 no such instance, 4 refused (privileges, memory
    lock, identity of the state directory).
    """


def main() -> int:
    """The console script. Mistakes are one line on stderr, never a traceback."""
    try:
        code = app(prog_name="fusevol", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except UserError as error:
        return _failed(str(error), error.exit_code)
    except TyperException as error:
        return _failed(error.format_message(), 2)
    except BrokenPipeError:
        # whoever read our output has enough; the interpreter must not try to flush the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _failed(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED


def _failed(message: str, code: int) -> int:
    print(f"fusevol: {message}" if message else "fusevol: failed", file=sys.stderr)
    return code
