"""The command line: which commands there are, and how one ends."""

import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from slicebook.cli import data, evaluate, prior, report, tokenizer
from slicebook.cli.options import say
from slicebook.errors import SlicebookError
from slicebook.version import __version__

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: rich alone takes longer to import than all of this
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog="Research software, not a medical device.",
)
train = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(train, name="train", help="Train a model on a prepared folder.")

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
    tokenizer.info,
):
    app.command()(command)
train.command("tokenizer")(tokenizer.train_tokenizer)
train.command("prior")(prior.train_prior)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        arguments: What stands after `slicebook` on the line; that of this process by default.

    Returns:
        0 when all went well; 1 when there is something for the user to mend, said in one line on stderr; 2
        for a line that is no command. A bug ends in a traceback, and with `--debug` so does everything else.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
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
        return 1
    return 0


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Say a warning as the rest is said, without the line of our source it came from."""
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
    """Learn a book of codes for medical image slices, and say how good it is."""
