"""What tests of the studio share: a running studio, and requests of a page."""

import json
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import httpx

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
    before = os.environ.get("GRADIO_TEMP_DIR", "")
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
    os.environ["GRADIO_TEMP_DIR"] = before  # of another studio that this process may have
    assert not workspace.root.exists()


def request_of(page: str = "a page") -> gr.Request:
    """Return a request as a page sends it."""
    return gr.Request(session_hash=page)


class HttpPage:
    """A page of a studio without a browser: it sends what its script would send."""

    def __init__(self, address: str) -> None:
        self.client = httpx.Client(base_url=address, timeout=120)
        self.config = self.client.get("/config").json()
        self.session = uuid.uuid4().hex

    def function(self, name: str, event: str) -> int:
        """Return the number of what an element starts; where buttons are only exchanged, of what follows."""
        names = {part["id"]: part["props"].get("elem_id") for part in self.config["components"]}
        after = {one.get("trigger_after"): one["id"] for one in self.config["dependencies"]}
        (found,) = (
            one["id"]
            for one in self.config["dependencies"]
            for target, kind in one["targets"]
            if names.get(target) == name and kind == event
        )
        return int(after.get(found, found))

    def act(self, name: str, *data: Any, event: str = "click") -> list[Any]:
        """Run one function and return its outputs."""
        number = self.function(name, event)
        body = {"data": data, "fn_index": number, "session_hash": self.session, "trigger_id": 1}
        self.client.post("/gradio_api/queue/join", json=body).raise_for_status()
        with self.client.stream(
            "GET", "/gradio_api/queue/data", params={"session_hash": self.session}
        ) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:") and '"process_completed"' in line:
                    return list(json.loads(line[5:])["output"].get("data", []))
        raise AssertionError("the stream ended")

    def upload(self, path: Path) -> dict[str, Any]:
        """Send a file; return it as the page's script names it."""
        answer = self.client.post("/gradio_api/upload", files={"files": (path.name, path.read_bytes())})
        return file_data(answer.json()[0])


def file_data(path: str) -> dict[str, Any]:
    """Return an upload as the page's script names it."""
    return {"path": path, "orig_name": Path(path).name, "meta": {"_type": "gradio.FileData"}}
