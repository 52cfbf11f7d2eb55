"""Training speed by number of threads, alone and beside a process that keeps one core busy.

    python benchmarks/threads.py --rounds 3 --seconds 4

Each measurement is a process of its own, because OpenMP reads its settings once. Settings take turns, so that
a change of the machine's load meets all of them. The result is `results/threads.json`: images per second, the
median over rounds.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import machine
import torch

from slicebook.models.tokenizer import Tokenizer
from slicebook.recipes import load_recipe

SIZE, BATCH = 64, 16


def train(threads: int, seconds: float) -> float:
    """Return images per second of training steps of the recipe `demo`, forward and backward."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    tokenizer = Tokenizer(load_recipe("demo").tokenizer).train()
    images = torch.rand(BATCH, 1, SIZE, SIZE) * 2 - 1

    def step() -> None:
        (tokenizer(images).images - images).abs().mean().backward()

    step()
    steps, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        step()
        steps += 1
    return steps * BATCH / (time.perf_counter() - started)


def measure(threads: int, seconds: float, *, busy: bool) -> float:
    """Return images per second in a process of its own, beside a busy one if asked for."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))
    }
    loop = f"import time\nend = time.time() + {seconds + 60}\nwhile time.time() < end: pass"
    neighbour = subprocess.Popen([sys.executable, "-c", loop]) if busy else None
    try:
        command = [sys.executable, __file__, "--single", str(threads), "--seconds", str(seconds)]
        return float(
            subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        )
    finally:
        if neighbour:
            neighbour.kill()
            neighbour.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each setting")
    parser.add_argument("--seconds", type=float, default=4, help="per measurement")
    parser.add_argument("--single", type=int, metavar="THREADS", help=argparse.SUPPRESS)
    parser.add_argument("--results", metavar="DIR", type=Path, default=machine.RESULTS)
    options = parser.parse_args(arguments)
    if options.single:
        print(train(options.single, options.seconds))
        return 0
    cores = os.cpu_count() or 1
    rounds: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for threads in sorted({cores, max(1, cores - 1)}, reverse=True):
            for busy in (False, True):
                name = (
                    f"{threads} thread{'s' * (threads > 1)}, {'beside a busy process' if busy else 'alone'}"
                )
                rounds.setdefault(name, []).append(measure(threads, options.seconds, busy=busy))
    result = {
        "machine": machine.surroundings(cores),
        "images_per_second": {
            name: {"median": statistics.median(speeds), "rounds": speeds} for name, speeds in rounds.items()
        },
    }
    machine.write(options.results / "threads.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
