"""Measure everything that needs a GPU, in parts; a repeated command goes on with the next unfinished part.

    scripts/accelerator --data PROMISE128 --data PROMISE256
    scripts/accelerator speed comp3710
    scripts/accelerator --list

A part runs in a process of its own and adds its result to `results/accelerator-CARD.json`. Data, runs and
models are in `--work`. A command ends after `--minutes` and interrupts its part: a training loses the steps
since its last saved state and goes on with the next command. A part that failed is tried again after all
others.

Exit status: 0 if all parts are finished or skipped, 1 if a part failed, 2 for a wrong option, 3 if time was
up (repeat the command).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import machine
import torch
from accelerator_parts import FULL, PARTS, TINY, Job, reason_to_skip

from slicebook.devices import DEVICES, choose_device
from slicebook.errors import SlicebookError

FINISHED, FAILED, UNFINISHED = 0, 1, 3  # exit statuses
GRACE = 30.0  # seconds in which an interrupted part may end
LEAST = 20.0  # seconds: with less time left, no further part is begun
PACKAGES = ("monai", "vector-quantize-pytorch", "medtokenizers", "imagecodecs")


class Record:
    """The results of a card, and in the work folder the names of failed parts."""

    def __init__(self, results: Path, work: Path, card: str) -> None:
        self.card = card
        self.path = results / f"accelerator-{machine.file_name(card)}.json"
        self.failures = work / "failed.json"

    def parts(self) -> dict[str, Any]:
        """Return the results of the finished parts by name."""
        parts: dict[str, Any] = _read(self.path).get("parts", {})
        return parts

    def failed(self) -> list[str]:
        """Return the names of the parts that failed when they ran last."""
        names: list[str] = _read(self.failures).get("failed", [])
        return names

    def finish(self, name: str, result: Mapping[str, Any]) -> None:
        """Add the result of a part."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        machine.write(self.path, {"card": self.card, "parts": self.parts() | {name: result}})

    def fail(self, name: str, failed: bool) -> None:
        """Write whether a part failed."""
        others = [other for other in self.failed() if other != name]
        machine.write(self.failures, {"failed": [*others, name] if failed else others})


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content


def run_part(name: str, job: Job, record: Record) -> int:
    """Run a part in this process and write its result; return the exit status."""
    started = time.perf_counter()
    try:
        result = PARTS[name](job)
    except Exception as error:
        if not isinstance(error, SlicebookError):
            traceback.print_exc()
        print(f"{name}: failed: {error}", file=sys.stderr)
        return FAILED
    about = machine.surroundings(torch.get_num_threads(), *PACKAGES, device=job.device)
    record.finish(name, about | {"wall_seconds": time.perf_counter() - started} | result)
    return FINISHED


def run_parts(names: Sequence[str], record: Record, minutes: float, command: Sequence[str]) -> int:
    """Run unfinished parts, each as a process of its own, until the time is up; return the exit status.

    Args:
        names: Parts in their order.
        record: Says which are finished, and which failed.
        minutes: Of all parts together.
        command: Runs the part whose name is added.
    """
    end = time.monotonic() + 60 * minutes
    finished, failed_before = record.parts(), record.failed()
    # Those that failed come last, so that no other waits for them.
    todo = sorted((name for name in names if name not in finished), key=lambda name: name in failed_before)
    print(f"{record.path.name}: {len(names) - len(todo)} of {len(names)} parts are finished", file=sys.stderr)
    failed = False
    for index, name in enumerate(todo):
        left = end - time.monotonic()
        if index and left < LEAST:
            return _time_is_up(todo[index:], failed)
        print(f"{name}: {left / 60:.1f} minutes left", file=sys.stderr)
        status = call(command=[*command, name], seconds=left)
        if status is None:
            return _time_is_up(todo[index:], failed)
        record.fail(name, status != FINISHED)
        failed |= status != FINISHED
        ending = "finished" if status == FINISHED else f"failed with status {status}"
        print(f"{name}: {ending}", file=sys.stderr)
    return FAILED if failed else FINISHED


def _time_is_up(names: Sequence[str], failed: bool) -> int:
    print(f"time is up; repeat the command for {', '.join(names)}", file=sys.stderr)
    return FAILED if failed else UNFINISHED


def call(command: Sequence[str], seconds: float) -> int | None:
    """Run a command; return its exit status, or None if it was interrupted because its time was up."""
    process = subprocess.Popen(command)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        return None
    finally:
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(given)
    if options.list:
        print(*PARTS, sep="\n")
        return FINISHED
    try:
        device = choose_device(options.device)
        job = Job(
            device, options.work, tuple(options.data), options.processes, TINY if options.tiny else FULL
        )
        names = [name for name in PARTS if not options.parts or name in options.parts]
        reasons = {name: reason for name in names if (reason := reason_to_skip(name, job))}
    except SlicebookError as error:
        print(f"accelerator: {error}", file=sys.stderr)
        return FAILED
    options.work.mkdir(parents=True, exist_ok=True)
    record = Record(options.results, options.work, machine.card(device))
    if options.here:
        # A shell that runs a command in the background makes it ignore the signal.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return run_part(options.here, job, record)
    for name, reason in reasons.items():
        print(f"{name}: skipped: {reason}", file=sys.stderr)
    command = [sys.executable, __file__, *given, "--here"]
    return run_parts([name for name in names if name not in reasons], record, options.minutes, command)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART", help="all by default")
    parser.add_argument("--list", action="store_true", help="print the names of the parts and end")
    parser.add_argument(
        "--data",
        type=Path,
        action="append",
        default=[],
        metavar="DATA",
        help="prepared folder of PROMISE12 with slices of 128 or 256 pixels; may be repeated",
    )
    parser.add_argument("--minutes", type=float, default=9, help="after which this command ends")
    parser.add_argument("--device", choices=DEVICES, default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that a CPU finishes, to try the parts out")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that simulate phantoms")
    parser.add_argument("--work", metavar="DIR", type=Path, default=Path("runs/accelerator"))
    parser.add_argument("--results", metavar="DIR", type=Path, default=machine.RESULTS)
    parser.add_argument("--here", choices=list(PARTS), metavar="PART", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
