"""Functions applied by several processes: order, errors, few items in flight, and processes that end."""

import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from helpers.worker_functions import end_the_process, refuse_three, slow_at_first

from slicebook.data.worker_pool import IN_FLIGHT, map_in_order
from slicebook.errors import DataError


def test_results_come_in_order_and_few_items_are_begun_before_they_are_taken(tmp_path: Path) -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(12):
            taken.append(number)
            yield number

    results = map_in_order(partial(slow_at_first, folder=tmp_path), items(), 2)
    assert next(results) == 0
    assert len(taken) <= 2 * IN_FLIGHT + 1
    assert list(results) == list(range(10, 120, 10))
    assert len(list(tmp_path.iterdir())) == 12


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_where_its_result_would_have(workers: int) -> None:
    results = map_in_order(refuse_three, range(6), workers)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="3: is not wanted"):
        next(results)


@pytest.mark.fault("killed worker", "of prepare or check: ends with a message; use fewer --workers")
def test_a_process_that_is_killed_gives_a_message() -> None:
    with pytest.raises(DataError, match=r"a process that reads volumes ended.*fewer --workers"):
        list(map_in_order(end_the_process, range(3), 1))


def test_the_processes_end_when_the_main_process_is_killed(tmp_path: Path) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from functools import partial
from pathlib import Path
from helpers.worker_functions import announce_and_wait
from slicebook.data.worker_pool import map_in_order
if __name__ == "__main__":
    list(map_in_order(partial(announce_and_wait, folder=Path({str(tmp_path)!r})), range(2), 2))
"""
    path = tmp_path.with_suffix(".py")
    path.write_text(script, encoding="utf-8")
    with subprocess.Popen([sys.executable, str(path)]) as main:
        try:
            wait_until(lambda: len(list(tmp_path.iterdir())) == 2, 120)
        finally:
            main.kill()
    workers = [int(child.name) for child in tmp_path.iterdir()]
    wait_until(lambda: not any(map(is_running, workers)), 30)


def is_running(process: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:
        return False


def wait_until(condition, seconds: float) -> None:
    """Wait for a condition; fail after some seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
