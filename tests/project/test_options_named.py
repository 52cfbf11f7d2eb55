"""An option that a message, a docstring or a help text names is one that exists."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from slicebook.cli import main

ROOT = Path(__file__).parents[2]
LEFT_OUT = {Path(__file__).name, "log.md", "releasing.md", "test_page_in_browser.py"}
FILES = sorted(
    path
    for folder in ("src", "benchmarks", "docs", "tests", "README.md")
    for path in (ROOT / folder, *(ROOT / folder).rglob("*"))
    if path.suffix in {".py", ".md", ".j2", ".yaml"} and path.name not in LEFT_OUT
)
OPTION = re.compile(r"(?<![\w/-])--[a-z][a-z-]*[a-z]\b(?!-)")

# Options of other programs.
OTHERS = {
    *("--ink", "--line", "--ratio", "--split"),  # variables of style sheets
    "--shm-size",  # docker run
    "--cov",  # pytest
    *("--hash", "--require-hashes", "--slow"),  # of a lock file, pip, scripts/check
    *("--raw", "--version", "--help"),  # gdcmconv; every program
    *(
        "--nodes",
        "--ntasks-per-node",
        "--gpus-per-node",
        "--standalone",
        "--nproc-per-node",
    ),  # srun, torchrun
    *("--porcelain", "--untracked-files", "--show-toplevel"),  # git
    *("--force-reinstall", "--no-deps", "--disable-pip-version-check", "--no-build-isolation"),  # pip
    *("--no-index", "--find-links", "--quiet", "--wheel-dir", "--target"),
    *("--cov", "--durations", "--junitxml"),  # pytest
    *("--query-gpu", "--format"),  # nvidia-smi
    *("--fail-on-warning", "--keep-going"),  # Sphinx
    *("--annotate", "--message", "--sign", "--strict"),  # git tag, twine
    *("--shm-size", "--ink", "--line", "--paper"),  # docker; colours of a page
    *("--disable-gpu", "--disable-quic", "--disable-background-networking", "--no-first-run"),  # Chromium
    *("--disable-component-update", "--disable-sync", "--no-sandbox"),
}


def options_of(command: Any) -> set[str]:
    """Every option of a command and of the commands below it."""
    names = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    for inner in getattr(command, "commands", {}).values():
        names |= options_of(inner)
    return names


def options_of_scripts() -> set[str]:
    """Options that a script declares itself, by `add_argument`."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").rglob("*.py")]
    return {name for text in texts for name in re.findall(r"add_argument\(\s*\"(--[a-z-]+)\"", text)}


KNOWN = options_of(typer.main.get_command(main.app)) | {"--debug"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_option_that_is_named_exists(path: Path) -> None:
    known = KNOWN | OTHERS
    if not path.is_relative_to(ROOT / "src"):
        known |= options_of_scripts()
    named = {match[0] for match in OPTION.finditer(path.read_text(encoding="utf-8"))}
    assert sorted(named - known) == []


def test_an_option_that_does_not_exist_would_be_noticed() -> None:
    named = {match[0] for match in OPTION.finditer("prepare it again (--mask-suffix), or --mask; a--b")}
    assert named - KNOWN == {"--mask-suffix"}
