"""The page of the studio, and the server that shows it."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported; no request leaves this machine

import gradio as gr
import uvicorn
from fastapi import FastAPI
from fastapi.responses import FileResponse, PlainTextResponse, Response

from slicebook.errors import ConfigError
from slicebook.studio import generate, judge, look, paint
from slicebook.studio.context import DOWNLOADS, Studio
from slicebook.studio.guard import LOCAL, Guard
from slicebook.studio.study import MAX_UPLOAD
from slicebook.studio.workspace import MAX_SESSIONS, Workspace
from slicebook.version import __version__

QUEUE = 16  # actions that wait; further ones are answered 503
PORT = 7860
HOUSEKEEPING_SECONDS = 20.0
MIN_PASSWORD = 12  # characters
FILES = Path(__file__).parent / "static"
FOOT = "Research software, not a medical device. Nothing that you open here leaves this computer."


@dataclass(frozen=True)
class Page:
    """The application of a studio.

    Attributes:
        app: As ASGI.
        blocks: Its layout.
        studio: Model and temporary files.
    """

    app: Guard
    blocks: gr.Blocks
    studio: Studio


def make_page(model: str, workspace: Workspace, *, device: str = "auto", password: str | None = None) -> Page:
    """Read a model and lay out its page.

    Raises:
        CheckpointError: There is no trained model.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(workspace.uploads)
    studio = Studio.open(model, device, workspace)

    async def build() -> tuple[FastAPI, gr.Blocks]:
        return _application(studio)

    # In a running loop: elsewhere gradio makes loops of its own and never closes them. In a thread: the
    # caller may have a loop.
    with ThreadPoolExecutor(1) as executor:
        app, blocks = executor.submit(asyncio.run, build()).result()
    return Page(Guard(app, max_upload=MAX_UPLOAD, password=password), blocks, studio)


def _application(studio: Studio) -> tuple[FastAPI, gr.Blocks]:
    """Return the page of a studio with its files."""
    blocks, report = _blocks(studio)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _add_files(app, studio, report)
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        max_file_size=MAX_UPLOAD,
        theme=_theme(),
        css=(FILES / "studio.css").read_text(encoding="utf-8"),
        head=f"<script>{(FILES / 'studio.js').read_text(encoding='utf-8')}</script>",
    )
    # Or gradio would take any path of this machine that a request names for an upload.
    blocks.has_launched = True
    return app, blocks


def _blocks(studio: Studio) -> tuple[gr.Blocks, Path | None]:
    """Lay out all tabs; return the page of a report too."""
    with gr.Blocks(title="Slicebook studio", analytics_enabled=False, delete_cache=(600, 600)) as blocks:
        gr.HTML(_heading(studio), elem_id="heading")
        with gr.Tab("Look", id="look"):
            look.build(studio)
        with gr.Tab("Generate", id="generate"):
            generate.build(studio)
        with gr.Tab("Paint", id="paint", elem_id="paint-tab") as tab:
            paint.build(studio, tab)
        with gr.Tab("Judge", id="judge"):
            report = judge.build(studio)
        gr.HTML(f"<p>{FOOT}</p>", elem_id="foot")

        def leaving(request: gr.Request) -> None:
            studio.workspace.close_session(request.session_hash or "")

        blocks.unload(leaving)
    blocks.state_session_capacity = MAX_SESSIONS
    blocks.queue(max_size=QUEUE, default_concurrency_limit=1, api_open=False)
    return blocks, report


def _heading(studio: Studio) -> str:
    levels = studio.tokenizer.tokenizer.levels
    words = [f"tokenizer of {levels} levels"]
    if studio.prior is not None:
        kind = studio.prior.slices[0]
        masks = " with masks" if studio.prior.masks else ""
        words = [f"generator of slices{masks}, {kind.rows} × {kind.columns}", *words]
    words += [f"weights {studio.weights[:12]}", f"Slicebook {__version__}"]
    return f'<h1>Slicebook studio</h1><p class="sb-facts">{" · ".join(words)}</p>'


def _theme() -> gr.themes.Base:
    fonts = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    return gr.themes.Default(
        primary_hue="blue", neutral_hue="slate", radius_size="sm", font=fonts[0], font_mono=fonts[1]
    )


def _add_files(app: FastAPI, studio: Studio, report: Path | None) -> None:
    """Serve the results of pages, and the report of the model."""

    @app.get(f"/{DOWNLOADS}/{{token}}/{{name}}")
    def download(token: str, name: str) -> Response:
        path = studio.workspace.offered(token)
        if path is None or path.name != name:
            return PlainTextResponse("This file is no longer there; make it again.", 404)
        return FileResponse(path, filename=path.name)

    @app.get(f"/{judge.REPORT_PATH}")
    def whole_report() -> Response:
        if report is None:
            return PlainTextResponse("There is no report of this model.", 404)
        return FileResponse(report, media_type="text/html")


def check_host(host: str, password: str | None) -> None:
    """Refuse to be reachable by others without a password.

    Raises:
        ConfigError: There is none, or it is short.
    """
    if password is not None and len(password) < MIN_PASSWORD:
        raise ConfigError(f"the password has {len(password)} characters, wanted {MIN_PASSWORD} or more")
    if host not in LOCAL and password is None:
        raise ConfigError(
            f"host {host}: others could open the studio, wanted a password; write one of {MIN_PASSWORD} or "
            "more characters into a file and add --password-file FILE, or leave the host at 127.0.0.1"
        )


@contextmanager
def serving(page: Page, *, host: str = "127.0.0.1", port: int = PORT) -> Iterator[tuple[uvicorn.Server, int]]:
    """Yield a server that is bound to a port, and the port.

    Raises:
        ConfigError: The port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} of {host}: cannot be used ({error.strerror}); choose another --port"
            ) from error
        config = uvicorn.Config(
            page.app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2
        )
        server = uvicorn.Server(config)
        run = server.run
        server.run = lambda sockets=None: run(sockets or [listening])  # type: ignore[method-assign]  # our socket
        yield server, listening.getsockname()[1]


@contextmanager
def housekeeping(workspace: Workspace) -> Iterator[None]:
    """Remove old uploads every few seconds, and give freed memory back where the C library can (glibc).

    A server whose threads allocated large arrays would keep most of them.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(HOUSEKEEPING_SECONDS):
            workspace.sweep()
            gc.collect()
            if trim is not None:
                trim(0)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def run_studio(
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    password: str | None = None,
    device: str = "auto",
    say: Callable[[str], Any] = print,
) -> None:
    """Show the studio of a model until it is interrupted.

    Args:
        model: Model file, run folder, demo folder or starter:NAME.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        password: Wanted of everybody who opens the page.
        device: auto, cpu, cuda or mps.
        say: Called with the address.

    Raises:
        CheckpointError: There is no trained model.
        ConfigError: The host is not this machine and there is no password, or the port is taken.
    """
    check_host(host, password)
    workspace = Workspace()
    try:
        page = make_page(model, workspace, device=device, password=password)
        with serving(page, host=host, port=port) as (server, bound), housekeeping(workspace):
            say(f"http://{host}:{bound} (stop with Ctrl+C)")
            server.run()
    finally:
        workspace.close()
