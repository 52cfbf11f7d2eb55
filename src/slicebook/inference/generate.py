"""Generate slices with their masks as a data set: files, pictures and a manifest.

Samples are drawn and written in groups of 16. Until all are complete they lie in `OUT.partial`, so that the
same command resumes after the last finished group.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int64, Shaped
from matplotlib.image import imread
from torch import Tensor

from slicebook.data.manifest import SliceKind
from slicebook.data.transforms import IntensityMap
from slicebook.devices import choose_device
from slicebook.errors import ConfigError
from slicebook.inference.sample_folder import (
    RECORD_NAME,
    Sample,
    check_room,
    earlier_request,
    refuse_full,
)
from slicebook.inference.synthesis import (
    check_class,
    check_seeds,
    choose_sampling_precision,
    decode_pages,
    draw,
    render,
)
from slicebook.io.atomic import write_csv, write_text
from slicebook.io.nifti import header_for
from slicebook.io.resumable import PartialFolder, resuming_folder
from slicebook.io.volume import Volume
from slicebook.models.checkpoint import LoadedPrior, load_prior
from slicebook.models.sampling import SAMPLING_BATCH, SamplingSettings
from slicebook.models.sequence import DecodedSlices
from slicebook.progress import Progress
from slicebook.version import __version__
from slicebook.visualization import contact_sheet, figures

DESCRIPTION = "SYNTHETIC, drawn by Slicebook: no patient"  # in every file's header
SHEET = 64  # samples in the contact sheet, at most
LEVELS_SHOWN = 4  # samples whose partial decodings are shown level by level
SLICE_MM = 1.0  # through-plane size of a single synthetic slice, which has no neighbours


@dataclass(frozen=True)
class GenerateSummary:
    """What `generate` wrote."""

    out: Path
    samples: int
    size: tuple[int, int]
    with_masks: bool


@dataclass(frozen=True)
class SamplingRequest:
    """What all samples of a set share; an audit holds for samples of the same request alone.

    Attributes:
        size: Rows and columns.
        settings: Steps of sampling, and guidance.
        group: Class; None for any.
        conditional: Whether the prior is given any conditions.
        position: Position in the volume; None for any.
    """

    size: tuple[int, int]
    settings: SamplingSettings
    group: str | None
    conditional: bool
    position: float | None


ReleaseCheck: TypeAlias = Callable[[LoadedPrior, SamplingRequest], Mapping[str, str]]
"""Called before anything is sampled: raises, or returns files to write beside the samples, by name."""


def generate(
    model: str | Path,
    out: str | Path,
    *,
    count: int = 64,
    seed: int = 0,
    position: float | None = None,
    group: str | None = None,
    conditional: bool = True,
    size: tuple[int, int] | None = None,
    settings: SamplingSettings | None = None,
    release_check: ReleaseCheck | None = None,
    device: str = "auto",
    precision: str = "32-true",
    progress: Progress | None = None,
) -> GenerateSummary:
    """Generate slices with their masks and write them as a data set.

    `out` receives `images/sample-000000.nii.gz` (and `…_mask.nii.gz`), `pictures/*.png`, contact sheets,
    `levels.png`, `manifest.csv` (one `Sample` per row) and `generation.json`. It appears when all samples are
    complete; if the command is interrupted, the same call resumes it with the same result.

    Args:
        model: A prior's file, or the folder of a run or demo that holds one.
        out: New folder.
        count: Number of samples; sample i is drawn from seed + i.
        seed: Seed of the first sample.
        position: Position in the volume, 0 to 1, of every sample; by default random per sample.
        group: Class of every sample; unknown by default.
        conditional: Whether the prior is given any conditions.
        size: Rows and columns; the most frequent size of the training set by default.
        settings: Steps of sampling, and guidance.
        release_check: Raises unless the samples may be shared, such as `reporting.release.release_check`.
        device: auto, cpu, cuda or mps.
        precision: Precision of sampling; `auto` measures on a CPU, and an interrupted set keeps its own.
        progress: Called with the number of samples written and of all samples, first and after each group.

    Raises:
        CheckpointError: There is no trained prior.
        ConfigError: A size or class that the prior was not trained on, a setting out of range, or
            `out`.partial holds samples of other settings.
        DataError: `out` is not empty, or the disk is too small.
    """
    check_arguments(count, seed, position, group, conditional)
    loaded = load_prior(model, choose_device(device))
    if precision == "auto":
        precision = earlier_request(Path(out)).get("precision", "auto")
    task = GenerationTask.of(
        loaded,
        count=count,
        seed=seed,
        position=position,
        group=group,
        conditional=conditional,
        size=size,
        settings=settings,
        precision=precision,
    )
    refuse_full(Path(out), json.loads(json.dumps(task.record())))
    texts = release_check(loaded, task.request) if release_check else {}
    with resuming_folder(out, task.record(), what="samples") as work:
        check_room(Path(out), count - len(work.journal.units) * SAMPLING_BATCH, task.kind)
        _write_set(task, work, texts, progress)
    return GenerateSummary(Path(out), count, task.request.size, loaded.tokenizer.masks is not None)


@dataclass(frozen=True)
class GenerationTask:
    """The samples to generate, and the model.

    Attributes:
        loaded: The model.
        kind: Size, spacing and intensities of the slices.
        request: What the samples share.
        count: Number of samples.
        seed: Seed of the first sample; sample i has seed + i.
        precision: Precision of sampling.
    """

    loaded: LoadedPrior
    kind: SliceKind
    request: SamplingRequest
    count: int
    seed: int
    precision: str

    @classmethod
    def of(
        cls,
        loaded: LoadedPrior,
        *,
        count: int,
        seed: int,
        position: float | None,
        group: str | None,
        conditional: bool,
        size: tuple[int, int] | None,
        settings: SamplingSettings | None,
        precision: str,
    ) -> GenerationTask:
        """Check the arguments of `generate`, and fill in their defaults.

        Raises:
            ConfigError: A size or class that the prior was not trained on, or a setting out of range.
        """
        check_arguments(count, seed, position, group, conditional)
        kind = _kind(loaded, size)
        check_class(loaded, group)
        settings = settings or SamplingSettings()
        request = SamplingRequest((kind.rows, kind.columns), settings, group, conditional, position)
        return cls(loaded, kind, request, count, seed, choose_sampling_precision(loaded, precision))

    def groups(self, first: int = 0) -> Iterator[SampleGroup]:
        """Draw the samples from number `first` on, in groups of 16."""
        for start in range(first, self.count, SAMPLING_BATCH):
            yield _draw_group(self, start)

    def record(self) -> dict[str, Any]:
        """Return all that the samples depend on, as JSON values."""
        request = self.request
        return {
            "slicebook_version": __version__,
            "model_sha256": self.loaded.info.weights_sha256,
            "count": self.count,
            "seed": self.seed,
            "size": list(request.size),
            "position": request.position,
            "class": request.group,
            "conditional": request.conditional,
            **asdict(request.settings),
            "device": next(self.loaded.prior.parameters()).device.type,
            "precision": self.precision,
        }


def _write_set(
    task: GenerationTask,
    work: PartialFolder,
    texts: Mapping[str, str],
    progress: Progress | None,
) -> None:
    """Write all samples that are not written yet, then the rest. A unit of the journal is a group."""
    kind, count = task.kind, task.count
    done = min(count, len(work.journal.units) * SAMPLING_BATCH)
    if progress:
        progress(done, count)
    for group in task.groups(done):
        _write_samples(work.content, group, kind)
        if group.first == 0:
            _draw_levels(work.content, group, kind, task.loaded)
        work.journal.add(str(group.first), [asdict(sample) for sample in group.samples])
        if progress:
            progress(group.first + len(group.samples), count)
    samples = [Sample(**fields) for group in work.journal.units.values() for fields in group]
    _draw_sheets(work.content, samples, kind)
    _write_lists(work.content, samples, task)
    for name, text in texts.items():
        write_text(work.content / name, text)


def check_arguments(
    count: int, seed: int, position: float | None, group: str | None, conditional: bool
) -> None:
    """Refuse arguments that no prior could take."""
    if count < 1:
        raise ConfigError(f"{count} samples: wanted 1 or more")
    check_seeds(seed, count)
    if not conditional and (position is not None or group is not None):
        raise ConfigError("a position or class was given for unconditional samples; drop one of the two")
    if position is not None and not 0 <= position <= 1:
        raise ConfigError(f"position {position:g}: wanted a position in the volume, from 0 to 1")


@dataclass(frozen=True)
class SampleGroup:
    """At most 16 samples.

    Attributes:
        first: Number of the first of them.
        samples: Their rows in the manifest.
        slices: Images in [-1, 1], and masks.
        tokens: Their token sequences.
    """

    first: int
    samples: list[Sample]
    slices: DecodedSlices
    tokens: Int64[Tensor, "b n"]


def _draw_group(task: GenerationTask, first: int) -> SampleGroup:
    loaded, request = task.loaded, task.request
    seeds = [task.seed + index for index in range(first, min(first + SAMPLING_BATCH, task.count))]
    positions = None
    if request.conditional:
        positions = [_position(seed) if request.position is None else request.position for seed in seeds]
    tokens = draw(
        loaded,
        request.size,
        seeds,
        positions,
        request.settings,
        group=request.group,
        precision=task.precision,
    )
    slices = render(loaded, tokens, request.size, seeds, request.settings.decoder_steps)
    samples = [
        Sample(
            name=f"sample-{seed:06}",
            seed=seed,
            position=None if positions is None else positions[index],
            group=request.group or "",
        )
        for index, seed in enumerate(seeds)
    ]
    return SampleGroup(first, samples, slices, tokens)


def _kind(loaded: LoadedPrior, size: tuple[int, int] | None) -> SliceKind:
    kinds = loaded.info.slices
    matching = [kind for kind in kinds if size in (None, (kind.rows, kind.columns))]
    if not matching:
        known = ", ".join(f"{kind.rows}×{kind.columns}" for kind in kinds)
        wanted = "×".join(map(str, size or ()))
        raise ConfigError(f"{loaded.path}: was not trained on slices of {wanted}; wanted one of {known}")
    return matching[0]


def _position(seed: int) -> float:
    # A random stream apart from that of the tokens, so that a given position changes nothing else.
    return float(np.random.default_rng([seed, 1]).random())


def sample_volumes(slices: DecodedSlices, index: int, kind: SliceKind) -> tuple[Volume, Volume | None]:
    """Return one sample as volumes of a single slice: the image and the mask."""
    spacing = (SLICE_MM, kind.row_mm, kind.column_mm)

    def volume(slices: Shaped[np.ndarray, "1 h w"]) -> Volume:
        made = Volume.from_slices(slices, spacing)
        return replace(made, geometry=header_for(made.array.shape, made.affine), description=DESCRIPTION)

    image = volume(IntensityMap(kind.low, kind.high).inverse(slices.images[index].numpy()))
    return image, None if slices.masks is None else volume(slices.masks[index : index + 1].numpy())


def _write_samples(out: Path, group: SampleGroup, kind: SliceKind) -> None:
    """Write each sample's volume, its mask, and a picture of both."""
    aspect = kind.row_mm / kind.column_mm
    for index, sample in enumerate(group.samples):
        image, mask = sample_volumes(group.slices, index, kind)
        shown = group.slices.images[index, 0].numpy()
        image.write(out / "images" / f"{sample.name}.nii.gz")
        panels = [contact_sheet.gray(shown, aspect)]
        if mask is not None and group.slices.masks is not None:
            mask.write(out / "images" / f"{sample.name}_mask.nii.gz")
            panels.append(contact_sheet.tinted(shown, group.slices.masks[index].numpy(), aspect))
        contact_sheet.write_sheet(panels, out / "pictures" / f"{sample.name}.png", columns=len(panels))


def _draw_levels(out: Path, group: SampleGroup, kind: SliceKind, loaded: LoadedPrior) -> None:
    """Draw a few samples decoded level by level."""
    first = group.tokens[:LEVELS_SHOWN]
    partials = [
        decode_pages(loaded, first, (kind.rows, kind.columns), levels=levels).images[:, 0]
        for levels in range(1, loaded.tokenizer.images.levels + 1)
    ]
    figures.levels(
        list(group.slices.images[: len(first), 0].numpy()),
        [list(images) for images in partials],
        out / "levels.png",
        aspect=kind.row_mm / kind.column_mm,
        first="sample",
        caption="Decoded level by level, coarsest first; finer levels at their mean code",
    )


def _draw_sheets(out: Path, samples: list[Sample], kind: SliceKind) -> None:
    """Write a contact sheet of the first samples, and one with their masks."""
    shown = []
    for sample in samples[:SHEET]:
        picture = imread(out / "pictures" / f"{sample.name}.png")[..., :3]
        shown.append((picture * 255).round().astype(np.uint8))
    contact_sheet.write_sheet([picture[:, : kind.columns] for picture in shown], out / "sheet.png")
    start = kind.columns + contact_sheet.GAP
    if shown[0].shape[1] > start:
        contact_sheet.write_sheet([picture[:, start:] for picture in shown], out / "sheet-masks.png")


def _write_lists(out: Path, samples: list[Sample], task: GenerationTask) -> None:
    """Write the manifest, and the record of the whole set."""
    write_csv(out / "manifest.csv", [asdict(sample) for sample in samples])
    info = task.loaded.info
    record = {
        "synthetic": True,
        "slicebook_version": __version__,
        "model_sha256": info.weights_sha256,
        "request": task.record(),
        "settings": asdict(task.request.settings),
        "slices": task.kind.model_dump(mode="json", exclude={"slices"}),
        "label_values": [] if info.masks is None else list(info.masks.tokenizer.label_values),
        "recipe": info.recipe.model_dump(mode="json"),
        "provenance": info.provenance.model_dump(mode="json"),
    }
    write_text(out / RECORD_NAME, json.dumps(record, indent=2) + "\n")
