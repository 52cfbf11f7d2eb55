"""Synthetic data sets of the benchmarks: simulated by several processes, written and prepared."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicebook.data.prepare import prepare
from slicebook.io.atomic import replacing_folder
from slicebook.phantom.simulator import FIRST_CASE, PhantomVolume, write_hipmri


@dataclass(frozen=True)
class SyntheticSet:
    """Volumes of the phantom or of random shapes; they depend on these values alone."""

    patients: tuple[int, int, int]
    """Of training, validation and test; one volume each."""
    slices: int
    shape: tuple[int, int]
    seed: int
    simulate: Callable[..., PhantomVolume]

    def prepared(self, work: Path, processes: int = 1) -> Path:
        """Write the set to `work`/phantom and prepare it in `work`/prepared, unless they exist."""
        raw, prepared = work / "phantom", work / "prepared"
        if not raw.is_dir():
            with replacing_folder(raw) as partial:
                self.write(partial, processes)
        if not (prepared / "dataset.json").is_file():
            prepare(raw, prepared)
        return prepared

    def write(self, folder: Path, processes: int = 1) -> None:
        """Write the set in the HipMRI layout; the files do not depend on the number of processes."""
        usual = {"seed": self.seed, "slices": self.slices, "shape": self.shape}
        whole: dict[str, Any] = {**usual, "patients": self.patients}
        if processes == 1:
            write_hipmri(folder, **whole, simulate=self.simulate)
            return
        # Not forked: a process that has used a GPU, or threads, cannot fork safely.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(processes, mp_context=context)
        try:
            cases = range(FIRST_CASE, FIRST_CASE + sum(self.patients))
            ahead = {case: pool.submit(self.simulate, case, 0, **usual) for case in cases}

            def simulate(case: int, week: int, **size: Any) -> PhantomVolume:
                volume = ahead.pop(case)
                # One patient of the layout has slices of another shape.
                return volume.result() if size == usual else self.simulate(case, week, **size)

            write_hipmri(folder, **whole, simulate=simulate)
        finally:
            pool.shutdown(cancel_futures=True)
