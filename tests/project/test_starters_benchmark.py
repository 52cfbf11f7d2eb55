"""`benchmarks/starters.py`: trains on synthetic images, scores on others, writes the files of the package."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from slicebook import starters
from slicebook.models.checkpoint import load_prior, load_tokenizer

ROOT = Path(__file__).parents[2]
SMALL = (
    "tokenizer.width=16",
    "tokenizer.code_dim=4",
    "tokenizer.codebook_sizes=[16, 8, 4]",
    "tokenizer.quantizer.kmeans_slices=4",
    "training.batch_size=4",
    "training.epochs=2",
    "training.augment.contrast.probability=0.3",
)
GENERATOR = (
    "labels.tokenizer.width=16",
    "labels.tokenizer.codebook_sizes=[8]",
    "labels.tokenizer.quantizer.kmeans_slices=4",
    "labels.training.epochs=1",
    "prior.widths=[32]",
    "prior.embedding=32",
    "prior.training.num_views=1",
    "prior.training.epochs=1",
    "decoder.widths=[32]",
    "decoder.embedding=32",
    "decoder.training.epochs=1",
)

pytestmark = pytest.mark.filterwarnings("ignore:level")  # few codes are in use after a second of training


@pytest.fixture(scope="module")
def made(trained, tmp_path_factory):
    """All three steps with a small starter: folder of the work, of the package, and the results."""
    folder = tmp_path_factory.mktemp("starters")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        import starters as script

        images = replace(script.IMAGES, patients=(2, 1, 1), slices=4, shape=(64, 32))
        patch.setattr(script, "STARTERS", (script.Starter("compact", images, settings=SMALL),))
        patch.setattr(script, "load_recipe", lambda name, settings: load(name, [*SMALL, *settings]))
        from slicebook.recipes import load_recipe as load

        (folder / "package").mkdir()
        patch.setattr(script.install, "__defaults__", (folder / "package",))
        shared = ["--work", str(folder / "work"), "--only", "compact", "--results", str(folder)]
        assert script.main(["score", str(trained.data), *shared]) == 1  # nothing is trained yet
        assert script.main(["train", *shared]) == 0
        names = ["--name", "other phantoms", "--other", "the same", str(trained.data)]
        assert script.main(["score", str(trained.data), *shared, *names]) == 0
        assert script.main(["tune", str(trained.data), *shared, "--minutes", "0.01"]) == 0
        with pytest.MonkeyPatch.context() as package:
            package.setattr(starters, "_folder", lambda: folder / "package")
            assert script.main(["refine", str(trained.data), *shared, *names[2:]]) == 0
        yield folder, json.loads((folder / "starters.json").read_text())["compact"]


def test_the_package_receives_weights_facts_and_card(made, monkeypatch):
    folder, results = made
    monkeypatch.setattr(starters, "_folder", lambda: folder / "package")
    assert starters.starter_names() == ("compact",)
    facts = starters.read_facts("compact")
    assert facts.ssim_whole == results["zero_shot"]["half"]["scores"]["ssim_whole"]["mean_of_patients"]
    assert facts.slices == 8
    card = starters.read_card("compact")
    assert f"SSIM {facts.ssim_whole:.3f} (whole slice)" in card
    assert "other phantoms, 1 patients" in card
    assert load_tokenizer("starter:compact").info.provenance.train_slices == 8


def test_a_generator_is_one_file_that_is_scored_on_other_phantoms_too(trained, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import generation
    import starters as script

    images = replace(script.PHANTOMS, patients=(3, 1, 2), slices=4, shape=(64, 32))
    whole = script.Starter("generate", images, script.PELVES, SMALL, tuple(GENERATOR))
    for name, value in {"STARTERS": (whole,), "SAMPLES": 24, "SEGMENTER_STEPS": 4}.items():
        monkeypatch.setattr(script, name, value)
    monkeypatch.setattr(generation, "SHOWN", 4)
    monkeypatch.setattr(script.install, "__defaults__", (tmp_path / "package",))
    (tmp_path / "package").mkdir()
    shared = ["--work", str(tmp_path / "work"), "--results", str(tmp_path)]
    assert script.main(["train", *shared]) == 0
    assert script.main(["score", str(trained.data), *shared, "--name", "phantoms"]) == 0
    monkeypatch.setattr(starters, "_folder", lambda: tmp_path / "package")
    assert [path.name for path in (tmp_path / "package/generate").glob("*.safetensors")] == [
        "model.safetensors"
    ]
    loaded, facts = load_prior("starter:generate"), starters.read_facts("generate")
    assert loaded.decoder is not None
    assert loaded.info.masks is not None
    assert facts.weights_sha256 == loaded.info.weights_sha256
    assert facts.generation is not None
    assert facts.generation.compared_with == "2 phantom patients that it was not trained on"
    assert "slicebook generate starter:generate" in starters.read_card("generate")
    assert (tmp_path / "work/generate-sheets/sheet.png").is_file()


def test_half_precision_halves_the_file_and_keeps_the_scores(made):
    folder, results = made
    whole, half = (folder / "work" / name / "model.safetensors" for name in ("compact", "compact-half"))
    assert half.stat().st_size < 0.65 * whole.stat().st_size
    scores = [
        results["zero_shot"][kind]["scores"]["ssim_whole"]["mean_of_patients"] for kind in ("float32", "half")
    ]
    assert scores[0] == pytest.approx(scores[1], abs=0.01)


def test_both_starts_are_trained_for_the_same_time(made):
    _, results = made
    runs = results["tuned"]
    assert set(runs) == {"0.01 minutes from random weights", "0.01 minutes from starter"}
    assert all(run["steps"] > 0 and run["test"]["patients"] == 1 for run in runs.values())
    initial = load_tokenizer(made[0] / "work/tuned/compact-starter-0.01min").info.provenance.initial
    assert initial is not None
    assert load_tokenizer(made[0] / "work/tuned/compact-random-0.01min").info.provenance.initial is None


def test_refined_tokens_have_higher_scores_at_the_same_bits(made):
    _, results = made
    pairs = [(results["zero_shot"]["half"], results["refined"]["test"])]
    pairs += [(run["test"], run["refined"]) for run in results["tuned"].values()]
    for plain, refined in pairs:
        assert (plain["refine"], refined["refine"]) == (0, 40)
        ssim = [report["scores"]["ssim_whole"]["mean_of_patients"] for report in (plain, refined)]
        assert ssim[1] > ssim[0]
        assert refined["bits_per_pixel"] == plain["bits_per_pixel"]


def test_further_data_are_scored_with_the_weights_of_the_package(made):
    zero_shot = made[1]["zero_shot"]
    assert zero_shot["others"] == {"the same": zero_shot["half"]}


def test_the_table_has_a_row_for_each_measurement(made, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from starter_tables import starters as draw
    from starter_tables import starters_elsewhere

    def titles(text):
        return [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][2:]

    results = {"starters": {"compact": made[1]}}
    assert titles(draw(results)) == [
        "**starter:compact**, no training on patients",
        "starter:compact, `--refine 40`",
        "0.01 minutes from random weights",
        "0.01 minutes from random weights, `--refine 40`",
        "0.01 minutes from starter",
        "0.01 minutes from starter, `--refine 40`",
        "JPEG 2000",
        "JPEG XL",
    ]
    assert titles(starters_elsewhere(results)) == [
        "the same: **starter:compact**, no training on patients",
        "the same: starter:compact, `--refine 40`",
        "the same: JPEG 2000",
        "the same: JPEG XL",
    ]


def test_the_images_do_not_depend_on_the_number_of_processes(made, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from synthetic import SyntheticSet

    from slicebook.phantom.simulator import patient_volume

    images = SyntheticSet((2, 1, 0), slices=4, shape=(32, 16), seed=3, simulate=patient_volume)
    for processes in (1, 2):
        images.write(tmp_path / str(processes), processes)
    alone, shared = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.gz")}
        for name in ("1", "2")
    )
    assert len(alone) == 3 * 4 * 2
    assert alone == shared


def test_codecs_code_the_same_slices(made):
    _, results = made
    assert set(results["zero_shot"]["half"]["codecs"]) == {"jpeg2000", "jpegxl"}
