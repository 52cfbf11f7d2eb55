"""Tensors read from a file do not depend on the file any more."""

import subprocess
import sys
from pathlib import Path

import torch

from slicebook.io.tensors import State, load_state, save_state


def test_tensors_stay_when_their_file_gets_shorter(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, State({"values": torch.ones(100_000)}, {}))
    # In a process of its own: reading a memory map whose file became shorter ends the process.
    script = (
        "import os, sys; from pathlib import Path; from slicebook.io.tensors import load_state;"
        "path = Path(sys.argv[1]); values = load_state(path).tensors['values'];"
        "os.truncate(path, 0); print(values.sum().item())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout.strip()) == (0, "100000.0"), ended.stderr


def test_a_state_is_what_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, State({"values": torch.arange(5)}, {"step": 3}))
    state = load_state(path)
    assert (state.tensors["values"].tolist(), state.progress) == ([0, 1, 2, 3, 4], {"step": 3})
