"""The studio over HTTP: every function of the page, downloads, and what the page may not reach."""

import base64
import re
import shutil

import httpx
import numpy as np
import pytest
from helpers.studio import HttpPage, file_data, running_studio

from slicebook.io.nifti import write_nifti
from slicebook.reporting.html import write_page
from slicebook.studio import app
from slicebook.studio.app import housekeeping, run_studio
from slicebook.studio.generate import FREE, PAINTED, UPLOADED

pytestmark = pytest.mark.filterwarnings("ignore:.*no_silent_downcasting")  # of pandas, about gradio

NIFTI = "NIfTI with manifest"
WISH = (1, 4, "Any", True, 0.5, 0, 1, 1)  # number, seed, class, any position, position, guidance, steps


@pytest.fixture(scope="module")
def studio(trained):
    with running_studio(trained.run) as running:
        yield running


@pytest.fixture
def page(studio):
    made = HttpPage(studio.address)
    yield made
    made.client.close()


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "DOE-JANE.nii.gz"
    array = np.random.default_rng(0).normal(size=(40, 24, 3)).astype(np.float32)
    write_nifti(path, array, affine=np.diag([1.0, 1.0, 2.0, 1.0]))
    return path


def link_in(html):
    return re.search(r'href="([^"]+)"', html)[1]


def painted(size, label=1):
    mask = np.zeros(size, dtype=np.uint8)
    mask[5:15, 5:15] = label
    return base64.b64encode(mask.tobytes()).decode()


def test_a_volume_is_opened_looked_at_and_reconstructed(page, scan):
    shown = page.act("look-open", page.upload(scan), event="upload")
    assert "3 axial slices of 24 × 40" in shown[0]
    assert shown[-1].count("<img") >= 6
    (other,) = page.act("look-slice", 2, event="input")
    assert other != shown[-1]
    again = page.act("look-plane", None, "Sagittal", event="input")
    assert "40 sagittal slices of 3 × 24" in again[0]
    page.act("look-plane", None, "As acquired", event="input")
    message, link = page.act("look-all")
    assert "All slices are reconstructed" in message
    answer = page.client.get("/" + link_in(link))
    assert answer.content[:2] == b"PK"
    assert "attachment" in answer.headers["content-disposition"]
    page.act("look-all")  # the earlier result makes room
    assert page.client.get("/" + link_in(link)).status_code == 404
    assert "JANE" not in str([shown, again, message, link])


def test_a_phantom_is_opened(page):
    assert "12 axial slices of 128 × 256" in page.act("look-phantom")[0]


def test_a_file_that_was_not_uploaded_is_not_opened(page, scan):
    shown = page.act("look-open", file_data(str(scan)), event="upload")
    assert "axial slices" not in str(shown)
    assert scan.exists()


def test_a_damaged_file_is_told_without_its_path(page, tmp_path):
    (tmp_path / "x.nii.gz").write_bytes(b"no volume")
    message = page.act("look-open", page.upload(tmp_path / "x.nii.gz"), event="upload")[0]
    assert "the file: is not a NIfTI file" in message
    assert "slicebook-studio" not in message
    assert "No volume is open" in page.act("look-all")[0]


def test_slices_are_generated_and_their_mask_painted_further(page, studio):
    assert "There is no sample yet" in page.act("generate-start")[0]
    message, _, link, gallery = page.act("generate-run", "", FREE, None, NIFTI, *WISH)
    assert "Not audited" in message
    assert "Seed 4" in gallery
    assert page.client.get("/" + link_in(link)).status_code == 200
    _, other = page.act("generate-format", NIFTI, event="input")
    assert page.client.get("/" + link_in(other)).status_code == 200
    assert "data-mask" in page.act("generate-start")[1]
    kind = studio.studio.prior.slices[0]
    sent = painted((kind.rows, kind.columns))
    *_, gallery = page.act("generate-run", sent, PAINTED, None, NIFTI, *WISH)
    assert "--masks mask.nii.gz" in gallery


def test_slices_are_generated_for_an_uploaded_mask(page, tmp_path):
    assert "upload one first" in page.act("generate-run", "", UPLOADED, None, NIFTI, *WISH)[0]
    mask = tmp_path / "JANE-mask.nii.gz"
    write_nifti(mask, np.zeros((32, 32, 2), np.uint8), affine=np.diag([1.0, 1.0, 2.0, 1.0]))
    *_, gallery = page.act("generate-run", "", UPLOADED, page.upload(mask), NIFTI, *WISH)
    assert "slice 0 of 2" in gallery
    assert "JANE" not in gallery


def test_a_region_is_filled(page, scan):
    page.act("paint-tab", None, event="select")
    page.act("look-open", page.upload(scan), event="upload")
    assert "sb-painter" in str(page.act("paint-tab", None, event="select"))
    assert "sb-painter" in page.act("paint-slice", 0, event="input")[1]
    message, link, view = page.act("paint-run", painted((24, 40)), 0, 2, 7, 1, 1, 1)
    assert "Pixels outside the region are unchanged" in message
    assert view.count("<img") == 2
    assert "-n 2 --seed 7 --steps 1 --decoder-steps 1 --guidance 1" in view
    assert page.client.get("/" + link_in(link)).status_code == 200


def test_a_report_is_served_where_there_is_one(page, studio, evaluated, trained, tmp_path):
    assert page.client.get("/report").status_code == 404
    folder = tmp_path / "run"
    shutil.copytree(trained.run, folder, ignore=shutil.ignore_patterns("*state*", "tokens*"))
    shutil.copytree(evaluated, folder / "evaluation")
    write_page(folder / "evaluation")
    with running_studio(folder) as other:
        answer = httpx.get(f"{other.address}/report")
        assert answer.text == (folder / "evaluation" / "report.html").read_text(encoding="utf-8")


def test_no_answer_names_a_place_on_this_machine(page, trained):
    for path in ("/", "/config"):
        assert str(trained.run) not in page.client.get(path).text
    assert page.client.get("/gradio_api/file=/etc/hostname").status_code in (403, 404)


def test_a_download_that_does_not_exist_is_not_there(page):
    assert page.client.get("/download/nothing/x.zip").status_code == 404


def test_the_studio_starts_says_where_and_removes_its_files(monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # set by the studio, and restored after the test
    said: list[str] = []
    folders: list[object] = []

    def stop(server, sockets=None):
        folders.append(server.config.app)

    monkeypatch.setattr("uvicorn.Server.run", stop)
    run_studio("starter:compact", port=0, device="cpu", say=said.append)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+ \(stop with Ctrl\+C\)", said[0])
    assert len(folders) == 1


def test_old_uploads_are_removed_every_few_seconds(monkeypatch, studio):
    monkeypatch.setattr(app, "HOUSEKEEPING_SECONDS", 0.0)
    monkeypatch.setattr("slicebook.studio.workspace.UPLOAD_SECONDS", -1)
    upload = studio.studio.workspace.uploads / "x"
    upload.touch()
    with housekeeping(studio.studio.workspace):
        while upload.exists():
            pass


def test_two_pages_can_open_the_same_file(page, studio, scan):
    other = HttpPage(studio.address)
    uploads = [page.upload(scan), other.upload(scan)]
    for one, upload in zip((page, other), uploads, strict=True):
        assert "3 axial slices" in one.act("look-open", upload, event="upload")[0]
    other.client.close()
