"""The command that opens the studio."""

from pathlib import Path
from typing import Annotated

import typer

from slicebook.cli.options import Device, Model, say


def studio(
    model: Model,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Any but that of this computer wants a password.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 7860,
    password_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File with a password of 12 or more characters, for which the page asks; any user name "
            "will do.",
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Open a page in the browser to look at, generate, inpaint and judge slices with one model.

    Needs the extra `studio`. The page loads nothing from the internet, and files stay on this computer.
    """
    from slicebook.errors import ConfigError, DataError

    try:
        from slicebook.studio.app import run_studio
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("slicebook"):
            raise
        raise ConfigError(
            f"slicebook studio: the package {error.name} is missing; pip install 'slicebook[studio]'"
        ) from error
    password = None
    if password_file is not None:
        try:
            password = password_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{password_file}: cannot be read as text; write the password into it") from error
    run_studio(str(model), host=host, port=port, password=password, device=device, say=say)
