"""What all tabs share: the model, the temporary files, and how an action is answered."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from slicebook.errors import SlicebookError
from slicebook.models.checkpoint import (
    LoadedTokenizer,
    PriorInfo,
    find_prior,
    has_prior,
    load_tokenizer,
    read_info,
)
from slicebook.studio.job import Job, StoppedError
from slicebook.studio.workspace import Session, Workspace

MODEL_QUEUE = "model"  # computations that evaluate a network run one after the other
DOWNLOADS = "download"  # first part of the address of a file
_PATH = re.compile(r"(?<![\w.])/(?:[^\s:;,()'\"/]+/)+[^\s:;,()'\"]*")


@dataclass(frozen=True)
class Studio:
    """The model and the temporary files of a running studio.

    Attributes:
        model: Path or starter, as the commands take it.
        device: auto, cpu, cuda or mps.
        workspace: Temporary files.
        tokenizer: Tokenizer of the slices.
        prior: Metadata of the prior, if the model has one.
    """

    model: str
    device: str
    workspace: Workspace
    tokenizer: LoadedTokenizer
    prior: PriorInfo | None

    @classmethod
    def open(cls, model: str, device: str, workspace: Workspace) -> Studio:
        """Read a model.

        Raises:
            CheckpointError: There is no trained model.
        """
        from slicebook.devices import choose_device

        info = read_info(find_prior(Path(model))) if has_prior(Path(model)) else None
        prior = info if isinstance(info, PriorInfo) else None
        return cls(model, device, workspace, load_tokenizer(model, choose_device(device)), prior)

    @property
    def weights(self) -> str:
        """SHA-256 of the weights of the prior, or of the tokenizer where there is none."""
        return (self.prior or self.tokenizer.info).weights_sha256

    def session(self, request: gr.Request) -> Session:
        """Return the session of the page that sent a request."""
        return self.workspace.session(request.session_hash or "")

    def link(self, file: Path, words: str) -> str:
        """Return a link that downloads a file; its address is secret and ends with the session."""
        megabytes = file.stat().st_size / 1e6
        name = escape(file.name)
        address = f"{DOWNLOADS}/{self.workspace.offer(file)}/{name}"
        return (
            f'<a class="sb-download" download="{name}" href="{address}">'
            f"{escape(words)} <small>{megabytes:.1f} MB</small></a>"
        )


def status(words: str, kind: str = "status") -> str:
    """Return a line that screen readers announce; `alert` for errors."""
    return f'<p class="sb-status sb-{kind}" role="{kind}">{escape(words)}</p>'


def cleaned(message: str) -> str:
    """Return a message without the paths of this machine."""
    return _PATH.sub("the file", " ".join(message.split()))


def answering(outputs: Sequence[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function of a page answer errors in words in its first output, and keep its other outputs.

    The words of an error of Slicebook are shown without paths. Of any other error nothing is shown: it is
    printed where the studio was started.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def answer(*arguments: Any) -> Any:
            try:
                return function(*arguments)
            except StoppedError:
                words = status("Stopped.")
            except SlicebookError as error:
                words = status(cleaned(str(error)), "alert")
            except Exception:
                traceback.print_exc(file=sys.stderr)
                words = status("This did not work, because of a fault in Slicebook.", "alert")
            return words if len(outputs) == 1 else (words, *[gr.skip()] * (len(outputs) - 1))

        return answer

    return decorate


def run_job(session: Session, steps: int, words: str, progress: gr.Progress, work: Callable[[], Any]) -> Any:
    """Run a computation with a progress bar; the session can stop it.

    Raises:
        BusyError: The page computes already.
        StoppedError: It was stopped.
    """
    job = Job(steps, lambda share: progress(share, desc=words))
    session.start(job)
    progress(0, desc=words)
    with job.running():
        result = work()
        job.check()  # stopped while no network was evaluated
        return result
