"""Progress of a training: a progress bar on a terminal, lines in a log, TensorBoard if installed."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as ProgressBar

from slicebook.progress import Progress, ProgressLine


class Display:
    """Progress display of one run.

    Args:
        run: Folder of the run; TensorBoard's events go there when the package is installed.
        shown: Whether anything is printed.
    """

    def __init__(self, run: Path, *, shown: bool) -> None:
        self.run, self._shown = run, shown
        self.console = Console(stderr=True, quiet=not shown, highlight=False)
        self.bar = ProgressBar(
            SpinnerColumn(),
            TextColumn("{task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[scores]}"),
            console=self.console,
            disable=not shown or not self.console.is_terminal,
        )
        self.task = self.bar.add_task("", total=1.0, epoch="starting", scores="")
        self.writer = _tensorboard(run) if shown else None

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        if self.writer:
            self.writer.close()

    def say(self, text: str) -> None:
        """Print a line."""
        # Paths may contain [brackets], and logs are searched by line: no markup, no wrapping.
        self.console.print(text, markup=False, soft_wrap=True)

    def counter(self, what: str) -> Progress | None:
        """Return the progress line of work before the training; None if nothing is printed."""
        return ProgressLine(what) if self._shown else None

    def begin(self, fraction: float, *, resumed: bool) -> None:
        """Start the estimate of the remaining time at a completed fraction."""
        self.started, self.from_fraction = time.perf_counter(), fraction
        if resumed:
            self.say(f"{self.run}: resuming at {fraction:.0%}")

    def trained(self, epoch: int, fraction: float, scores: Mapping[str, float]) -> None:
        """Show the mean scores of the epoch so far."""
        done = max(fraction - self.from_fraction, 1e-9)
        left = (time.perf_counter() - self.started) / done * (1 - fraction)
        text = f"{_line(scores)}  {left // 60:.0f}:{left % 60:02.0f} left"
        self.bar.update(self.task, completed=fraction, epoch=f"epoch {epoch + 1}", scores=text)

    def validated(self, step: int, row: Mapping[str, float], *, best: bool) -> None:
        """Print a line for a validation."""
        self.say(f"epoch {row['epoch']:.0f}  {_line(row)}{'  best so far' if best else ''}")
        if self.writer:
            for name, value in row.items():
                self.writer.add_scalar(name, value, step)


def _line(scores: Mapping[str, float]) -> str:
    parts = []
    for prefix in ("", "train_", "validation_"):
        metrics = [
            f"{name} {scores[prefix + name]:.4f}"
            for name in ("loss", "ssim", "dice", "sharpness")
            if prefix + name in scores
        ]
        nats = [f"{scores[name]:.2f}" for name in scores if name.startswith(f"{prefix}nats_")]
        metrics += [f"nats per token {' '.join(nats)}"] if nats else []
        if metrics:
            parts.append(" ".join([*([prefix[:-1]] if prefix else []), *metrics]))
    usage = [f"{value:.0%}" for name, value in sorted(scores.items()) if name.startswith("usage_")]
    if usage:
        parts.append(f"codes in use {' '.join(usage)}")
    parts.append(f"{scores['images_per_second']:.0f} images/s")
    return "  ".join(parts)


def _tensorboard(run: Path) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(run)
