"""The benchmarks measure what they say, and no page holds a number that was not measured."""

import json
import os
import shutil
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation

from slicebook.data.dataset import PreparedData
from slicebook.data.prepare import prepare
from slicebook.errors import DataError
from slicebook.evaluation.downstream import DownstreamResult
from slicebook.evaluation.generation import GenerationResult, SamplingInfo
from slicebook.models.checkpoint import load_tokenizer
from slicebook.phantom import simulator
from slicebook.recipes import load_recipe
from slicebook.training.generator import train_generator
from slicebook.training.run import TrainingOptions

ROOT = Path(__file__).parents[2]
SMALL = (
    "tokenizer.width=16",
    "tokenizer.code_dim=4",
    "tokenizer.quantizer.kmeans_slices=4",
    "training.batch_size=4",
)

pytestmark = pytest.mark.filterwarnings("ignore:level")  # few codes are in use after a second of training


@pytest.fixture(scope="module")
def scripts():
    """The scripts by name, imported as Python does when it runs one of them; no picture is drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        for target in (
            "visualization.figures.batch",
            "visualization.figures.curves",
            "evaluation.reconstruction._draw",
        ):
            patch.setattr(f"slicebook.{target}", lambda *_, **__: None)
        import anomaly
        import audit
        import evaluation
        import generation
        import quality
        import speed
        import table

        modules = (anomaly, audit, evaluation, generation, quality, speed, table)
        yield {script.__name__: script for script in modules}


def measure(scripts, folder, *more):
    """Run `quality.py` with small contenders."""
    script = scripts["quality"]
    tries = {f"vqvae2-lr-{rate}": (*SMALL, f"training.learning_rate={rate}") for rate in ("1e-7", "1e-2")}
    contenders = (
        script.Contender("compact", "demo", {"compact": SMALL}),
        script.Contender("vqvae2", "demo", tries),
    )
    words = ["--other-site", folder / "other", "--work", folder / "work", "--results", folder / "results"]
    words += ["--threads", 1, "--search-minutes", 0.01]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "CONTENDERS", contenders)
        return script.main([str(word) for word in (folder / "data", *words, *more)])


def result(folder, name="quality"):
    return json.loads((folder / "results" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """More training patients, prepared; those of another size than the rest are one."""
    folder = tmp_path_factory.mktemp("study")
    simulator.write_hipmri(folder / "phantom", patients=(4, 1, 2), slices=4, shape=(64, 32))
    prepare(folder / "phantom", folder / "prepared")
    return folder / "prepared"


@pytest.fixture(scope="module")
def measured(scripts, tmp_path_factory):
    """A whole measurement on two sites: a folder with `data`, `other`, `work` and `results`."""
    folder = tmp_path_factory.mktemp("measured")
    for name, patients in (("data", (2, 1, 2)), ("other", (0, 0, 2))):
        simulator.write_hipmri(folder / "phantom" / name, patients=patients, slices=4, shape=(64, 32))
        prepare(folder / "phantom" / name, folder / name)
    assert measure(scripts, folder, "--minutes", "0.01") == 0
    return folder


# --- quality.py


def test_the_founding_architecture_differs_from_compact_in_nothing_else(scripts):
    tries = {contender.name: contender for contender in scripts["quality"].CONTENDERS}["vqvae2"].tries
    recipes = [load_recipe("compact", settings) for settings in tries.values()]
    assert [recipe.training.learning_rate for recipe in recipes] == [1e-3, 3e-4, 1e-4]
    compact = load_recipe("compact", ["training.loss.level_dropout=0"])
    for recipe in recipes:
        same_rate = {"learning_rate": compact.training.learning_rate}
        names = ("architecture", "code_dim", "width")
        same_network = {name: getattr(compact.tokenizer, name) for name in names}
        assert recipe.training.model_copy(update=same_rate) == compact.training
        assert recipe.tokenizer.architecture == "vqvae2"
        assert recipe.tokenizer.model_copy(update=same_network) == compact.tokenizer


def test_the_recipes_stand_as_they_are_written(scripts):
    contenders = {
        contender.name: (contender.recipe, contender.tries) for contender in scripts["quality"].CONTENDERS
    }
    for name in ("compact", "detail", "comp3710"):
        assert contenders[name] == (name, {name: ()})


def test_the_best_try_on_validation_patients_is_the_one_scored(measured):
    contender = result(measured)["contenders"]["vqvae2"]
    assert contender["run"] == max(
        contender["tries"], key=lambda name: contender["tries"][name]["validation_ssim"]
    )
    runs = [run for run in (measured / "work").iterdir() if (run / "test").exists()]
    assert {run.name for run in runs} == {"compact", contender["run"]}


def test_a_lead_is_the_difference_of_the_same_slices(measured):
    content = result(measured)
    ours, theirs = (
        content["contenders"][name]["test"]["scores"]["psnr_whole"] for name in ("compact", "vqvae2")
    )
    lead = content["lead"]["vqvae2"]["test"]["psnr_whole"]
    difference = ours["mean_of_patients"] - theirs["mean_of_patients"]
    assert lead["mean_of_patients"] == pytest.approx(difference)
    assert lead["interval"][0] <= difference <= lead["interval"][1]


def test_every_training_slice_is_counted_in_the_tokens(measured):
    for level, grid in zip(
        result(measured)["contenders"]["compact"]["training_tokens"], (8 * 4, 2, 1), strict=True
    ):
        assert level["tokens"] >= 8 * grid  # padded to whole tokens
        assert level["tokens"] == pytest.approx(level["tokens_per_code"] * level["codebook_size"])


def test_a_result_says_how_it_was_made_and_names_no_person_or_place(measured):
    text = (measured / "results" / "quality.json").read_text(encoding="utf-8")
    contender = json.loads(text)["contenders"]["compact"]
    assert {"date", "commit", "hardware", "threads", "precision", "versions", "recipe"} <= set(contender)
    assert result(measured)["sites"]["test"]["data"]["split_hash"]
    for secret in (str(measured), "patient-0", "case_0", "Case_0"):
        assert secret not in text


def test_a_repeated_command_trains_nothing_again_and_keeps_the_others(scripts, measured):
    before = result(measured)
    state = measured / "work" / "compact" / "state.safetensors"
    written = state.stat().st_mtime_ns
    assert measure(scripts, measured, "--minutes", "0.01", "--only", "compact") == 0
    assert state.stat().st_mtime_ns == written
    after = result(measured)
    assert after["contenders"]["compact"]["test"] == before["contenders"]["compact"]["test"]
    assert after["contenders"]["vqvae2"] == before["contenders"]["vqvae2"]


def test_results_of_another_time_are_not_mixed(scripts, measured, capsys):
    before = result(measured)
    assert measure(scripts, measured, "--minutes", "0.02", "--only", "compact") == 1
    assert "other data or minutes" in capsys.readouterr().err
    assert result(measured) == before


def test_the_founding_claim_wants_its_own_recipe(scripts, measured, capsys):
    run = measured / "work" / "compact"
    assert scripts["quality"].main([str(measured / "data"), "--founding", str(run)]) == 1
    assert "other settings than those of recipe comp3710" in capsys.readouterr().err


def test_the_founding_claim_is_scored_on_test_patients(scripts, measured, tmp_path, monkeypatch):
    script = scripts["quality"]
    run = shutil.copytree(measured / "work" / "compact", tmp_path / "run")
    trained = script.load_tokenizer(run).info.recipe
    epochs = script.load_state(run / "state.safetensors").progress["progress"]["epoch"]
    finished = trained.model_copy(update={"training": trained.training.model_copy(update={"epochs": epochs})})
    kept = script.load_tokenizer
    monkeypatch.setattr(script, "load_recipe", lambda *_: finished)
    monkeypatch.setattr(script, "load_tokenizer", lambda where: with_recipe(kept(where), finished))
    words = [str(measured / "data"), "--founding", str(run), "--results", str(tmp_path / "results")]
    assert script.main(words) == 0
    content = result(tmp_path, "founding")
    assert (content["test"]["split"], content["test"]["patients"], content["epochs"]) == ("test", 2, epochs)
    assert content["document"]["reported"] == 0.6044


def with_recipe(loaded, recipe):
    info = loaded.info.model_copy(update={"recipe": recipe})
    return type(loaded)(loaded.tokenizer, info, loaded.path)


# --- generation.py


@pytest.fixture(scope="module")
def generated(scripts, measured):
    """`generation.py` on a prior over the tokens of the small `compact`; its result beside the others."""
    settings = ["prior.widths=[32]", "prior.blocks=1", "prior.embedding=16"]
    settings += ["prior.training.epochs=1", "prior.training.batch_size=4", "prior.training.num_views=1"]
    settings += [
        "labels.training.epochs=1",
        "labels.tokenizer.width=16",
        "labels.tokenizer.codebook_sizes=[8]",
    ]
    settings += ["decoder.widths=[32, 32]", "decoder.embedding=16", "decoder.training.epochs=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slicebook.training.fit_prior.LOW_USAGE", 0)
        train_generator(
            measured / "work" / "compact", settings, options=TrainingOptions(device="cpu", progress=False)
        )
    assert draw_samples(scripts, measured) == 0
    return result(measured, "generation-small")


def draw_samples(scripts, folder, *more):
    words = [folder / "work" / "compact", folder / "data", "--name", "small", "-n", 6, "--segmenter-steps", 2]
    words += ["--threads", 1, "--results", folder / "results", "--sheets", folder / "sheets", *more]
    return scripts["generation"].main([str(word) for word in words])


def test_samples_are_judged_beside_test_patients(generated, measured):
    likeness = GenerationResult.model_validate(generated["generation"])
    assert (likeness.held_out_patients, likeness.held_out_slices) == (2, 8)
    assert set(likeness.features) == {"texture", "structure", "efficientnet-lite0"}
    assert likeness.anatomy is not None
    assert set(likeness.anatomy.by_rule) == set(likeness.anatomy.rules)
    assert SamplingInfo.model_validate(generated["sampling"]).samples == 6
    usefulness = DownstreamResult.model_validate(generated["usefulness"])
    assert usefulness.generated.pairs == 6
    assert usefulness.training_set.pairs == 4  # the other 4 are of another size
    assert set(usefulness.generated.labels) == set("12345")
    sheets = {path.name for path in (measured / "sheets").iterdir()}
    assert sheets == {"sheet.png", "sheet-masks.png", "figure.png"}


def test_a_generation_says_how_it_was_made_and_names_no_person_or_place(generated, measured):
    text = (measured / "results" / "generation-small.json").read_text(encoding="utf-8")
    assert {"date", "commit", "hardware", "versions", "recipe", "provenance", "seed"} <= set(generated)
    assert {"settings", "first_seed"} <= set(generated["sampling"])
    assert generated["data"]["split_hash"] == generated["provenance"]["split_hash"]
    for secret in (str(measured), "patient-0", "case_0", "Case_0"):
        assert secret not in text


def test_samples_beside_other_patients_are_refused(scripts, generated, measured, capsys):
    assert draw_samples(scripts, measured, "--results", measured / "nowhere", "--guidance", "-2") == 1
    assert "guidance" in capsys.readouterr().err
    words = [measured / "work" / "compact", measured / "other", "--results", measured / "nowhere"]
    assert scripts["generation"].main([*map(str, words), "--threads", "1"]) == 1
    assert "other patients" in capsys.readouterr().err
    assert not (measured / "nowhere").exists()


def test_samples_stand_left_of_real_slices(scripts):
    left, right = ([np.full((2, 2, 3), value, np.uint8) for _ in range(9)] for value in (1, 2))
    page = scripts["generation"]._side_by_side(left, right)
    assert [int(cell.max()) for cell in page] == [*[1] * 8, 0, *[2] * 8, 1, *[0] * 8, 2, *[0] * 7]


def test_the_table_says_whether_samples_come_as_near_as_real_patients(scripts, generated):
    for real, answer in ((0.5, "yes"), (-0.5, "no")):
        report = deepcopy(generated)
        kernel = report["generation"]["features"]["texture"]["samples"]["kernel_distance"]
        kernel |= {"generated": 0.25, "real_range": [-1.0, real]}
        table = scripts["table"].draw("generation", {"generation-small": report})
        assert f"| texture: as close as real patients | {answer} |" in table.splitlines()
        targets = scripts["table"].draw("targets", {"generation-small": report}).splitlines()
        (target,) = [line for line in targets if "kernel distance of samples" in line]
        assert target.endswith(f"**{answer}** |")


def test_both_kinds_of_features_have_a_column(scripts, generated):
    head = scripts["table"].draw("likeness", {"generation-small": generated}).splitlines()[0]
    assert head == "|  | small: texture | small: structure | small: EfficientNet-Lite0 |"


# --- audit.py


@pytest.fixture(scope="module")
def audited(scripts, measured, study):
    """`audit.py` on the small `compact` and the slices of a study, its result beside the others."""
    small = {"SLICES": 4, "SHAPE": (64, 32), "EACH": 2, "COPIES": 8, "REAL_STUDY": (120, 4, 4)}
    words = [measured / "work" / "compact", study, "-n", 20, "--trials", 2, "--patients", 9, "--threads", 1]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in small.items():
            patch.setattr(scripts["audit"], name, value)
        patch.setattr(scripts["audit"], "reconstruct", lambda _, images: images)  # so raw, it would blur all
        assert scripts["audit"].main([*map(str, words), "--results", str(measured / "results")]) == 0
    return result(measured, "audit")


def test_an_audit_is_tried_on_copies_and_on_none(audited):
    assert (audited["trials"], audited["samples"], audited["training"]["patients"]) == (2, 20, 3)
    assert audited["speed"]["sought_slices"] == 8
    (cases,) = audited["by_held_out_patients"].values()  # 3 patients are the fewest, and all held out
    assert {"clean", "one_copy", "planted_1_percent", "planted_5_percent"} < set(cases)
    assert 0 <= cases["clean"]["copies_found"] <= cases["planted_5_percent"]["copies_found"]


def test_planted_copies_are_traced_to_their_source(audited):
    assert audited["search"]["copies"] == 8
    assert audited["search"]["source_found"] == 1


def test_copies_go_through_the_tokenizer(scripts, measured):
    slices = PreparedData.open(measured / "data").split("test")
    tokenizer = load_tokenizer(measured / "work" / "compact").tokenizer.eval()
    with torch.no_grad():
        expected = tokenizer(slices[3][None]).images[0, 0].clamp(-1, 1)
    images = torch.cat([slices[row] for row in range(len(slices))]).numpy()
    copies = scripts["audit"].reconstruct(tokenizer, images)
    assert copies.shape == images.shape
    assert torch.allclose(torch.from_numpy(copies[3]), expected, atol=1e-5)


def test_false_alarms_and_power_stand_in_a_row_a_number_of_patients(scripts, audited):
    content = deepcopy(audited)
    case = content["by_held_out_patients"]["3"]
    case["clean"] |= {"copies_found": 0.05, "nearer_than_the_quantile": 0.7}
    for name, share in (("one_copy", 0.9), ("planted_1_percent", 0.95), ("planted_5_percent", 1.0)):
        case[name]["copies_found"] = share
    table = scripts["table"].draw("audit", {"audit": content})
    assert "| 3 | 5.0% | 90.0% | 95.0% | 100.0% | 70.0% |" in table.splitlines()


def test_an_audit_wants_the_phantom(scripts, measured, study, capsys):
    assert scripts["audit"].main([str(measured / "work" / "compact"), str(study), "--threads", "1"]) == 1
    assert "DATA is not the phantom" in capsys.readouterr().err


# --- evaluation.py


@pytest.fixture(scope="module")
def costs(scripts, generated, measured, study):
    """`evaluation.py` on the small prior, its parts in this process; what it called and its result."""
    script, called = scripts["evaluation"], []

    def in_this_process(words, _):
        called.append([str(word) for word in words])
        if words[0] == "-m":  # `slicebook evaluate`, which its own tests run
            out = Path(words[-1])
            out.mkdir()
            report = {"slices": 8, "seconds": {"audit": 2.0}, "sampling": {"samples": 6}}
            (out / "report.json").write_text(json.dumps(report), encoding="utf-8")
        else:
            assert script.main(words[1:]) == 0
        seconds = (2.0, 4.0, 9.0, 6.0, 12.0, 10.0)[len(called) - 1]
        return {"seconds": seconds, "cpu_seconds": 1.0, "peak_memory_mib": 500.0 * len(called)}

    shutil.copytree(study, measured / "demo" / "prepared")
    words = [measured / "work" / "compact", measured / "data", study, "-n", 6]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "alone", in_this_process)
        results = ["--threads", "1", "--tries", "2", "--results", str(measured / "results")]
        assert script.main([*map(str, words), *results]) == 0
        assert script.main(["--demo", str(measured / "demo"), *results]) == 0
    return called, {name: result(measured, name) for name in ("evaluation", "evaluation-demo")}


def test_the_quickest_of_several_tries_counts(costs):
    called, results = costs
    assert [results["evaluation"][name]["seconds"] for name in ("sampling", "first", "again")] == [2, 4, 6]
    assert (results["evaluation-demo"]["seconds"], results["evaluation-demo"]["tries"], len(called)) == (
        10,
        2,
        6,
    )
    assert results["evaluation"]["again"]["peak_memory_mib"] == 2000  # that of the same try


def test_samples_are_judged_twice_as_evaluate_judges_them(costs):
    _, results = costs
    assert results["evaluation"]["slices"] == {
        "train": 12,
        "validation": 4,
        "test": 8,
    }  # 4 are of another size
    for name in ("first", "again"):
        assert list(results["evaluation"][name]["parts"]) == ["generation", "descriptions", "audit"]
        assert min(results["evaluation"][name]["parts"].values()) > 0


def test_what_earlier_evaluations_kept_is_not_used(scripts, study, tmp_path):
    kept = tmp_path / "kept"
    shutil.copytree(study, kept)
    (kept / "descriptions").mkdir()
    fresh = scripts["evaluation"]._without_descriptions(kept, tmp_path / "fresh")
    assert {path.name for path in fresh.iterdir()} == {
        path.name for path in study.iterdir() if path.is_file()
    }
    assert len(PreparedData.open(fresh).split("train")) == 16


def test_a_demo_is_evaluated_by_the_command_itself(costs, measured):
    called, results = costs
    assert called[-1][:4] == ["-m", "slicebook", "evaluate", str(measured / "demo" / "run")]
    assert called[-1][5] == "--out"
    assert results["evaluation-demo"]["parts"] == {"audit": 2.0}


def test_a_study_without_training_slices_is_refused(scripts, generated, measured, capsys):
    words = [measured / "work" / "compact", measured / "data", measured / "other"]
    assert scripts["evaluation"].main([*map(str, words), "--threads", "1"]) == 1
    assert "has 0 training and 8 test slices of 32×64" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["run", "data"], ["run", "data", "study", "--demo", "demo"]])
def test_a_study_or_a_demo_is_timed(scripts, words):
    with pytest.raises(SystemExit) as end:
        scripts["evaluation"].main(words)
    assert end.value.code == 2


def test_a_process_of_its_own_is_timed_and_weighed(scripts):
    alone = scripts["evaluation"].alone
    cost = alone(["-c", "import time; kept = b'x' * (300 << 20); time.sleep(0.1)"], 1)
    assert cost["seconds"] > 0.1
    assert 0 < cost["cpu_seconds"] < cost["seconds"]
    assert cost["peak_memory_mib"] > 300
    with pytest.raises(DataError, match="ended with 3"):
        alone(["-c", "raise SystemExit(3)"], 1)


def test_costs_beyond_what_was_wanted_are_said(scripts, costs):
    results = deepcopy(costs[1])
    assert "**no**" not in scripts["table"].draw("targets", results).split("demo")[0]
    results["evaluation"]["again"] |= {"seconds": 301.0, "peak_memory_mib": 3000.0}
    results["evaluation-demo"]["seconds"] = 91.0
    lines = scripts["table"].draw("targets", results).splitlines()
    assert [line.endswith("**yes** |") for line in lines if "or less" in line] == [False, True, False]


# --- anomaly.py


def test_a_prior_is_asked_where_slices_were_changed(scripts, generated, measured, monkeypatch):
    monkeypatch.setattr(scripts["anomaly"], "SMALLEST", 4)
    words = [measured / "work" / "compact", measured / "data", "--name", "small", "--draws", 1]
    words += ["--threads", 1, "--results", measured / "results", "--sheets", measured / "odd"]
    assert scripts["anomaly"].main([str(word) for word in words]) == 0
    content = result(measured, "anomaly-small")
    assert {"bright lesion", "dark lesion", "no rectum"} <= set(content["changes"])
    lesions = content["changes"]["bright lesion"]
    assert lesions["slices"] == content["slices"] == 8
    assert all(0 <= lesions[key]["mean_of_patients"] <= 1 for key in scripts["anomaly"].ABOUT)
    assert (measured / "odd" / "anomaly.png").stat().st_size > 0
    table = scripts["table"].anomaly({"anomaly-small": content})
    assert len([line for line in table.splitlines() if line.startswith("| small")]) == len(content["changes"])
    assert str(measured) not in json.dumps(content)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_lesion_lies_in_the_body_and_changes_nothing_else(scripts, sign):
    mask = np.zeros((60, 80), dtype=np.uint8)
    mask[8:52, 8:72] = 1
    mask[26:34, 36:44] = 3
    image = np.linspace(-0.3, 0.3, mask.size, dtype=np.float32).reshape(mask.shape)
    for seed in range(5):
        changed, region = scripts["anomaly"].lesion(image, mask, sign, np.random.default_rng(seed))
        assert 50 < region.sum() < 260
        assert mask[region].all()
        assert (sign * (changed - image)[region]).min() > 0.1
        far = ~binary_dilation(region, iterations=5)
        assert np.abs(changed - image)[far].max() < 1e-3


def test_a_lesion_of_a_thin_body_lies_in_it_all_the_same(scripts):
    mask = np.zeros((40, 40), dtype=np.uint8)
    mask[20, 10:30] = 1
    _, region = scripts["anomaly"].lesion(
        np.zeros((40, 40), dtype=np.float32), mask, 1, np.random.default_rng(0)
    )
    assert (region & (mask == 1)).any()


# --- speed.py


@pytest.fixture(scope="module")
def timed(scripts, measured):
    """`speed.py` on small sizes, its result beside that of `quality.py`."""
    script = scripts["speed"]
    sizes = script.Sizes(
        vectors=1024, codes=(64,), dimensions=(64,), sides=(64,), batch=2, slice=(32, 16), labels=2
    )
    small = {"SIZES": sizes, "STARTS": 1, "PATIENTS": (1, 1, 1), "SLICES": 4}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in small.items():
            patch.setattr(script, name, value)
        patch.setattr(script, "_extra_memory", lambda *_: 1.0)  # a process of its own each: slow to start
        patch.setattr(script, "QUANTIZERS", script.QUANTIZERS | {"nobody's": import_nothing})
        samplers = {"monai": FakeSampler, "nobody's": import_nothing}
        patch.setattr(script, "SAMPLERS", samplers)
        assert script.main(["--threads", "1", "--seconds", "0", "--results", str(measured / "results")]) == 0
    return result(measured, "speed")


def import_nothing(*_):
    raise ModuleNotFoundError("No module named 'nobodys'", name="nobodys")


class FakeSampler:
    """A peer whose tokens take no time."""

    def __init__(self, parameters, codes, tokens, width):
        assert parameters > 0 < codes < 2000
        assert tokens >= 1 < width
        self.parameters = parameters

    def step(self, before, batch):
        """Do nothing."""
        return lambda: None


def test_a_peer_that_is_not_installed_is_named(timed):
    assert timed["generation"]["missing"]["nobody's"] == "not installed: nobodys"
    assert timed["quantizers"]["missing"]["nobody's"] == "not installed: nobodys"
    assert {"slicebook", "matrix product"} <= set(timed["quantizers"]["settings"][0]["contenders"])


def test_all_parts_are_timed(timed):
    assert timed["networks"]["settings"][0]["contenders"]["ladder"]["ratio"] == 1
    assert timed["generation"]["contenders"]["slicebook"]["seconds_per_slice"] > 0
    assert timed["generation"]["contenders"]["monai"]["ratio"] >= 0
    assert timed["data_path"]["slices_per_second"]["augmented"] > 0
    assert timed["command_line"]["slicebook --help"] > 0


def test_contenders_take_turns_and_ratios_are_turn_by_turn(scripts):
    order = []
    steps = {name: lambda name=name: order.append(name) for name in "abc"}
    timings = scripts["speed"].take_turns(steps, 0, against="a")  # at least three turns
    assert order == [*"abc", *"bca", *"cab", *"abc"]
    assert [timing["turns"] for timing in timings.values()] == [3, 3, 3]
    assert timings["a"]["ratio"] == 1


def test_a_whole_slice_of_the_peer_is_the_sum_over_its_lengths(scripts):
    cost = [2 + 3 * length + 0.5 * length**2 for length in range(1, 682)]
    lengths = (1, 171, 341, 511, 681)
    total = scripts["speed"]._sum_over_lengths(lengths, [cost[length - 1] for length in lengths])
    assert total == pytest.approx(sum(cost), rel=2e-3)


def test_extra_memory_sees_what_a_step_takes_and_gives_back(scripts, monkeypatch):
    script = scripts["speed"]
    if not os.access("/proc/self/clear_refs", os.W_OK):
        assert script._extra_memory("slicebook", 64, 8, 1) is None
        return

    def make(n, *_):
        return lambda: bytearray(n * 4096).clear()

    monkeypatch.setattr(script, "QUANTIZERS", {"greedy": make})
    assert script.extra_memory("greedy", 64, 8) == pytest.approx(script.SIZES.vectors * 4096, rel=0.05)


# --- table.py


def test_the_pages_hold_what_was_measured(scripts, capsys):
    assert scripts["table"].main(["--check"]) == 0, capsys.readouterr().err


@pytest.fixture
def pages(scripts, measured, timed, generated, audited, costs, tmp_path):
    """A copy of the pages with tables of the small measurements."""
    for name in scripts["table"].PAGES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(measured / "results", tmp_path / "benchmarks" / "results")
    assert scripts["table"].main(["--root", str(tmp_path)]) == 0
    return tmp_path


def check(scripts, pages):
    return scripts["table"].main(["--check", "--root", str(pages)])


def test_tables_are_written_where_their_marks_are(scripts, pages):
    assert check(scripts, pages) == 0
    text = "".join((pages / name).read_text(encoding="utf-8") for name in scripts["table"].PAGES)
    assert {name for name in scripts["table"].TABLES if f"<!-- table: {name} -->" in text} == set(
        scripts["table"].TABLES
    )
    assert "nobody's | not installed: nobodys" in text
    assert "Not measured yet: founding." in text


def test_a_number_changed_in_a_page_fails_and_is_named(scripts, pages, capsys):
    page = pages / "docs" / "results.md"
    text = page.read_text(encoding="utf-8")
    test = result(pages / "benchmarks")["contenders"]["compact"]["test"]
    bits = f"{test['bits_per_pixel']['mean_of_slices']:.3f}"
    assert bits in text
    page.write_text(text.replace(bits, "0.001", 1), encoding="utf-8")
    assert check(scripts, pages) == 1
    assert "docs/results.md: table quality differs" in capsys.readouterr().err


def test_a_number_changed_in_a_result_fails_and_is_named(scripts, pages, capsys):
    path = pages / "benchmarks" / "results" / "speed.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["command_line"]["slicebook --help"] = 77.0
    path.write_text(json.dumps(content), encoding="utf-8")
    assert check(scripts, pages) == 1
    assert "benchmarks/README.md: table other-speed differs" in capsys.readouterr().err


def test_a_table_that_does_not_exist_is_an_error(scripts):
    with pytest.raises(KeyError):
        scripts["table"].fill("<!-- table: wishes -->\n<!-- end -->", {})
