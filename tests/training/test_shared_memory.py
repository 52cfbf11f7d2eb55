"""Loading processes where /dev/shm has 64 MB, as in a container without --shm-size."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.training import prepared_folder

SETTINGS = ("tokenizer.codebook_sizes=[16,8,8]", "tokenizer.width=16", "training.epochs=1")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepared_folder(tmp_path_factory.mktemp("data") / "prepared", patients=(3, 2, 1), slices=8)


def train_in_small_memory(*words: str) -> subprocess.CompletedProcess[str]:
    """Train with two loading processes where 64 MB are mounted on /dev/shm for this command alone."""
    mount = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    command = [sys.executable, "-m", "slicebook", "train", "tokenizer", *words, "--workers", "2"]
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh", *command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.fault("small shared memory", "64 MB: a training whose batches fit runs to its end")
def test_loading_processes_work_with_64_mb_of_shared_memory(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = train_in_small_memory(str(data), "--recipe", "generate", "-o", str(run), *SETTINGS)
    assert ended.returncode == 0, ended.stderr
    assert (run / "model.safetensors").is_file()


@pytest.mark.fault("small shared memory", "64 MB: batches that do not fit are refused in one line")
def test_batches_that_64_mb_cannot_hold_are_refused_in_one_line(data: Path, tmp_path: Path) -> None:
    words = (*SETTINGS, "training.batch_size=4096")
    ended = train_in_small_memory(str(data), "--recipe", "generate", "-o", str(tmp_path / "run"), *words)
    assert ended.returncode == 1
    (line,) = [line for line in ended.stderr.splitlines() if "shared memory" in line]
    assert "64 MiB of shared memory are free, wanted 96 MiB" in line
    assert "use --workers 0" in line
    assert "Traceback" not in ended.stderr
