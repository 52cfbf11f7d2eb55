"""`scripts/accelerator`: every part once, tiny and on the CPU; repeated, failed and interrupted commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from slicebook.data.prepare import prepare
from slicebook.phantom import simulator

ROOT = Path(__file__).parents[2]
OF_256 = ["promise12-256-compact", "promise12-256-detail"]

pytestmark = pytest.mark.filterwarnings("ignore:level")  # few codes are in use after a second of training


@pytest.fixture(scope="module")
def script():
    """`accelerator.py`, whose parts run in this process, where Python and torch are loaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        for target in ("visualization.figures.batch", "visualization.figures.curves"):
            patch.setattr(f"slicebook.{target}", lambda *_, **__: None)
        patch.setattr("slicebook.evaluation.reconstruction._draw", lambda *_, **__: None)
        import accelerator

        patch.setattr(accelerator, "call_alone", accelerator.call, raising=False)
        patch.setattr(accelerator, "call", lambda command, seconds: accelerator.main(command[2:]))
        patch.setenv("PYTHONPATH", str(ROOT / "src"))
        yield accelerator


def options(folder, *words):
    """Phantom slices of 128 pixels stand in for real patients."""
    places = ["--work", folder / "work", "--results", folder / "results", "--data", folder / "prepared"]
    return [str(word) for word in ("--device", "cpu", "--tiny", "--processes", 1, *places, *words)]


def results(folder):
    (path,) = (folder / "results").iterdir()
    return path, json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def done(script, tmp_path_factory):
    """All parts in one command: its folder and its exit status."""
    folder = tmp_path_factory.mktemp("accelerator")
    simulator.write_hipmri(folder / "raw", patients=(1, 1, 1), slices=4, shape=(128, 32))
    prepare(folder / "raw", folder / "prepared")
    return folder, script.main(options(folder))


@pytest.fixture
def started(script, tmp_path, monkeypatch):
    """A list to which parts that do nothing else add their names; `second` fails."""
    names: list[str] = []

    def part(name):
        def run(job):
            names.append(name)
            if name == "second" and "heal" not in names:
                raise ValueError("out of memory")
            return {"device": str(job.device)}

        return run

    monkeypatch.setattr(script, "PARTS", {name: part(name) for name in ("first", "second", "third")})
    return names


def test_every_part_runs_and_its_result_is_under_the_name_of_the_card(script, done):
    folder, status = done
    path, content = results(folder)
    card = script.machine.card(torch.device("cpu"))
    assert status == 0
    assert content["card"] == card
    assert path.name == f"accelerator-{script.machine.file_name(card)}.json"
    assert [*content["parts"]] == [name for name in script.PARTS if name not in OF_256]
    assert all(part["hardware"]["cpu"] for part in content["parts"].values())


def test_parts_without_data_are_skipped_with_the_reason(script, done, capsys):
    assert script.main(options(done[0], *OF_256)) == 0
    reason = "no folder of --data has slices of 256 pixels"
    assert [line for line in capsys.readouterr().err.splitlines() if "skipped" in line] == [
        f"{name}: skipped: {reason}" for name in OF_256
    ]


def test_a_repeated_command_does_nothing_more(script, done, monkeypatch):
    path, _ = results(done[0])
    before = path.read_bytes()
    monkeypatch.setattr(script, "call", lambda *_, **__: pytest.fail("a finished part ran again"))
    assert script.main(options(done[0])) == 0
    assert path.read_bytes() == before


def test_the_tests_of_the_gpu_path_ran_on_the_device(done):
    assert results(done[0])[1]["parts"]["tests"]["passed"] == ["test_a_tokenizer_trains[32-true]"]


def test_speeds_and_sampling_of_recipes_are_there(done):
    speed = results(done[0])[1]["parts"]["speed"]
    assert {"slicebook", "matrix product"} <= set(speed["quantizers"]["settings"][0]["contenders"])
    assert {"ladder", "vqvae2"} <= set(speed["networks"]["settings"][0]["contenders"])
    tasks = [setting["task"] for setting in speed["recipes"]["settings"]]
    assert tasks == ["training", "reconstruction"]
    assert all(one["contenders"]["compact"]["images_per_second"] > 0 for one in speed["recipes"]["settings"])
    assert speed["sampling"]["compact"]["contenders"]["slicebook"]["seconds_per_slice"] > 0


def test_the_founding_recipe_has_a_curve_of_held_out_slices(script, done):
    part = results(done[0])[1]["parts"]["comp3710"]
    assert [row["step"] for row in part["curve"]] == [2, 4]
    assert part["curve"][-1]["validation_ssim"] < 1
    assert part["test"]["patients"] == 1


def test_the_step_that_passes_the_goal_is_the_first_above_it(script):
    curve = [{"step": step, "validation_ssim": ssim} for step, ssim in ((10, 0.5), (20, 0.7), (30, 0.6))]
    from accelerator_parts import passing_step

    assert passing_step(curve, 0.6) == 20
    assert passing_step(curve, 0.7) is None


def test_starters_and_real_patients_are_scored_beside_the_codecs(done):
    parts = results(done[0])[1]["parts"]
    for test in (parts["starter-compact"]["zero_shot"]["half"], parts["promise12-128-detail"]["test"]):
        assert test["patients"] == 1
        assert set(test["codecs"]) == {"jpeg2000", "jpegxl"}


def test_a_part_that_fails_is_tried_again_after_the_others(script, started, done, tmp_path):
    words = options(done[0], "--work", str(tmp_path / "work"), "--results", str(tmp_path / "results"))
    assert script.main(words) == 1
    assert started == ["first", "second", "third"]
    assert [*results(tmp_path)[1]["parts"]] == ["first", "third"]
    started[:] = ["heal"]
    assert script.main(words) == 0
    assert started == ["heal", "second"]
    assert json.loads((tmp_path / "work" / "failed.json").read_text())["failed"] == []


def test_a_command_whose_time_is_up_says_what_is_left(script, started, done, tmp_path, capsys):
    words = options(done[0], "--work", str(tmp_path / "work"), "--results", str(tmp_path / "results"))
    assert script.main([*words, "--minutes", "0.1"]) == 3
    assert started == ["first"]
    assert "repeat the command for second, third" in capsys.readouterr().err


def test_a_part_whose_time_is_up_is_interrupted_as_by_ctrl_c(script, tmp_path, monkeypatch):
    program = (
        "import pathlib, time\n"
        "try:\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    pathlib.Path('interrupted').touch()"
    )
    monkeypatch.chdir(tmp_path)
    assert script.call_alone([sys.executable, "-c", program], 2) is None
    assert (tmp_path / "interrupted").exists()


def test_the_script_runs_a_part_in_a_process_of_its_own(done, tmp_path):
    environment = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    places = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    subprocess.run(
        [ROOT / "scripts" / "accelerator", *options(done[0]), *places, "environment"],
        env=os.environ | environment,
        check=True,
    )
    assert results(tmp_path)[1]["parts"]["environment"]["device"] == "cpu"
