"""Every python and sh block of the documents runs, page by page, in the order in which it stands there.

The how-tos and the page of file formats continue from the tutorial: they run in its folder, the how-tos in
the order of their table of contents.
"""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from slicebook.cli import main
from slicebook.evaluation import evaluate as evaluation

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
HOW_TO = DOCS / "how-to" / "index.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def listed(page):
    """The pages in a page's tables of contents, in their order."""
    tables = re.findall(
        r"^:::\{toctree\}\n(.*?)^:::$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    names = [line for table in tables for line in table.splitlines() if line and not line.startswith(":")]
    return [(page.parent / f"{name}.md").resolve() for name in names]


JOURNEY = (DOCS / "tutorial.md", HOW_TO, *listed(HOW_TO), DOCS / "file-formats.md")
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
ALONE = [(page,) for page in PAGES if page not in JOURNEY]

# Commands that are not run here, by how they start, and why.
NOT_RUN = {
    "python3 -m venv": "installs: .ci/run does exactly this",
    "scripts/check": "would run this test",
    ".venv/bin/pip install": "installs: .ci/run does exactly this",
    "source .venv/bin/activate": "changes the shell",
    ".venv/bin/torchrun": "needs several GPUs",
    "srun": "needs a SLURM cluster",
    "slicebook --install-completion": "writes to the shell's files; tests/cli/test_completion.py asks for it",
    "slicebook studio": "serves until it is stopped; tests/studio opens its page",
}


def blocks(page):
    """Language and text of each block of a page."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def commands(page):
    """The lines of a page's sh blocks, continued ones joined."""
    text = "".join(block for language, block in blocks(page) if language == "sh")
    return text.replace("\\\n", " ").splitlines()


def write_hospital_export(folder):
    """What the pages call `export`: three patients' axial series of four slices, in DICOM."""
    rng = np.random.default_rng(0)
    for patient in range(3):
        series = generate_uid()
        for number in range(4):
            meta = FileMetaDataset()
            meta.TransferSyntaxUID = ExplicitVRLittleEndian
            meta.MediaStorageSOPClassUID = MRImageStorage
            meta.MediaStorageSOPInstanceUID = generate_uid()
            ds = pydicom.Dataset()
            ds.file_meta = meta
            ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
            ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.Modality = series, generate_uid(), "MR"
            ds.PatientID, ds.InstanceNumber, ds.AcquisitionNumber = f"P{patient}", number + 1, 1
            ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 3 * number]
            ds.PixelSpacing, ds.SliceThickness = [1.5, 1.5], 3
            ds.Rows, ds.Columns, ds.SamplesPerPixel = 64, 64, 1
            ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
            ds.PixelRepresentation, ds.PhotometricInterpretation = 0, "MONOCHROME2"
            ds.PixelData = rng.integers(0, 2000, (64, 64), np.uint16).tobytes()
            path = folder / f"patient-{patient}" / f"{number}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            ds.save_as(path, enforce_file_format=True)


@pytest.mark.filterwarnings("default:.*NIfTI files were passed over")  # masks beside their images
@pytest.mark.filterwarnings("default:level . uses")  # the pages train for one epoch: not yet enough
@pytest.mark.timeout(1800)  # the tutorial and all how-tos, on a busy machine
@pytest.mark.parametrize("pages", [JOURNEY, *ALONE], ids=lambda pages: pages[0].name)
def test_every_block_of_a_page_runs(pages, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluation, "MIN_SAMPLES", 12)  # drawing 100 took most of the time of a page
    if any("export" in "".join(commands(page)) for page in pages):
        write_hospital_export(tmp_path / "export")
    for page in pages:
        run(page)


def run(page):
    """Run a page's blocks in the current folder; what trains for minutes there, trains for an epoch."""
    names: dict[str, Any] = {}
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, str(page), "exec"), names)
        if language == "yaml":  # named in its first line
            Path(text.splitlines()[0].removeprefix("# ")).write_text(text, encoding="utf-8")
        for line in text.replace("\\\n", " ").splitlines() if language == "sh" else ():
            command = re.sub(r"max_minutes=[\d.]+", "epochs=1", line)
            if not command.startswith(tuple(NOT_RUN)):
                program, *arguments = shlex.split(command)
                assert program == "slicebook", f"{command}: neither run here nor listed in NOT_RUN"
                assert main.main(arguments) == 0, f"{page.name}: {command}"


def test_every_block_says_its_language():
    unknown = [(page.name, language) for page in PAGES for language, _ in blocks(page)]
    assert [one for one in unknown if one[1] not in {"python", "sh", "yaml", "text"}] == []


def test_every_exception_is_used():
    every = [command for page in PAGES for command in commands(page)]
    assert [start for start in NOT_RUN if not any(command.startswith(start) for command in every)] == []


@pytest.mark.parametrize(
    "command",
    [
        "python3 -m venv .venv && .venv/bin/pip install -e '.[judge]' && .venv/bin/slicebook demo",
        "python3 -m venv .venv && .venv/bin/pip install -e '.[dev]' && .venv/bin/python -m pytest -n auto",
    ],
)
def test_the_first_screen_holds_the_two_commands(command):
    assert command in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:25]


def test_every_link_between_pages_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_is_in_a_table_of_contents():
    contents = {DOCS / "index.md", *listed(DOCS / "index.md"), *listed(HOW_TO)}
    assert contents == set(DOCS.rglob("*.md"))
