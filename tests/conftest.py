"""Checks every shape and type that `src` promises while the tests run, on one thread a process.

Holds the one tiny prior, and the one report, that the tests of generating, inpainting and judging share.
"""

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from beartype import BeartypeConf, beartype
from helpers.settings import SMALL
from jaxtyping import install_import_hook

if TYPE_CHECKING:
    from slicebook.evaluation.features import Descriptor
    from slicebook.models.checkpoint import LoadedPrior

# As the type system has it, an int is a float (PEP 484).
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))

install_import_hook("slicebook", f"{__name__}.checked")
torch.set_num_threads(1)


def missing_for_browser() -> str:
    """Return what the tests marked `browser` lack, and how to install it; empty where nothing is missing."""
    if not shutil.which("chromium"):
        return "there is no chromium (apt-get install chromium libatomic1)"
    if not importlib.util.find_spec("playwright"):
        return "there is no playwright (pip install -e '.[browser]')"
    return ""


def missing_for_gpu() -> str:
    """Return what the tests marked `gpu` lack; empty where nothing is missing."""
    device = os.environ.get("SLICEBOOK_TEST_DEVICE", "cuda")
    if device == "cuda" and not torch.cuda.is_available():
        return "there is none"
    return ""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each process whole files, and to one that is idle the rest of another's.

    The default deals tests out one by one, so that every process builds the fixtures of every file.
    """
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start with the longest tests, those of the pages; deselect slow ones and those that lack something."""
    items.sort(key=lambda item: item.path.name != "test_words.py")
    slow = {} if "slow" in config.option.markexpr else {"slow": "not chosen"}
    for marker, reason in (missing() | slow).items():
        deselected = [item for item in items if item.get_closest_marker(marker)]
        if reason and deselected:
            config.hook.pytest_deselected(items=deselected)
            items[:] = [item for item in items if item not in deselected]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why the tests of a browser or a GPU did not run."""
    for marker, reason in missing().items():
        if reason:
            terminalreporter.write_line(f"{marker} tests deselected: {reason}")


def missing() -> dict[str, str]:
    """Return by marker what its tests lack."""
    return {"browser": missing_for_browser(), "gpu": missing_for_gpu()}


@dataclass(frozen=True)
class Trained:
    """A tiny trained whole, not to be written to: slices of phantoms, with masks and, but for two, classes.

    Attributes:
        raw: The phantoms, one NIfTI file a slice.
        data: The prepared folder.
        run: Of the tokenizer; the prior lies in `run`/prior.
    """

    raw: Path
    data: Path
    run: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Train a tokenizer, one of masks, a prior over both and a decoder, for a few steps each."""
    from helpers.training import OPTIONS

    from slicebook.data.prepare import PrepareOptions, prepare
    from slicebook.phantom.simulator import write_hipmri
    from slicebook.recipes import load_recipe
    from slicebook.training.generator import train_generator
    from slicebook.training.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("trained")
    made = Trained(folder / "raw", folder / "prepared", folder / "demo" / "run")
    write_hipmri(made.raw, patients=(4, 2, 1), weeks=1, slices=6, seed=1, shape=(64, 32))
    prepare(made.raw, made.data, options=PrepareOptions(class_regex=r"slice_([0-3])"))
    train_tokenizer(made.data, load_recipe("compact", SMALL), made.run, options=OPTIONS)
    train_generator(made.run, options=OPTIONS)
    return made


@pytest.fixture(scope="session")
def loaded(trained: Trained) -> "LoadedPrior":
    """The tiny prior."""
    from slicebook.models.checkpoint import load_prior

    return load_prior(trained.run)


@pytest.fixture(scope="session")
def kinds() -> "list[Descriptor]":
    """Of features: texture alone, which needs no weights."""
    from slicebook.evaluation.features import Descriptor
    from slicebook.metrics.features import texture

    return [Descriptor("texture", texture.CONVENTION, False, texture.texture_features)]


@pytest.fixture(scope="session")
def evaluated(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Judge the tiny whole in all parts, and return the folder of the report; not to be written to.

    An audit needs three training patients of one size, and one phantom has more rows.
    """
    from slicebook.data.dataset import PreparedData
    from slicebook.evaluation.evaluate import evaluate

    folder = tmp_path_factory.mktemp("evaluated")
    data = PreparedData.open(trained.data)
    evaluate(trained.run, data, folder / "report", split="validation", samples=24, steps=4)
    return folder / "report"


@pytest.fixture
def variant(evaluated: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write the tiny report into a folder of some name, some values changed: `outer__inner=value`.

    A function is called with the value that is there.
    """

    def write(name: str, **changes: Any) -> Path:
        content = json.loads((evaluated / "report.json").read_text(encoding="utf-8"))
        for key, value in changes.items():
            *path, last = key.split("__")
            inner = content
            for step in path:
                inner = inner[step]
            inner[last] = value(inner[last]) if callable(value) else value
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "report.json").write_text(json.dumps(content), encoding="utf-8")
        return folder

    return write
