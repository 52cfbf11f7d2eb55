"""What the tabs make is what the commands make, byte for byte; and no message names a path."""

import shutil
import threading
import zipfile
from dataclasses import replace
from typing import get_args

import gradio as gr
import numpy as np
import pytest
import torch
from helpers.studio import request_of

from slicebook.cli import main
from slicebook.errors import ConfigError, DataError
from slicebook.export.generated_set import SetFacts
from slicebook.export.set_formats import SetFormat, export_set
from slicebook.inference.generate import generate as generate_set
from slicebook.io.nifti import read_labels, read_nifti, write_nifti
from slicebook.models.sampling import SamplingSettings
from slicebook.studio import generate, judge, look, paint
from slicebook.studio.app import make_page
from slicebook.studio.context import Studio, answering, cleaned
from slicebook.studio.generate import Wish
from slicebook.studio.job import Job, StoppedError
from slicebook.studio.packing import FORMATS, pack
from slicebook.studio.painter import mask_of, painter
from slicebook.studio.study import reopen
from slicebook.studio.workspace import BusyError, Workspace

QUICK = SamplingSettings(steps=2, decoder_steps=2)
STEPS = ["--steps", "2", "--decoder-steps", "2"]
WISH = Wish(2, 5, None, None, QUICK)
QUIET = gr.Progress()


@pytest.fixture
def workspace():
    made = Workspace()
    yield made
    made.close()


@pytest.fixture
def studio(trained, workspace):
    return Studio.open(str(trained.run), "cpu", workspace)


@pytest.fixture
def page(studio):
    """A page on which a volume of five slices is open."""
    request = request_of()
    session = studio.session(request)
    folder = session.new_folder("volume")
    folder.mkdir()
    array = np.random.default_rng(1).normal(size=(40, 24, 5)).astype(np.float32)
    write_nifti(folder / "volume.nii.gz", array, affine=np.diag([1.0, 1.0, 4.0, 1.0]))
    session.study = reopen(folder / "volume.nii.gz", folder)
    return request


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(*words):
    assert main.main([str(word) for word in words]) == 0


def test_a_reconstruction_is_that_of_the_command(studio, page, trained, tmp_path):
    look.reconstruct_all(studio, page, QUIET)
    session = studio.session(page)
    run("reconstruct", trained.run, session.study.source, "-o", tmp_path / "cli", "--device", "cpu")
    assert contents(session.folder / "reconstruction-2") == contents(tmp_path / "cli")


def test_a_generated_set_is_that_of_the_command(studio, trained, tmp_path):
    out = generate.draw(studio, request_of(), WISH, QUIET)
    words = WISH.command().replace("MODEL", str(trained.run)).replace("DIR", str(tmp_path / "cli"))
    run(*words.split()[1:], "--device", "cpu")
    assert contents(out) == contents(tmp_path / "cli")


def test_conditions_and_guidance_reach_the_set_and_the_command(studio, trained, tmp_path):
    wish = Wish.of(1, 3, "2", False, 0.25, 1.5, 2, 2)
    out = generate.draw(studio, request_of(), wish, QUIET)
    words = wish.command().replace("MODEL", str(trained.run)).replace("DIR", str(tmp_path / "cli"))
    assert words.endswith("--class 2 --position 0.25 --steps 2 --decoder-steps 2 --guidance 1.5")
    run(*words.split()[1:], "--device", "cpu")
    assert contents(out) == contents(tmp_path / "cli")


def test_slices_for_a_painted_mask_are_those_of_the_command(studio, trained, tmp_path):
    kind = generate.kind_of(studio)
    labels = np.zeros((kind.rows, kind.columns), dtype=np.uint8)
    labels[4:20, 10:30] = 1
    mask = tmp_path / "mask.nii.gz"
    generate.write_mask(studio, mask, labels)
    out = generate.draw_for_mask(studio, request_of(), WISH, mask, QUIET)
    run(
        "generate",
        trained.run,
        "--masks",
        mask,
        "-o",
        tmp_path / "cli",
        "-n",
        2,
        "--seed",
        5,
        *STEPS,
        "--device",
        "cpu",
    )
    assert contents(out) == contents(tmp_path / "cli") | {mask.relative_to(tmp_path): mask.read_bytes()}


def test_a_painted_mask_lies_where_generated_masks_lie(studio, trained, tmp_path):
    generate_set(trained.run, tmp_path / "set", count=1, settings=QUICK, device="cpu")
    wanted = read_labels(tmp_path / "set" / "images" / "sample-000000_mask.nii.gz")
    shutil.copytree(tmp_path / "set", studio.session(request_of()).folder / "generated-1")
    generate.write_mask(studio, tmp_path / "mask.nii.gz", generate.first_mask(studio, request_of()))
    found = read_labels(tmp_path / "mask.nii.gz")
    assert np.array_equal(found.array, wanted.array)
    assert np.array_equal(found.affine, wanted.affine)


def test_a_filled_region_is_that_of_the_command_and_the_rest_unchanged(studio, page, trained, tmp_path):
    region = np.zeros((24, 40), dtype=np.uint8)
    region[8:16, 10:20] = 1
    out = paint.fill(studio, page, mask_sent(region), 3, WISH, QUIET)
    study = studio.session(page).study
    run(
        "inpaint", trained.run, study.source, out / "region.nii.gz", "-o", tmp_path / "cli", "-n", 2,
        "--seed", 5, *STEPS, "--device", "cpu",
    )  # fmt: skip
    assert contents(out).items() >= contents(tmp_path / "cli").items()
    before, after = read_nifti(study.source).array, read_nifti(out / "sample-00.nii.gz").array
    inside = read_labels(out / "region.nii.gz").array > 0
    assert inside.sum() == region.sum()
    assert np.array_equal(before[~inside], after[~inside])
    assert not np.array_equal(before[inside], after[inside])
    html = paint.results(out, WISH, None)
    assert html.count("<img") == 2


def mask_sent(mask):
    import base64

    return base64.b64encode(mask.tobytes()).decode()


def test_a_painted_mask_comes_back_as_it_was_sent():
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(mask_of(mask_sent(mask), (3, 4)), mask)
    assert mask_sent(mask) in painter("x", np.zeros((3, 4), dtype=np.float32), 1.0, mask=mask)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (None, "Nothing is painted"),
        (mask_sent(np.zeros((3, 4), dtype=np.uint8)), "Nothing is painted"),
        (mask_sent(np.ones((2, 4), dtype=np.uint8)), "another slice"),
        ("%%%", "damaged"),
    ],
)
def test_a_mask_that_cannot_be_used_is_refused(sent, words):
    with pytest.raises(DataError, match=words):
        mask_of(sent, (3, 4))


def test_labels_that_the_model_does_not_know_are_refused_in_words(studio, tmp_path):
    kind = generate.kind_of(studio)
    generate.write_mask(studio, tmp_path / "mask.nii.gz", np.full((kind.rows, kind.columns), 99, np.uint8))
    with pytest.raises(DataError, match="99") as caught:
        generate.draw_for_mask(studio, request_of(), WISH, tmp_path / "mask.nii.gz", QUIET)
    assert str(tmp_path) not in cleaned(str(caught.value))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"count": 33}, "1 to 32"),
        ({"seed": None}, "whole number"),
        ({"seed": 0.5}, "whole number"),
        ({"steps": 0}, "steps 0"),
    ],
)
def test_a_wish_out_of_range_is_refused(values, words):
    asked = {"count": 1, "seed": 0, "group": None, "free": True, "position": 0, "guidance": 0, "steps": 1}
    with pytest.raises(ConfigError, match=words):
        Wish.of(**{**asked, "decoder_steps": 1, **values})


def test_many_slices_for_a_mask_are_refused(studio, tmp_path):
    write_nifti(tmp_path / "mask.nii.gz", np.zeros((4, 4, 200), np.uint8), affine=np.diag([1.0, 1, 2, 1]))
    with pytest.raises(ConfigError, match="2 volumes of 200 slices: wanted at most 256"):
        generate.draw_for_mask(studio, request_of(), WISH, tmp_path / "mask.nii.gz", QUIET)


# --- Progress and stopping


def test_progress_counts_every_step_and_ends_at_one(studio, monkeypatch):
    shares = []
    monkeypatch.setattr(QUIET.__class__, "__call__", lambda _, share, desc: shares.append(share))
    generate.draw(studio, request_of(), WISH, QUIET)
    assert shares == [0, 0.25, 0.5, 0.75, 1.0]


def test_a_stopped_job_ends_at_its_next_layer_and_leaves_no_hook():
    layer, job = torch.nn.Linear(2, 2), Job(1)

    def work():
        with job.running():
            layer(torch.zeros(1, 2))
            job.stop()
            layer(torch.zeros(1, 2))

    with pytest.raises(StoppedError):
        work()
    assert job.ended
    layer(torch.zeros(1, 2))


def test_a_job_does_not_stop_another_thread():
    job = Job(1)
    with job.running():
        job.stop()
        thread = threading.Thread(target=torch.nn.Linear(2, 2), args=[torch.zeros(1, 2)])
        thread.start()
        thread.join()
    assert job.done == 0


def test_a_page_computes_one_thing_at_a_time(workspace):
    session = workspace.session("a")
    first = Job(1)
    session.start(first)
    with pytest.raises(BusyError):
        session.start(Job(1))
    first.ended = True
    session.start(Job(1))


# --- Temporary files


def test_a_closed_page_leaves_nothing(workspace):
    session, job = workspace.session("a"), Job(1)
    session.start(job)
    (session.folder / "x").touch()
    token = workspace.offer(session.folder / "x")
    assert workspace.offered(token) == session.folder / "x"
    workspace.close_session("a")
    assert list(workspace.root.iterdir()) == [workspace.uploads]
    assert workspace.offered(token) is None
    with pytest.raises(StoppedError):
        job.check()


def test_the_page_idle_for_longest_makes_room(workspace, monkeypatch):
    monkeypatch.setattr("slicebook.studio.workspace.MAX_SESSIONS", 2)
    first, second = workspace.session("a"), workspace.session("b")
    assert workspace.session("a") is first
    workspace.session("c")
    assert first.folder.exists()
    assert not second.folder.exists()


def test_an_old_upload_is_removed(workspace, monkeypatch):
    (workspace.uploads / "old").mkdir()
    (workspace.uploads / "old" / "x").touch()
    workspace.sweep()
    assert (workspace.uploads / "old").exists()
    monkeypatch.setattr("slicebook.studio.workspace.UPLOAD_SECONDS", -1)
    workspace.sweep()
    assert not list(workspace.uploads.iterdir())


def test_only_an_upload_can_be_opened(studio, tmp_path):
    (tmp_path / "private.nii.gz").touch()
    for path in (tmp_path / "private.nii.gz", studio.workspace.uploads / ".." / "x", studio.workspace.root):
        with pytest.raises(DataError, match="no longer there"):
            look.open_file(studio, request_of(), str(path), QUIET)
    assert (tmp_path / "private.nii.gz").exists()


def test_only_this_user_can_enter_the_folder(workspace):
    assert workspace.root.stat().st_mode & 0o077 == 0


def test_new_results_replace_older_ones(workspace):
    session = workspace.session("a")
    first = session.new_folder("generated")
    first.mkdir()
    pack(first, "x.zip")
    assert session.new_folder("generated") != first
    assert list(session.folder.iterdir()) == []


# --- Words


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("/tmp/x-1/session-2/volume.nii.gz: ends after 3 bytes", "the file: ends after 3 bytes"),
        ("cannot read '/a/b c', wanted 2 nats/token", "cannot read 'the file c', wanted 2 nats/token"),
        ("a mask\n  of 3/4", "a mask of 3/4"),
    ],
)
def test_a_message_names_no_path(message, shown):
    assert cleaned(message) == shown


def test_an_unexpected_error_is_told_to_nobody_but_the_terminal(capsys):
    @answering([1, 2])
    def broken():
        raise KeyError("SECRET")

    shown = broken()
    assert "SECRET" not in str(shown)
    assert 'role="alert"' in shown[0]
    assert "SECRET" in capsys.readouterr().err


def test_a_model_without_a_prior_says_what_is_missing(workspace, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # set by the studio, and restored after the test
    studio = Studio.open("starter:compact", "cpu", workspace)
    assert studio.prior is None
    made = str(make_page("starter:compact", workspace, device="cpu").blocks.get_config_file())
    assert made.count("it has no prior") == 2
    assert "How to evaluate this model" in made


def test_a_report_is_found_beside_its_model_and_not_beside_another(trained, evaluated, workspace, tmp_path):
    run_folder = tmp_path / "run"
    shutil.copytree(trained.run, run_folder, ignore=shutil.ignore_patterns("*state*", "tokens*"))
    studio = Studio.open(str(run_folder), "cpu", workspace)
    assert judge.find_report(studio) is None
    shutil.copytree(evaluated, tmp_path / "evaluation")
    assert judge.find_report(studio) == tmp_path / "evaluation"
    report = tmp_path / "evaluation" / "report.json"
    text = report.read_text(encoding="utf-8")
    for weights in (studio.weights, studio.tokenizer.info.weights_sha256):
        text = text.replace(weights, "0" * 64)
    report.write_text(text, encoding="utf-8")
    assert judge.find_report(studio) is None


def test_the_formats_are_those_of_the_command():
    assert sorted(FORMATS.values()) == sorted(get_args(SetFormat))


def test_every_format_can_be_packed_and_holds_what_the_command_writes(studio, tmp_path):
    pytest.importorskip("highdicom")
    out = generate.draw(studio, request_of(), replace(WISH, count=5), QUIET)
    facts = SetFacts(label_names=studio.prior.label_names)
    for name, form in FORMATS.items():
        assert "slicebook-generated.zip" in generate.packed(studio, out, name)
        root = "Dataset501_Synthetic" if form == "nnunet" else "slicebook-generated"
        wanted = out if form == "nifti" else tmp_path / form / root
        if form != "nifti":
            export_set(out, wanted, form, facts)
        with zipfile.ZipFile(
            max(out.parent.rglob("*.zip"), key=lambda path: path.stat().st_mtime_ns)
        ) as made:
            packed = {info.filename: made.read(info) for info in made.infolist()}
        assert packed == {
            f"{root}/{path.relative_to(wanted).as_posix()}": path.read_bytes()
            for path in wanted.rglob("*")
            if path.is_file()
        }
    assert generate.draw(studio, request_of(), WISH, QUIET).parent == out.parent
    assert not list(out.parent.glob(f"{out.name}*"))  # all went with the set


def test_too_few_samples_for_nnunet_are_told_as_the_command_does(studio):
    out = generate.draw(studio, request_of(), WISH, QUIET)
    with pytest.raises(ConfigError, match="nnU-Net's cross-validation needs 5 or more"):
        generate.packed(studio, out, "nnU-Net")


@pytest.mark.parametrize("words", [["--host", "0.0.0.0"], ["--password-file", "missing"]])
def test_the_command_refuses_what_is_not_safe(words, capsys):
    assert main.main(["studio", "starter:compact", *words]) == 1
    assert "password" in capsys.readouterr().err
