"""What tests of the studio share: a running studio, and requests of a page."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from slicebook.studio.app import make_page, serving
from slicebook.studio.context import Studio
from slicebook.studio.workspace import Workspace


@dataclass(frozen=True)
class RunningStudio:
    """A studio that answers on a port of this machine."""

    address: str
    studio: Studio


@contextmanager
def running_studio(model: Path | str, **options: Any) -> Iterator[RunningStudio]:
    """Serve the studio of a model from a thread."""
    workspace = Workspace()
    page = make_page(str(model), workspace, device="cpu", **options)
    with serving(page, port=0) as (server, port):
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            thread.join(0.02)
        yield RunningStudio(f"http://127.0.0.1:{port}", page.studio)
        server.should_exit = True
        thread.join(20)
    workspace.close()
    assert not workspace.root.exists()


def request_of(page: str = "a page") -> gr.Request:
    """Return a request as a page sends it."""
    return gr.Request(session_hash=page)
