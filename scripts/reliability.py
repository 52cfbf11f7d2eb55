"""Prints docs/reliability.md from the tests that are marked with the fault which they make.

python scripts/reliability.py > docs/reliability.md

A test says `@pytest.mark.fault("truncated NIfTI", "refused: …; copy it again")`, and every fault in `FAULTS`
needs a test. With `--record` it first runs the twenty kills and the fuzzer, for half an hour, and keeps what
they did in docs/reliability.json.
"""

import ast
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "docs" / "reliability.json"
KILLS = "tests/training/test_kills.py"
FUZZ = "tests/io/test_fuzz.py"

FAULTS: dict[str, list[str]] = {
    "NIfTI files": [
        *("truncated NIfTI", "truncated gzip", "bit-flipped gzip", "header without voxels", "0 bytes"),
        *("text named .nii", "gzip named .nii, and the reverse", "gzip bomb", "dimensions of 32,000³"),
        *(
            "negative dimension",
            "dimension of zero",
            "nine dimensions",
            "NaN or infinity in some or all voxels",
        ),
        *("constant slice or volume", "4D", "RGB", "complex", "big-endian", "slope 0", "slope NaN"),
        *("slope 3e38", "rotated affine", "flipped affine", "sheared affine", "spacing 0"),
        *("sform that disagrees with qform", "pixels of a label map, given as an image"),
    ],
    "DICOM files": [
        *(
            "truncated DICOM",
            "bit-flipped DICOM",
            "without pixels",
            "huge rows",
            "deflate bomb",
            "MONOCHROME1",
        ),
        *("codestream larger than its header", "two series in one folder", "missing slice", "gantry tilt"),
        *("two slices at one place", "no decoder for a compression"),
    ],
    "DICOM of every vendor": [
        *("UIDs shared by people after anonymising", "RescaleSlope 0", "no preamble", "DICOMDIR"),
        *("AppleDouble twin", "screenshot", "segmentation, dose or presentation state", "localizer"),
        *("T1, T2 and ADC in one folder", "one scan under two acquisition numbers"),
        *("sequential CT, an acquisition number per rotation", "a series UID per slice"),
        *("several echoes, b-values or times in one series", "magnitude and phase in one series"),
        *("two b-values in one enhanced file", "one PatientID for all folders", "Siemens or UIH mosaic"),
        *("raw data without an image", "JPEG Lossless SV1", "same voxels under two PatientIDs"),
        *("more than 5 % of files unreadable",),
    ],
    "Data sets": [
        *("sizes mixed", "rare sizes", "image and mask that disagree", "one patient in two splits"),
        *("one slice under two names", "names that collide", "linked folder, or a link out of the root"),
        *(
            "link to nothing",
            "`..` in a list of files",
            "hidden files beside the data",
            "masks that no rule pairs",
        ),
        *("a folder above or below the data set", "advice on fractions", "a prepared folder cut short"),
        *("mask without an image", "killed prepare"),
    ],
    "Private text": [
        *("patient data in NIfTI headers", "patient data in DICOM headers", "patient data in file names"),
        *("patient data near an error", "patient data in header text that check looks for"),
    ],
    "Models, tokens and settings": [
        *("pickle in a model's place", "zip-slip", "truncated model", "bit-flipped model"),
        *("model of a newer version", "settings that claim more memory than the file has weights"),
        *("tokens of another codebook", "tokens out of range", "damaged token file", "mistyped key"),
        *("value out of range",),
    ],
    "Trainings": [
        *(
            "NaN loss",
            "collapse alarm",
            "killed worker",
            "small shared memory",
            "SIGKILL at 20 random moments",
        ),
        *("SIGTERM or SIGUSR1", "damaged state", "two trainings in one folder"),
    ],
    "Long work": [
        "SIGKILL in a folder of volumes",
        "SIGKILL of an evaluation",
        "kill within a line of a journal",
    ],
    "The machine": [
        *("disk full", "read-only folder", "no network", "paths with spaces, Unicode and 255 bytes"),
        *("file names of another encoding", "locale without UTF-8", "clock set back"),
        *("two commands that write one folder", "few open files allowed"),
        *("network file system that fails",),
    ],
    "Ten thousand damaged files": ["files damaged at random", "lists of numbers and texts drawn at random"],
}
"""By section, the faults that need a test, in the order of the page."""


@dataclass(frozen=True)
class Marked:
    """A test of a fault."""

    fault: str
    outcome: str
    test: str
    """path::name"""


def marked(folder: Path = ROOT / "tests") -> Iterator[Marked]:
    """Yield the marked tests of a folder.

    Raises:
        ValueError: A marker is not two texts.
    """
    for path in sorted(folder.rglob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                    try:
                        fault, outcome = (ast.literal_eval(value) for value in mark.args)
                    except ValueError as error:
                        raise ValueError(
                            f"{path}: {node.name}: fault(name, outcome) wants two texts"
                        ) from error
                    yield Marked(fault, outcome, f"{path.relative_to(ROOT).as_posix()}::{node.name}")


def page() -> str:
    """Return what docs/reliability.md must hold.

    Raises:
        ValueError: A fault has no test, or a test names a fault that is not in `FAULTS`.
    """
    tests = list(marked())
    known = [fault for faults in FAULTS.values() for fault in faults]
    if unknown := sorted({test.fault for test in tests} - set(known)):
        raise ValueError(f"scripts/reliability.py: FAULTS lacks {unknown}, which tests are marked with")
    if missing := [fault for fault in known if fault not in {test.fault for test in tests}]:
        raise ValueError(f"scripts/reliability.py: no test is marked with {missing}")
    count = len({test.test for test in tests})
    text = [HEAD.format(faults=len(known), tests=count)]
    for section, faults in FAULTS.items():
        text.append(f"\n## {section}\n\n| fault | outcome | test |\n|---|---|---|\n")
        for fault in faults:
            text += [
                f"| {fault} | {test.outcome} | `{test.test.removeprefix('tests/')}` |\n"
                for test in tests
                if test.fault == fault
            ]
    return "".join(text) + recorded()


HEAD = """\
# Reliability: what was tried, and what happens

Written by `python scripts/reliability.py` from the tests; a test fails when this page differs from them.
{faults} kinds of fault, {tests} tests, each of which makes its own files. "Refused" means: one line on stderr
that names the file, what was found, what was wanted and what to do; exit status 1; nothing lost or
half-written; no traceback. Two tests hold this for the commands: `io/test_hostile_commands.py` and
`project/test_faults.py`.
"""


def recorded() -> str:
    """Return the sections of the kills and of the fuzzer, as `--record` has kept them."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    text = ["\n## The log of 20 kills\n\n"]
    text.append(
        "A training of 108 steps, killed 20 times and resumed each time, ends with the weights of one\n"
    )
    text.append("that was not killed, bit for bit.\n\n| kill | moment | step kept |\n|---:|---|---:|\n")
    for number, moment, step in record["kills"]:
        text.append(f"| {number} | {moment} | {step} |\n")
    text.append("\n## The count of the fuzzer\n\n")
    text.append(
        "`python -m pytest -m slow tests/io/test_fuzz.py`; the same number always gives the same file.\n\n"
    )
    text.append("| kind | files | read | refused | faults |\n|---|---:|---:|---:|---:|\n")
    for row in record["fuzz"]:
        files = row["read"] + row["refused"] + row["faults"]
        cells = (row["kind"], files, row["read"], row["refused"], row["faults"])
        text.append(f"| {' | '.join(f'{cell:,}' if isinstance(cell, int) else cell for cell in cells)} |\n")
    return "".join(text)


def record() -> None:
    """Run the kills and the fuzzer, and keep what they did."""
    run = [sys.executable, "-m", "pytest", "-q", "-s"]
    kills = subprocess.run([*run, KILLS], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "fuzz.jsonl"
        environment = os.environ | {"SLICEBOOK_FUZZ_RECORD": str(place)}
        subprocess.run([*run, "-m", "slow", FUZZ], cwd=ROOT, env=environment, check=True)
        fuzz = place.read_text(encoding="utf-8")
    keep(kills, fuzz)


def keep(kills: str, fuzz: str) -> None:
    """Write what the kills printed, and the lines of the fuzzer, to docs/reliability.json."""
    moments = re.findall(r"^\.?kill (\d+): (.*): step (\d+) is kept$", kills, re.MULTILINE)
    content = {
        "kills": [[int(number), moment, int(step)] for number, moment, step in moments],
        "fuzz": [json.loads(line) for line in fuzz.splitlines()],
    }
    RECORD.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if "--record" in sys.argv:
        record()
    print(page(), end="")
