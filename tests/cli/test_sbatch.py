"""The example of a SLURM job runs, against programs that stand in for SLURM's."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.training import OPTIONS, prepared_folder
from safetensors.torch import load_file

from slicebook.io.tensors import STATE_NAME, load_state
from slicebook.models.checkpoint import MODEL_NAME
from slicebook.recipes import load_recipe
from slicebook.training.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[2]
SETTINGS = [
    *("tokenizer.scaling_rates=[4, 2]", "tokenizer.codebook_sizes=[8, 4]", "tokenizer.code_dim=4"),
    *("tokenizer.width=16", "tokenizer.residual_layers=1", "training.batch_size=4"),
    *("training.epochs=40", "training.validate_every=40", "training.save_minutes=0.001"),
]

# Warns a first job as soon as it has saved a state, and lets later ones end.
SRUN = """#!/bin/bash
"$@" &
training=$!
if [ ! -e requeued ]; then
    until [ -e runs/cluster/state.safetensors ] || ! kill -0 $training; do sleep 0.01; done
    kill -USR1 $training
fi
wait $training
"""
SCONTROL = """#!/bin/bash
echo "$@" >> requeued
"""
SLICEBOOK = f"""#!/bin/bash
exec {sys.executable} -m slicebook "$@" --device cpu --precision 32-true {{settings}}
"""


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_the_sbatch_example_requeues_a_training_that_was_warned_and_then_ends(tmp_path):
    data = prepared_folder(tmp_path / "prepared")
    (tmp_path / "bin").mkdir()
    settings = " ".join(f"'{setting}'" for setting in SETTINGS)
    programs = {"srun": SRUN, "scontrol": SCONTROL, "slicebook": SLICEBOOK.format(settings=settings)}
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "SLURM_JOB_ID": "4711",
        "OMP_NUM_THREADS": "1",
    }

    def job():
        script = ["bash", str(ROOT / "docs" / "train.sbatch")]
        return subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True)

    first = job()
    assert first.returncode == 0, first.stderr
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"
    assert "stopped by SIGUSR1 after step" in first.stderr
    step = load_state(tmp_path / "runs" / "cluster" / STATE_NAME).progress["progress"]["step"]
    assert 0 < step < 120
    second = job()
    assert second.returncode == 0, second.stderr
    assert f"resuming at {step / 120:.0%}" in second.stderr
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"  # not again
    train_tokenizer(data, load_recipe("compact", SETTINGS), tmp_path / "whole", OPTIONS)
    resumed, whole = (load_file(tmp_path / run / MODEL_NAME) for run in ("runs/cluster", "whole"))
    assert [name for name in whole if not whole[name].equal(resumed[name])] == []


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_the_sbatch_example_ends_with_the_status_of_a_failed_training(tmp_path):
    (tmp_path / "srun").write_text("#!/bin/bash\nexit 3\n")
    (tmp_path / "srun").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    script = ["bash", str(ROOT / "docs" / "train.sbatch")]
    assert subprocess.run(script, cwd=tmp_path, env=environment).returncode == 3
