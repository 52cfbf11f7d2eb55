"""The command line: its commands, errors and exit statuses."""

import codecs
import io
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from slicebook.cli import data, evaluate, export, prior, report, studio, tokenizer, train
from slicebook.cli.options import say
from slicebook.errors import SlicebookError, StoppedBySignalError
from slicebook.version import __version__

_NAMES_AS_THEY_ARE = "slicebook.names"
INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: a script that reads it repeats the command

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: rich alone takes longer to import than all of this
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog="Research software, not a medical device.",
)
app.add_typer(train.app, name="train", help="Train a tokenizer, mask tokenizer, prior or decoder.")

for command in (
    tokenizer.demo,
    data.phantom,
    data.check,
    data.prepare,
    prior.generate,
    prior.inpaint,
    prior.anomaly,
    tokenizer.reconstruct,
    tokenizer.encode,
    tokenizer.decode,
    evaluate.evaluate,
    report.compare,
    report.card,
    export.export,
    studio.studio,
    tokenizer.info,
    tokenizer.models,
):
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        arguments: Command-line arguments after `slicebook`. Default: those of this process.

    Returns:
        0 on success; 1 for an error that the user can fix, printed as one line on stderr; 2 for wrong usage;
        75 for work that SIGTERM or SIGUSR1 stopped, which the same command resumes. A bug ends in a
        traceback; with `--debug` every error does.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_NAMES_AS_THEY_ARE)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            app(args=[word for word in words if word != "--debug"], prog_name="slicebook")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (SlicebookError, OSError) as error:
        if "--debug" in words:
            raise
        typer.echo(f"slicebook: {' '.join(str(error).split())}", err=True)
        return INTERRUPTED if isinstance(error, StoppedBySignalError) else 1
    return 0


def _encode_anyhow(error: UnicodeError) -> tuple[str | bytes, int]:
    """Print what an encoding lacks: file names as their bytes, everything else as an escape.

    File names may be of another encoding than the terminal, and a terminal may know ASCII alone.
    """
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.backslashreplace_errors(error)


codecs.register_error(_NAMES_AS_THEY_ARE, _encode_anyhow)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning as one line, without the source line that raised it."""
    say(f"warning: {message}")


def _print_version(wanted: bool | None) -> None:
    if wanted:
        typer.echo(f"slicebook {__version__}")
        raise typer.Exit


@app.callback()
def slicebook(
    version: Annotated[
        bool | None,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version."),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of any error.")] = False,
) -> None:
    """Hierarchical VQ-VAE tokenizer and flow-based prior for 2D medical image slices."""
