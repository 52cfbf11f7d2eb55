"""Generated slices: a data set of its own, whole or not there, each sample from its seed alone."""

import csv
import gc
import json
import math
import shutil
import weakref
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.sheets import pixels_of

from slicebook.cli import main
from slicebook.data.check import check
from slicebook.data.dataset import PreparedData
from slicebook.data.layouts.sources import SourceOptions
from slicebook.data.prepare import PrepareOptions, prepare
from slicebook.errors import CheckpointError, ConfigError, DataError
from slicebook.inference import generate as generating
from slicebook.inference import synthesis
from slicebook.inference.generate import generate
from slicebook.inference.synthesis import (
    choose_sampling_precision,
    decode_pages,
    draw,
    render,
)
from slicebook.io import resumable
from slicebook.io.nifti import read_labels, read_nifti
from slicebook.io.resumable import Journal
from slicebook.models.sampling import SamplingSettings, sample
from slicebook.visualization.contact_sheet import GAP

QUICK = SamplingSettings(steps=2, decoder_steps=2)
CPU: dict[str, Any] = {"device": "cpu", "settings": QUICK}
OPTIONS = SourceOptions(layout="nifti", patient_regex=r"(sample-\d+)", mask="_mask")


@pytest.fixture(scope="module")
def made(trained, tmp_path_factory):
    """Three samples, from seeds 5, 6 and 7."""
    out = tmp_path_factory.mktemp("generated") / "set"
    summary = generate(trained.run, out, count=3, seed=5, **CPU)
    return SimpleNamespace(out=out, summary=summary)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def lines_of(out):
    with (out / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def image_of(out, seed):
    return read_nifti(out / "images" / f"sample-{seed:06}.nii.gz")


# --- What is written


def test_a_set_holds_images_masks_pictures_sheets_and_lists(made):
    names = [f"sample-{seed:06}" for seed in (5, 6, 7)]
    wanted = {f"images/{name}{end}" for name in names for end in (".nii.gz", "_mask.nii.gz")}
    wanted |= {f"pictures/{name}.png" for name in names}
    wanted |= {"sheet.png", "sheet-masks.png", "levels.png", "manifest.csv", "generation.json"}
    assert contents(made.out).keys() == wanted
    assert {item.name for item in made.out.parent.iterdir()} == {"set"}


def test_every_file_says_that_it_is_synthetic(made):
    files = list((made.out / "images").iterdir())
    assert len(files) == 6
    for path in files:
        assert bytes(nib.nifti1.load(path).header["descrip"]).startswith(b"SYNTHETIC")
    assert json.loads((made.out / "generation.json").read_text())["synthetic"] is True


def test_samples_lie_as_the_slices_of_the_training_do(made, loaded):
    kind = loaded.info.slices[0]
    for path in (made.out / "images").iterdir():
        image = nib.nifti1.load(path)
        assert image.shape == (kind.columns, kind.rows, 1)
        assert image.header.get_zooms()[:2] == pytest.approx((kind.column_mm, kind.row_mm))
        middle = image.affine @ [(kind.columns - 1) / 2, (kind.rows - 1) / 2, 0, 1]
        assert middle[:3].tolist() == pytest.approx([0, 0, 0], abs=1e-4)


def test_samples_have_the_intensity_of_the_training(made, loaded):
    kind = loaded.info.slices[0]
    for seed in (5, 6, 7):
        array = image_of(made.out, seed).array
        assert kind.low - 1e-3 <= array.min() < array.max() <= kind.high + 1e-3


def test_files_hold_what_the_tokens_are_rendered_to(made, loaded):
    kind = loaded.info.slices[0]
    size = (kind.rows, kind.columns)
    positions = [float(line["position"]) for line in lines_of(made.out)]
    tokens = draw(loaded, size, [5, 6, 7], positions, QUICK)
    page = render(loaded, tokens, size, [5, 6, 7], QUICK.decoder_steps)
    data = made.out / "images"
    for index, seed in enumerate((5, 6, 7)):
        # Radiological: as displayed, the rows go backwards (to the back) and the columns too (to the left).
        image = image_of(made.out, seed).array[::-1, ::-1, 0].T
        shown = (image - kind.low) / (kind.high - kind.low) * 2 - 1
        np.testing.assert_allclose(shown, page.images[index, 0], atol=1e-4)
        mask = read_labels(data / f"sample-{seed:06}_mask.nii.gz").array[::-1, ::-1, 0].T
        np.testing.assert_array_equal(mask, page.masks[index])


def test_the_decoder_draws_surfaces_from_the_seed_of_the_sample(loaded):
    """And not from its place in the batch."""
    size = (loaded.info.slices[0].rows, loaded.info.slices[0].columns)
    tokens = draw(loaded, size, [1], None, QUICK).repeat(2, 1)
    first, second = render(loaded, tokens, size, [1, 2], 2).images
    assert not first.equal(second)
    assert render(loaded, tokens[:1], size, [2], 2).images[0].equal(second)
    assert not render(loaded, tokens[:1], size, [2], 3).images[0].equal(second)
    base = decode_pages(loaded, tokens, size)
    assert not first.equal(base.images[0])
    assert render(loaded, tokens, size, [1, 2], 2).masks.equal(base.masks)


def test_without_a_decoder_slices_are_those_of_the_tokenizer(loaded):
    size = (loaded.info.slices[0].rows, loaded.info.slices[0].columns)
    tokens = draw(loaded, size, [1, 2], None, QUICK)
    found = render(replace(loaded, decoder=None), tokens, size, [1, 2])
    assert found.images.equal(decode_pages(loaded, tokens, size).images)


def test_the_list_tells_seed_and_condition_of_each_sample(made):
    lines = lines_of(made.out)
    assert [set(line) for line in lines] == [{"name", "seed", "position", "group"}] * 3
    assert [(line["name"], line["seed"]) for line in lines] == [(f"sample-{s:06}", str(s)) for s in (5, 6, 7)]
    positions = [float(line["position"]) for line in lines]
    assert len(set(positions)) == 3
    assert all(0 <= position <= 1 for position in positions)


def test_the_summary_tells_what_was_written(made, loaded):
    kind = loaded.info.slices[0]
    assert (made.summary.out, made.summary.samples) == (made.out, 3)
    assert made.summary.size == (kind.rows, kind.columns)
    assert made.summary.with_masks is True


def test_a_set_tells_the_model_and_the_settings_it_came_from(made, loaded):
    found = json.loads((made.out / "generation.json").read_text())
    assert found["model_sha256"] == loaded.info.weights_sha256
    assert found["settings"] == {"steps": 2, "decoder_steps": 2, "guidance": 0.0}
    assert found["label_values"] == list(loaded.info.masks.tokenizer.label_values)


def test_the_contact_sheet_holds_no_more_than_its_share(trained, tmp_path, loaded, monkeypatch):
    monkeypatch.setattr(generating, "SHEET", 1)
    generate(trained.run, tmp_path / "out", count=2, **CPU)
    kind = loaded.info.slices[0]
    high = round(kind.rows * kind.row_mm / kind.column_mm)
    assert pixels_of(tmp_path / "out" / "sheet.png").shape == (high, kind.columns, 3)
    picture = pixels_of(tmp_path / "out" / "pictures" / "sample-000000.png")
    assert picture.shape == (high, 2 * kind.columns + GAP, 3)


def test_check_and_prepare_read_a_set(made, tmp_path):
    report = check(made.out, OPTIONS)
    assert (report.slices, report.unreadable, report.misfits) == (3, (), ())
    prepare(made.out, tmp_path / "prepared", OPTIONS, PrepareOptions(fractions=(0.34, 0.33, 0.33)))
    data = PreparedData.open(tmp_path / "prepared")
    assert {count.patients for count in data.info.counts.values()} == {1}
    assert all(record.label_offset >= 0 for record in data.records)


# --- From seeds


def test_the_same_command_gives_the_same_files(made, trained, tmp_path):
    generate(trained.run, tmp_path / "again", count=3, seed=5, **CPU)
    assert contents(tmp_path / "again") == contents(made.out)


def test_a_sample_depends_on_its_own_seed_alone(made, trained, tmp_path):
    generate(trained.run, tmp_path / "alone", count=1, seed=7, **CPU)
    for name, content in contents(tmp_path / "alone").items():
        if name.startswith(("images", "pictures")):
            assert content == contents(made.out)[name], name
    found, wanted = lines_of(tmp_path / "alone")[0], lines_of(made.out)[2]
    for name in ("name", "seed", "position"):
        assert found[name] == wanted[name]


def test_other_seeds_give_other_samples(made):
    arrays = [image_of(made.out, seed).array for seed in (5, 6, 7)]
    assert not np.array_equal(arrays[0], arrays[1])
    assert not np.array_equal(arrays[1], arrays[2])


def test_a_position_may_be_asked_for(trained, tmp_path, monkeypatch):
    asked = []

    def spy(loaded, size, seeds, positions, *rest, **how):
        asked.append(positions)
        return draw(loaded, size, seeds, positions, *rest, **how)

    monkeypatch.setattr(generating, "draw", spy)
    generate(trained.run, tmp_path / "out", count=2, position=0.25, **CPU)
    assert asked == [[0.25, 0.25]]
    assert [line["position"] for line in lines_of(tmp_path / "out")] == ["0.25", "0.25"]


def test_the_position_drawn_is_the_samples_own(made, trained, tmp_path):
    """A sample asked for at the position it would have drawn is that sample."""
    line = lines_of(made.out)[1]
    generate(trained.run, tmp_path / "out", count=1, seed=6, position=float(line["position"]), **CPU)
    assert np.array_equal(image_of(tmp_path / "out", 6).array, image_of(made.out, 6).array)


@pytest.fixture
def told(monkeypatch):
    """Collect the conditions that samples are drawn under."""
    conditions, whole = [], sample

    def spy(prior, layout, seeds, given, *rest, **how):
        conditions.append(given)
        return whole(prior, layout, seeds, given, *rest, **how)

    monkeypatch.setattr(synthesis, "sample", spy)
    return conditions


def test_without_conditions_the_prior_is_told_no_position(trained, tmp_path, told):
    generate(trained.run, tmp_path / "out", count=1, conditional=False, **CPU)
    assert lines_of(tmp_path / "out")[0]["position"] == ""
    assert told[0].position.isnan().all()
    assert told[0].group.eq(-1).all()


def test_draw_tells_the_prior_the_positions_it_was_given(loaded, told):
    size = (loaded.info.slices[0].rows, loaded.info.slices[0].columns)
    draw(loaded, size, [3, 4], [0.0, 1.0], QUICK)
    assert told[0].position.tolist() == [0.0, 1.0]


def test_a_class_may_be_asked_for(trained, tmp_path, loaded, told):
    summary = generate(trained.run, tmp_path / "out", count=2, group="2", **CPU)
    assert [line["group"] for line in lines_of(tmp_path / "out")] == ["2", "2"]
    draw(loaded, summary.size, [0, 1], None, QUICK)
    assert [conditions.group.tolist() for conditions in told] == [[2, 2], [-1, -1]]


def test_pages_of_some_levels_hear_no_finer_tokens(loaded):
    size = (loaded.info.slices[0].rows, loaded.info.slices[0].columns)
    layout = loaded.tokenizer.layout(size)
    tokens = draw(loaded, size, [1, 2], None, QUICK)
    other = tokens.clone()
    other[:, layout.starts[-2] :] = (other[:, layout.starts[-2] :] + 1) % 16
    found = [decode_pages(loaded, one, size, levels=1).images for one in (tokens, other)]
    assert found[0].equal(found[1])
    whole = [decode_pages(loaded, one, size).images for one in (tokens, other)]
    assert not torch.allclose(whole[0], whole[1], atol=1e-4)


def test_progress_counts_samples(trained, tmp_path):
    told = []
    generate(trained.run, tmp_path / "out", count=2, progress=lambda *one: told.append(one), **CPU)
    assert told == [(0, 2), (2, 2)]


# --- Whole or not at all


def drawn_groups(monkeypatch, size=2):
    """Draw in groups of another size, and return the list of the seeds that are drawn."""
    seeds = []

    def spy(loaded, shape, some, *rest, **how):
        seeds.extend(some)
        return draw(loaded, shape, some, *rest, **how)

    monkeypatch.setattr(generating, "SAMPLING_BATCH", size)
    monkeypatch.setattr(generating, "draw", spy)
    return seeds


@pytest.fixture(scope="module")
def grouped(trained, tmp_path_factory):
    """Five samples in three groups, never interrupted."""
    out = tmp_path_factory.mktemp("grouped") / "set"
    with pytest.MonkeyPatch.context() as patch:
        drawn_groups(patch)
        generate(trained.run, out, count=5, seed=5, **CPU)
    return contents(out)


STEPS = [
    (generating, "_write_samples", 2),
    (generating, "_draw_levels", 1),
    (Journal, "add", 2),
    (generating, "_draw_sheets", 1),
    (generating, "_write_lists", 1),
    (resumable, "put_in_place", 1),
    (shutil, "rmtree", 1),
]


@pytest.mark.parametrize(("where", "step", "time"), STEPS, ids=[step for _, step, _ in STEPS])
@pytest.mark.parametrize("fault", [OSError, KeyboardInterrupt])
def test_an_interrupted_command_goes_on_bit_for_bit(
    where, step, time, fault, trained, grouped, tmp_path, monkeypatch
):
    whole, calls = getattr(where, step), []

    def fail(*arguments, **options):
        calls.append(step)
        if len(calls) == time:
            if step == "_write_samples":
                whole(*arguments)
            raise fault
        return whole(*arguments, **options)

    with monkeypatch.context() as patch:
        drawn_groups(patch)
        patch.setattr(where, step, fail)
        with pytest.raises(DataError if (step, fault) == ("put_in_place", OSError) else fault):
            generate(trained.run, tmp_path / "out", count=5, seed=5, **CPU)
    if step == "rmtree":  # all was in its place
        assert contents(tmp_path / "out") == grouped
        with pytest.raises(DataError, match="out: already holds all 5 samples of this command"):
            generate(trained.run, tmp_path / "out", count=5, seed=5, **CPU)
        assert [item.name for item in tmp_path.iterdir()] == ["out"]
        return
    # `_draw_levels` follows the first group: nothing is done yet
    assert [item.name for item in tmp_path.iterdir()] == ([] if step == "_draw_levels" else ["out.partial"])
    assert not list(tmp_path.rglob("generation.json")) or step == "put_in_place"
    seeds = drawn_groups(monkeypatch)
    generate(trained.run, tmp_path / "out", count=5, seed=5, **CPU)
    assert seeds == {
        "_draw_levels": [5, 6, 7, 8, 9],
        "_write_samples": [7, 8, 9],
        "add": [7, 8, 9],
    }.get(step, [])
    assert contents(tmp_path / "out") == grouped
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


def test_samples_do_not_depend_on_how_many_are_drawn_at_once(made, grouped):
    for name, content in contents(made.out).items():
        if name.startswith(("images", "pictures")):
            assert content == grouped[name], name


def interrupted(trained, out, monkeypatch, **wishes):
    """Leave a partial folder with its first group of two."""
    with monkeypatch.context() as patch:
        drawn_groups(patch)
        patch.setattr(generating, "_draw_sheets", lambda *_: pytest.fail("all drawn"))
        done = []

        def stop(*count):
            done.append(count)
            if count[0]:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            generate(trained.run, out, **{"count": 5, "seed": 5, **wishes}, progress=stop, **CPU)
        assert done == [(0, 5), (2, 5)]


@pytest.mark.parametrize(
    ("wish", "named"),
    [
        ({"seed": 6}, "seed 5 then, 6 now"),
        ({"count": 4}, "count 5 then, 4 now"),
        ({"position": 0.5}, "position None then, 0.5 now"),
        ({"group": "1"}, "class None then, 1 now"),
        ({"conditional": False}, "conditional True then, False now"),
        ({"size": (36, 64)}, r"size \[32, 64\] then, \[36, 64\] now"),
        ({"settings": SamplingSettings(2, 3)}, "decoder_steps 2 then, 3 now"),
        ({"settings": SamplingSettings(2, 2, 1.0)}, "guidance 0.0 then, 1.0 now"),
    ],
)
def test_unfinished_samples_of_other_settings_are_refused(wish, named, trained, tmp_path, monkeypatch):
    interrupted(trained, tmp_path / "out", monkeypatch)
    before = contents(tmp_path)
    monkeypatch.setattr(generating, "draw", lambda *_, **__: pytest.fail("drawn"))
    with pytest.raises(
        ConfigError, match=f"out.partial: holds unfinished samples of other settings.*{named}"
    ):
        generate(trained.run, tmp_path / "out", **{"count": 5, "seed": 5, **CPU, **wish})
    assert contents(tmp_path) == before


def test_a_folder_of_somebody_else_under_the_partial_name_stays(trained, tmp_path):
    thesis = tmp_path / "out.partial" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    with pytest.raises(DataError, match=r"out\.partial: is not empty, and is needed for unfinished samples"):
        generate(trained.run, tmp_path / "out", count=1, **CPU)
    assert contents(tmp_path) == {"out.partial/thesis.txt": b"years of work"}


def test_a_finished_command_says_that_it_is_finished(made, trained):
    before = contents(made.out)
    with pytest.raises(DataError, match="already holds all 3 samples of this command"):
        generate(trained.run, made.out, count=3, seed=5, **CPU)
    with pytest.raises(DataError, match="is not empty; choose another folder"):
        generate(trained.run, made.out, count=3, seed=6, **CPU)
    assert contents(made.out) == before


def test_only_one_group_is_held_at_a_time(trained, tmp_path, monkeypatch):
    held, most = [], []
    whole = generating._write_samples

    def watch(out, group, kind):
        held.append(weakref.ref(group.slices.images))
        gc.collect()
        most.append(sum(one() is not None for one in held))
        whole(out, group, kind)

    drawn_groups(monkeypatch, size=1)
    monkeypatch.setattr(generating, "_write_samples", watch)
    generate(trained.run, tmp_path / "out", count=4, **CPU)
    assert most == [1, 1, 1, 1]


@pytest.mark.parametrize("way", ["empty", "link", "here"])
def test_an_empty_folder_may_be_filled(way, trained, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    monkeypatch.chdir(tmp_path / "empty")
    generate(trained.run, "." if way == "here" else tmp_path / way, count=1, **CPU)
    assert (tmp_path / "empty" / "manifest.csv").is_file()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_there_already_stays(kind, trained, tmp_path):
    out = tmp_path / "out"
    thesis = out if kind == "file" else out / "thesis.txt"
    thesis.parent.mkdir(exist_ok=True)
    thesis.write_text("years of work")
    with pytest.raises(DataError, match="out: is not empty; choose another folder"):
        generate(trained.run, out, count=1, **CPU)
    assert thesis.read_text() == "years of work"


# --- What is refused


def test_more_samples_than_the_disk_holds_are_refused_before_any_is_drawn(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2_000_000))
    monkeypatch.setattr(generating, "draw", lambda *_, **__: pytest.fail("drawn"))
    wanted = r"out: 1000 samples take about \d+ MB, 2 MB are free; ask for fewer, or choose another disk"
    with pytest.raises(DataError, match=wanted):
        generate(trained.run, tmp_path / "deep" / "out", count=1000, **CPU)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"count": 0}, "0 samples: wanted 1 or more"),
        ({"position": 1.5}, r"position 1\.5: wanted a position in the volume, from 0 to 1"),
        ({"position": -0.1}, "position -0.1: wanted"),
        ({"position": math.nan}, "position nan: wanted"),
        ({"group": "9"}, "model.safetensors: was not trained with class '9'; known are 0, 1, 2, 3"),
        ({"group": "1", "conditional": False}, "a position or class was given for unconditional samples"),
        ({"position": 0.5, "conditional": False}, "a position or class was given .*; drop one of the two"),
        ({"size": (8, 8)}, r"was not trained on slices of 8×8; wanted one of \d+×64"),
        ({"seed": -1}, "seed -1: wanted"),
        ({"seed": 2**63 - 1, "count": 2}, f"seed {2**63 - 1}: wanted"),
    ],
)
def test_a_wish_out_of_range_is_refused(asked, message, trained, tmp_path):
    with pytest.raises(ConfigError, match=message):
        generate(trained.run, tmp_path / "out", **asked, **CPU)
    assert list(tmp_path.iterdir()) == []


def test_a_prior_without_classes_takes_none(loaded):
    plain = replace(loaded, info=loaded.info.model_copy(update={"classes": ()}))
    with pytest.raises(ConfigError, match="its data had no classes"):
        draw(plain, (32, 64), [0], None, SamplingSettings(), group="1")


def test_a_seed_that_stands_twice_is_refused(loaded):
    size = (loaded.info.slices[0].rows, loaded.info.slices[0].columns)
    with pytest.raises(ConfigError, match="seed 3 is given twice and would give the same sample twice"):
        draw(loaded, size, [9, 3, 4, 3, 9], None, SamplingSettings())


def test_without_a_prior_nothing_is_written(tmp_path):
    with pytest.raises(CheckpointError, match="train one first"):
        generate(tmp_path / "nowhere", tmp_path / "out", **CPU)
    assert list(tmp_path.iterdir()) == []


def test_info_reads_every_kind_of_model_and_a_prepared_folder(trained, capsys):
    prior = trained.run / "prior"
    for place, kind in (
        (trained.run, "tokenizer"),
        (prior, "prior"),
        (prior / "masks", "label tokenizer"),
        (prior / "decoder", "generation decoder"),
    ):
        assert main.main(["info", str(place), "--json"]) == 0, place
        assert json.loads(capsys.readouterr().out)["kind"] == kind
    assert main.main(["info", str(trained.data)]) == 0


# --- Precision


def precisions(monkeypatch, *measured):
    """Let `auto` measure these, one per command, and return the list of what groups are drawn in."""
    drawn, verdicts = [], list(measured)

    def spy(*arguments, precision, **options):
        drawn.append(precision)
        return draw(*arguments, precision=precision, **options)

    monkeypatch.setattr(generating, "draw", spy)
    monkeypatch.setattr(synthesis, "fastest_precision", lambda *_, **__: (verdicts.pop(0), {}))
    return drawn


def test_auto_samples_in_the_measured_precision_and_records_it(trained, tmp_path, monkeypatch):
    drawn = precisions(monkeypatch, "bf16-mixed")
    generate(trained.run, tmp_path / "out", count=1, **CPU, precision="auto")
    assert drawn == ["bf16-mixed"]
    record = json.loads((tmp_path / "out" / "generation.json").read_text())
    assert record["request"]["precision"] == "bf16-mixed"


def test_an_interrupted_set_goes_on_in_its_own_precision(trained, tmp_path, monkeypatch):
    interrupted(trained, tmp_path / "out", monkeypatch)  # in float32
    drawn = precisions(monkeypatch)  # a measurement would fail: no verdict is left
    monkeypatch.setattr(generating, "SAMPLING_BATCH", 2)
    generate(trained.run, tmp_path / "out", count=5, seed=5, **CPU, precision="auto")
    assert drawn == ["32-true", "32-true"]


def test_a_finished_set_is_known_whatever_auto_would_measure(trained, made):
    with pytest.raises(DataError, match="already holds all 3 samples"):
        generate(trained.run, made.out, count=3, seed=5, **CPU, precision="auto")


def test_another_precision_does_not_resume(trained, tmp_path, monkeypatch):
    interrupted(trained, tmp_path / "out", monkeypatch)
    with pytest.raises(ConfigError, match="precision 32-true then, bf16-mixed now"):
        generate(trained.run, tmp_path / "out", count=5, seed=5, **CPU, precision="bf16-mixed")


def test_the_measured_step_samples_with_the_prior(loaded, monkeypatch):
    """`auto` runs the prior itself, in both precisions, and the one asked for is not measured."""
    steps = []

    def measure(step, device):
        steps.append(step)
        with torch.autocast("cpu", torch.bfloat16):
            step()
        return "32-true", {}

    monkeypatch.setattr(synthesis, "fastest_precision", measure)
    assert choose_sampling_precision(loaded, "auto") == "32-true"
    assert choose_sampling_precision(loaded, "bf16-mixed") == "bf16-mixed"
    assert len(steps) == 1
    with pytest.raises(ConfigError, match="precision 16-mixed does not work on device cpu"):
        choose_sampling_precision(loaded, "16-mixed")
