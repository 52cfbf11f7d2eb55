"""The command line: exit statuses, one line for an error, and the whole way from volumes to scores."""

import json
import re
from functools import partial

import nibabel as nib
import numpy as np
import pytest
import typer.main

from slicebook.cli import main
from slicebook.errors import DataError
from slicebook.evaluation.evaluate import evaluate
from slicebook.models.checkpoint import load_prior, load_tokenizer
from slicebook.version import __version__

TINY = """
name: tiny
tokenizer: {scaling_rates: [8, 2], codebook_sizes: [16, 8], code_dim: 4, width: 16, residual_layers: 1}
training: {epochs: 1, batch_size: 4, augment: null}
labels: {tokenizer: {codebook_sizes: [8], width: 16}, training: {epochs: 1}}
decoder: {widths: [32, 32], embedding: 16, training: {epochs: 1}}
prior:
  widths: [32]
  blocks: 1
  embedding: 16
  training: {epochs: 2, validate_every: 1, num_views: 1}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe that trains in seconds."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared folder of phantom patients."""
    folder = tmp_path_factory.mktemp("data")
    make = [
        "phantom",
        "-o",
        str(folder / "raw"),
        "--patients",
        "2",
        "1",
        "1",
        "--slices",
        "4",
        "--size",
        "32",
        "64",
    ]
    assert main.main(make) == 0
    assert main.main(["prepare", str(folder / "raw"), "-o", str(folder / "prepared")]) == 0
    return folder / "prepared"


@pytest.fixture(scope="module")
def run(prepared, recipe, tmp_path_factory):
    """The folder of a finished training."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    train = ["train", "tokenizer", str(prepared), "--recipe", str(recipe), "--out", str(folder)]
    assert main.main([*train, "--device", "cpu"]) == 0
    return folder


@pytest.fixture
def volume(tmp_path):
    """A volume of another site, with an oblique affine."""
    turn = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]]) * [3.0, 3.0, 5.0]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn, [-80, -40, 12]
    array = np.random.default_rng(0).gamma(2, 100, (40, 24, 3)).astype(np.float32)
    path = tmp_path / "volume.nii.gz"
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def answer(capsys, *arguments):
    """Run a command that must succeed, and return the JSON it printed."""
    capsys.readouterr()
    assert main.main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_version_is_that_of_the_package(capsys):
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == f"slicebook {__version__}\n"


@pytest.mark.parametrize(
    "line",
    [
        "frobnicate",
        "prepare",
        "check a b",
        "evaluate m d",
        "phantom -o x --seed -1",
        "decode m in.npz out.nii.gz",
    ],
)
def test_a_line_that_is_no_command_ends_with_2(line, capsys):
    assert main.main(line.split()) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "line",
    [
        "check nowhere",
        "prepare nowhere -o out",
        "train tokenizer nowhere",
        "train tokenizer nowhere --recipe grand",
        "train tokenizer nowhere training.epoch=3",
        "reconstruct nowhere in.nii.gz -o out",
        "encode nowhere in.nii.gz -o out.safetensors",
        "decode nowhere in.safetensors -o out.nii.gz",
        "evaluate nowhere data --out out",
        "compare nowhere elsewhere",
        "compare nowhere",
        "card nowhere",
        "info nowhere",
        "train prior nowhere",
        "train masks nowhere",
        "train decoder nowhere",
        "train generator nowhere",
        "generate nowhere --out out",
        "inpaint nowhere in.nii.gz mask.nii.gz -o out",
        "anomaly nowhere in.nii.gz -o out",
    ],
)
def test_a_mistake_is_one_line_and_ends_with_1(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(line.split()) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("slicebook: ")
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ["--debug check nowhere", "check nowhere --debug"])
def test_debug_shows_where_an_error_came_from(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError):
        main.main(line.split())


@pytest.mark.parametrize(
    "command",
    [
        "reconstruct {} in.nii.gz -o out",
        "evaluate {} data --out out",
        "info {}",
        "train prior {}",
        "train generator {}",
        "generate {} --out out",
    ],
)
def test_asked_before_any_training_a_command_says_what_to_run(command, tmp_path, capsys):
    assert main.main(command.format(tmp_path).split()) == 1
    assert "slicebook train tokenizer" in capsys.readouterr().err


def commands(group, words=()):
    """Each command, by its words."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


def test_every_output_is_named_by_the_same_option():
    outputs = {
        name: [option.opts for option in command.params if option.name == "out"]
        for name, command in commands(typer.main.get_command(main.app))
    }
    without = sorted(name for name, options in outputs.items() if not options)
    assert without == ["check", "info", "models", "studio"]
    assert {tuple(opts) for options in outputs.values() for opts in options} == {("-o", "--out")}


def test_trainings_take_the_same_options():
    options = {
        name.split()[1]: {option.name for option in command.params}
        for name, command in commands(typer.main.get_command(main.app))
        if name.startswith("train ")
    }
    assert list(options) == ["tokenizer", "masks", "prior", "decoder", "generator"]
    shared = {"settings", "data", "out", "seed", "device", "precision", "workers", "restart", "start_from"}
    assert set.intersection(*options.values()) == shared | {"as_json"}


def test_check_prints_a_table_or_json(volume, capsys):
    assert main.main(["check", str(volume.parent)]) == 0
    assert "layout" in capsys.readouterr().out
    assert answer(capsys, "check", volume.parent)["slices"] == 3


def test_check_ends_with_1_where_a_file_cannot_be_read(volume, capsys):
    (volume.parent / "torn.nii.gz").write_bytes(volume.read_bytes()[:-20])
    assert main.main(["check", str(volume.parent), "--json"]) == 1
    assert any("torn.nii.gz" in reason for reason in json.loads(capsys.readouterr().out)["unreadable"])


def test_prepare_splits_by_patient(prepared, capsys):
    counts = answer(capsys, "info", prepared)["counts"]
    assert [counts[split]["patients"] for split in ("train", "validation", "test")] == [2, 1, 1]


def test_info_tells_a_models_recipe_and_origin(run, capsys):
    info = answer(capsys, "info", run)
    assert info["recipe"]["name"] == "tiny"
    assert info["provenance"]["train_patients"] == 2


def test_training_again_goes_on_where_it_stopped(run, prepared, recipe, capsys):
    before = (run / "model.safetensors").stat().st_mtime_ns
    again = answer(
        capsys, "train", "tokenizer", prepared, "--recipe", recipe, "--out", run, "--device", "cpu"
    )
    assert again["epochs"] == 1
    assert (run / "model.safetensors").stat().st_mtime_ns == before


def test_evaluate_scores_held_out_patients(run, prepared, tmp_path, capsys):
    report = answer(capsys, "evaluate", run, prepared, "--out", tmp_path / "report", "--device", "cpu")
    assert report["patients"] == 1
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == report


@pytest.mark.parametrize(
    ("parts", "parsed"),
    [
        (None, None),
        ("memorization", ["memorization"]),
        ("reconstruction, generation", ["reconstruction", "generation"]),
    ],
)
def test_evaluate_takes_parts_between_commas(parts, parsed, run, prepared, tmp_path, monkeypatch):
    def refuse(*_, **how):
        raise DataError(str(how["parts"]))

    monkeypatch.setattr("slicebook.api.evaluation.run_evaluation", refuse)
    line = ["--debug", "evaluate", str(run), str(prepared), "-o", str(tmp_path / "report")]
    with pytest.raises(DataError, match=f"^{re.escape(str(parsed))}$"):
        main.main([*line, *(["--parts", parts] if parts else [])])


def test_generate_takes_the_plane_of_given_masks(run, volume, tmp_path, monkeypatch, capfd):
    def refuse(*given, **_):
        raise DataError(str(given[3].plane))

    monkeypatch.setattr("slicebook.inference.from_masks.generate_for_masks", refuse)
    line = ["generate", str(run), "-o", str(tmp_path / "new")]
    for plane in ("coronal", None):
        words = ["--plane", plane] if plane else []
        assert main.main([*line, "--masks", str(volume), *words]) == 1
        assert capfd.readouterr().err.splitlines()[-1] == f"slicebook: {plane}"
    assert main.main([*line, "--plane", "coronal"]) == 1
    assert "--plane coronal: is the plane of the slices of --masks" in capfd.readouterr().err


def test_reconstruct_writes_a_volume_where_the_input_lay(run, volume, tmp_path, capsys):
    out = tmp_path / "out"
    answer(capsys, "reconstruct", run, volume, "-o", out, "--device", "cpu")
    (written,) = out.glob("*.nii.gz")
    np.testing.assert_array_equal(nib.nifti1.load(written).affine, nib.nifti1.load(volume).affine)
    assert nib.nifti1.load(written).shape == nib.nifti1.load(volume).shape
    assert list(out.glob("**/*.png"))


def test_decoding_the_tokens_equals_reconstructing(run, volume, tmp_path, capsys):
    tokens, decoded, out = tmp_path / "tokens.safetensors", tmp_path / "decoded.nii.gz", tmp_path / "out"
    for command in (
        ["encode", run, volume, "-o", tokens],
        ["decode", run, tokens, "--out", decoded],
        ["reconstruct", run, volume, "-o", out, "--no-pictures"],
    ):
        answer(capsys, *command, "--device", "cpu")
    (reconstructed,) = out.glob("*.nii.gz")
    np.testing.assert_array_equal(nib.nifti1.load(decoded).affine, nib.nifti1.load(volume).affine)
    np.testing.assert_allclose(
        nib.nifti1.load(decoded).get_fdata(), nib.nifti1.load(reconstructed).get_fdata(), rtol=1e-4
    )


def test_training_a_prior_tells_how_it_went_and_again_goes_on(run, prepared, capsys):
    assert main.main(["train", "prior", str(run), "--device", "cpu"]) == 1
    assert f"slicebook train masks {run}; or give --no-masks" in capsys.readouterr().err
    answer(capsys, "train", "masks", run, "--device", "cpu")
    line = ["train", "prior", run, "prior.training.epochs=3", "--device", "cpu"]
    first = answer(capsys, *line)
    assert (first["run"], first["epochs"]) == (str(run / "prior"), 3)
    assert answer(capsys, *line) == first


def test_generate_draws_so_many_samples_from_a_seed_on(trained, tmp_path, capsys):
    line = ["generate", trained.run.parent, "-n", 2, "--seed", 5, "--size", 36, 64, "--device", "cpu"]
    summary = answer(capsys, *line, "--out", tmp_path / "out")
    assert (summary["samples"], summary["size"], summary["with_masks"]) == (2, [36, 64], True)
    names = sorted(path.name for path in (tmp_path / "out" / "pictures").iterdir())
    assert names == ["sample-000005.png", "sample-000006.png"]


def test_generate_hands_its_options_on(trained, tmp_path, capsys):
    options = ["--steps", 3, "--decoder-steps", 2, "--guidance", 1]
    out = tmp_path / "out"
    answer(capsys, "generate", trained.run, "-n", 1, "--position", 0.25, *options, "--out", out)
    assert "0.25" in (out / "manifest.csv").read_text()
    wanted = {"steps": 3, "decoder_steps": 2, "guidance": 1.0}
    assert json.loads((out / "generation.json").read_text())["settings"] == wanted


def test_inpaint_redraws_a_region_of_a_volume(trained, volume, tmp_path, capsys):
    image = nib.nifti1.load(volume)
    region = np.zeros(image.shape, np.uint8)
    region[8:20, 6:14, 1] = 1
    nib.save(nib.Nifti1Image(region, image.affine), tmp_path / "region.nii.gz")
    line = ["inpaint", trained.run, volume, tmp_path / "region.nii.gz", "-n", 2]
    summary = answer(capsys, *line, "--out", tmp_path / "out", "--device", "cpu")
    assert (summary["samples"], summary["slices"], summary["pixels"]) == (2, 1, 96)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == [
        "sample-00.nii.gz",
        "sample-01.nii.gz",
    ]


def test_anomaly_maps_a_volume(trained, volume, tmp_path, capsys):
    line = ["anomaly", trained.run, volume, "-o", tmp_path / "out", "--draws", 1, "--no-pictures"]
    summary = answer(capsys, *line, "--device", "cpu")
    assert (summary["volumes"], summary["slices"]) == (1, 3)
    assert nib.nifti1.load(tmp_path / "out" / "volume.nii.gz").shape == nib.nifti1.load(volume).shape


def test_the_demo_makes_everything_and_goes_on_when_repeated(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("slicebook.cli.demo.PATIENTS", (4, 1, 2))
    monkeypatch.setattr("slicebook.cli.demo.SLICES", 4)
    monkeypatch.setattr("slicebook.cli.demo.SEGMENTER_STEPS", 4)
    monkeypatch.setattr("slicebook.cli.demo.SHAPE", (64, 32))
    monkeypatch.setattr("slicebook.cli.demo.evaluate", partial(evaluate, samples=16, codecs=False))
    out = tmp_path / "demo"
    line = ["demo", "--out", out, "--recipe", recipe, "--device", "cpu"]
    first = answer(capsys, *line, "--from-scratch")
    assert first["evaluation"]["patients"] == 2
    wanted = ("phantom", "prepared", "run/model.safetensors", "run/curves.png", "reconstruction", "table.txt")
    assert [name for name in (*wanted, "evaluation/report.html") if not (out / name).exists()] == []
    parts = ("reconstruction", "generation", "memorization", "downstream")
    assert first["evaluation"]["skipped"] == {}
    assert all(first["evaluation"][part] for part in parts)
    again = answer(capsys, *line, "--from-scratch")
    assert [again["evaluation"][part] == first["evaluation"][part] for part in parts] == [True] * 4
    assert again["training"] == first["training"]
    assert load_tokenizer(out).info.provenance.initial is None
    assert main.main([str(word) for word in line]) == 1  # would start from other weights
    assert "contains a demo with other settings" in capsys.readouterr().err
    monkeypatch.setattr("slicebook.cli.demo.STARTER", out)
    monkeypatch.setattr(
        "slicebook.cli.demo.evaluate", partial(evaluate, parts=["reconstruction"], codecs=False)
    )
    other = tmp_path / "other"
    answer(capsys, "demo", "--out", other, "--recipe", recipe, "--device", "cpu")
    initial = [load_tokenizer(other).info.provenance.initial, load_prior(other).info.provenance.initial]
    assert [model and model.weights_sha256 for model in initial] == [
        load_tokenizer(out).info.weights_sha256,
        load_prior(out).info.weights_sha256,
    ]


def test_the_demo_leaves_a_strangers_folder_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main.main(["demo", "--out", str(tmp_path)]) == 1
    assert "--out" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
