"""The tab Generate: slices from seeds and conditions, or for a mask that the user paints or uploads."""

from __future__ import annotations

import csv
import shlex
import shutil
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from jaxtyping import UInt8

from slicebook.data.manifest import SliceKind
from slicebook.data.transforms import IntensityMap
from slicebook.errors import ConfigError, DataError
from slicebook.export.generated_set import GeneratedSet, SetFacts
from slicebook.export.set_formats import describe_set
from slicebook.inference.from_masks import MaskRequest, generate_for_masks
from slicebook.inference.generate import SLICE_MM, generate
from slicebook.io.nifti import read_labels, read_nifti, write_nifti
from slicebook.io.volume import Volume, from_slices, orientation_of, slice_spacing, to_slices
from slicebook.models.sampling import SAMPLING_BATCH, SamplingSettings
from slicebook.starters import is_starter
from slicebook.studio import pictures
from slicebook.studio.context import Studio, answering, run_job, status
from slicebook.studio.look import connect_run
from slicebook.studio.packing import FORMATS, convert, pack
from slicebook.studio.painter import mask_of, painter, script
from slicebook.studio.study import LIMITS

MAX_COUNT = 32  # samples at a time; the command has no such limit
MAX_SLICES = 256  # drawn for an uploaded mask, over all seeds
ANY = "Any"
FREE, PAINTED, UPLOADED = "Whole slices", "For a painted mask", "For an uploaded mask"
NOT_AUDITED = (
    "Not audited: a sample may copy a training patient. Evaluate the model before you share samples."
)
EMPTY = '<div class="sb-empty"><p>Choose seeds and conditions, and generate.</p></div>'
NO_PRIOR = (
    "This model reconstructs but does not generate: it has no prior. Train one with "
    "`slicebook train generator MODEL`, and open the studio again."
)


@dataclass(frozen=True)
class Wish:
    """What the user asks for.

    Attributes:
        count: Samples, or volumes for a mask.
        seed: Of the first.
        group: Class, or `ANY`.
        position: In the volume, 0 to 1; None for any.
        settings: Steps and guidance.
    """

    count: int
    seed: int
    group: str | None
    position: float | None
    settings: SamplingSettings

    @classmethod
    def of(
        cls, count: float, seed: float | None, group: str | None, free: bool, position: float,
        guidance: float, steps: float, decoder_steps: float,
    ) -> Wish:  # fmt: skip
        """Check what the page sent.

        Raises:
            ConfigError: A value out of range.
        """
        if seed is None or seed != int(seed):
            raise ConfigError("Seed: wanted a whole number, such as 0.")
        if not 1 <= count <= MAX_COUNT:
            raise ConfigError(f"Number: wanted 1 to {MAX_COUNT}; the command line draws more.")
        settings = SamplingSettings(int(steps), int(decoder_steps), float(guidance))
        chosen = None if group in (None, ANY) else group
        return cls(int(count), int(seed), chosen, None if free else float(position), settings)

    def command(self, masks: str | None = None) -> str:
        """Return the command that writes the same files."""
        words = [
            "slicebook",
            "generate",
            "MODEL",
            "--out",
            "DIR",
            "-n",
            str(self.count),
            "--seed",
            str(self.seed),
        ]
        if masks is not None:
            words += ["--masks", masks]
        if self.group is not None:
            words += ["--class", self.group]
        if self.position is not None:
            words += ["--position", f"{self.position:g}"]
        settings = self.settings
        words += ["--steps", str(settings.steps), "--decoder-steps", str(settings.decoder_steps)]
        if settings.guidance:
            words += ["--guidance", f"{settings.guidance:g}"]
        return shlex.join(words)


def steps_of(studio: Studio, settings: SamplingSettings, batches: int) -> int:
    """Return how often the networks are evaluated for so many batches."""
    prior = studio.prior
    decoder = settings.decoder_steps if prior is not None and prior.decoder_provenance is not None else 0
    return batches * (settings.steps * (2 if settings.guidance else 1) + decoder)


def draw(studio: Studio, request: gr.Request, wish: Wish, progress: gr.Progress) -> Path:
    """Generate whole slices, as `slicebook generate` does; return their folder."""
    session = studio.session(request)
    out = session.new_folder("generated")

    def work() -> None:
        generate(
            studio.model, out, count=wish.count, seed=wish.seed, position=wish.position, group=wish.group,
            settings=wish.settings, device=studio.device,
        )  # fmt: skip
        _describe(studio, out)

    steps = steps_of(studio, wish.settings, -(-wish.count // SAMPLING_BATCH))
    run_job(session, steps, "Generating", progress, work)
    return out


def draw_for_mask(studio: Studio, request: gr.Request, wish: Wish, mask: Path, progress: gr.Progress) -> Path:
    """Generate slices for a mask, as `slicebook generate --masks` does; return their folder."""
    session = studio.session(request)
    labels = read_labels(mask, limits=LIMITS)
    slices = labels.array.shape[orientation_of(labels).axes[0]]
    if slices * wish.count > MAX_SLICES:
        raise ConfigError(
            f"{wish.count} volumes of {slices} slices: wanted at most {MAX_SLICES} slices at a time; ask for "
            "fewer, or use the command line"
        )
    out = session.new_folder("generated")
    wanted = MaskRequest(wish.count, wish.seed, wish.position, wish.group, None, wish.settings)

    def work() -> None:
        generate_for_masks(studio.model, mask, out, wanted, device=studio.device)
        _describe(studio, out)

    steps = steps_of(studio, wish.settings, wish.count * -(-slices // SAMPLING_BATCH))
    run_job(session, steps, "Generating", progress, work)
    shutil.copy(mask, out / mask.name)
    return out


def _describe(studio: Studio, out: Path) -> None:
    """Write the data card and the label tables, as the command does."""
    assert studio.prior is not None
    describe_set(GeneratedSet.read(out, studio.prior.label_names), out, "nifti")


def write_mask(studio: Studio, path: Path, labels: UInt8[np.ndarray, "h w"]) -> None:
    """Write a painted mask in the geometry of generated slices."""
    kind = kind_of(studio)
    affine = np.diag([kind.column_mm, kind.row_mm, SLICE_MM, 1.0])
    affine[:2, 3] = -np.array([kind.column_mm * (kind.columns - 1), kind.row_mm * (kind.rows - 1)]) / 2
    blank = Volume(
        np.zeros((kind.columns, kind.rows, 1), dtype=np.float32), affine, (kind.columns, kind.rows, 1)
    )
    array = np.ascontiguousarray(from_slices(labels[None], orientation_of(blank)))
    write_nifti(path, array, affine=affine)


def kind_of(studio: Studio) -> SliceKind:
    """Return the size and spacing of generated slices."""
    assert studio.prior is not None
    return studio.prior.slices[0]


def gallery(folder: Path, command: str) -> str:
    """Return generated slices as HTML, each with its seed, and the command that repeats them."""
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    items = "".join(_item(folder / "images", row) for row in rows)
    return (
        f'<ul class="sb-gallery" aria-label="Generated slices">{items}</ul>'
        f'<p class="sb-command">The same on the command line: <code>{escape(command)}</code></p>'
    )


def _item(images: Path, row: dict[str, str]) -> str:
    """Return one sample; of a volume the slice with the most labelled pixels."""
    name, seed = row["name"], row["seed"]
    volume, mask = read_nifti(images / f"{name}.nii.gz"), images / f"{name}_mask.nii.gz"
    orientation = orientation_of(volume)
    slices = to_slices(volume.array, orientation)
    _, row_mm, column_mm = slice_spacing(volume, orientation)
    labels = to_slices(read_labels(mask).array, orientation).astype(np.uint8) if mask.is_file() else None
    at = 0 if labels is None else int((labels > 0).sum((1, 2)).argmax())
    image = IntensityMap.fit(volume.array).forward(slices[at])
    panels = [pictures.img(pictures.slice_pixels(image), f"Sample of seed {seed}", row_mm / column_mm)]
    if labels is not None:
        drawn = pictures.labelled_pixels(image, labels[at])
        panels.append(pictures.img(drawn, f"Sample of seed {seed} with its mask", row_mm / column_mm))
    words = [f"Seed {seed}"]
    if row.get("position"):
        words.append(f"position {float(row['position']):.2f}")
    if row.get("group"):
        words.append(escape(row["group"]))
    if int(row.get("slices") or 1) > 1:
        words.append(f"slice {at} of {row['slices']}")
    caption = "".join(f"<span>{word}</span>" for word in words)
    return (
        f'<li><figure><div class="sb-panels">{"".join(panels)}</div>'
        f"<figcaption>{caption}</figcaption></figure></li>"
    )


def first_mask(studio: Studio, request: gr.Request) -> UInt8[np.ndarray, "h w"]:
    """Return the mask of the first sample that a page generated.

    Raises:
        DataError: It generated none.
    """
    folder = studio.session(request).folder
    files = sorted(folder.glob("generated-*/images/*_mask.nii.gz"))
    if not files:
        raise DataError("There is no sample yet: generate whole slices first.")
    volume = read_labels(files[0])
    labels: UInt8[np.ndarray, "h w"] = to_slices(volume.array, orientation_of(volume))[0].astype(np.uint8)
    if labels.shape != (kind_of(studio).rows, kind_of(studio).columns):
        raise DataError("The first sample is of another size: generate whole slices first.")
    return labels


def build(studio: Studio) -> None:
    """Lay out the tab."""
    if studio.prior is None:
        gr.Markdown(NO_PRIOR, elem_id="generate-none")
        return
    with gr.Row(elem_classes="sb-columns"):
        with gr.Column(scale=1, min_width=260, elem_classes="sb-side"):
            choice, upload = _choices(studio)
            inputs = wishes(studio, count=8)
            run = gr.Button("Generate", variant="primary", elem_id="generate-run")
            stop = gr.Button("Stop", variant="stop", visible=False, elem_id="generate-stop")
            message = gr.HTML(status(""), elem_id="generate-status")
            masks = studio.prior.masks is not None
            names = [name for name, form in FORMATS.items() if masks or form != "nnunet"]
            form = gr.Dropdown(names, label="Format", visible=False, elem_id="generate-format")
            download = gr.HTML("", elem_id="generate-download")
        with gr.Column(scale=3, min_width=300):
            with gr.Column(visible=False) as paint:
                brush = gr.HTML("", elem_id="generate-brush")
                start = gr.Button(
                    "Start from the mask of the first sample", size="sm", elem_id="generate-start"
                )
            view = gr.HTML(EMPTY, elem_id="generate-view")
    _connect_choice(studio, choice, upload, paint, brush, start, message)
    _connect_run(studio, (choice, upload, form, *inputs), (run, stop), [message, form, download, view])


def _choices(studio: Studio) -> tuple[gr.Radio, gr.UploadButton]:
    assert studio.prior is not None
    masks = studio.prior.masks is not None
    choice = gr.Radio(
        [FREE, PAINTED, UPLOADED], value=FREE, label="Draw", visible=masks, elem_id="generate-choice"
    )
    upload = gr.UploadButton(
        "Upload a mask…", file_types=[".nii", ".gz"], visible=False, elem_id="generate-upload"
    )
    return choice, upload


def wishes(studio: Studio, *, count: int, name: str = "generate") -> list[Any]:
    """Lay out what `Wish.of` takes, in its order; `count` is the initial number."""
    prior = studio.prior
    assert prior is not None
    number = gr.Slider(
        1, MAX_COUNT, value=count, step=1, buttons=[], label="Number", elem_id=f"{name}-number"
    )
    seed = gr.Number(0, precision=0, minimum=0, label="Seed of the first", elem_id=f"{name}-seed")
    group = gr.Dropdown(
        [ANY, *prior.classes], value=ANY, label="Class", visible=bool(prior.classes), elem_id=f"{name}-class"
    )
    free = gr.Checkbox(True, label="Any position in the volume", elem_id=f"{name}-free")
    position = gr.Slider(
        0, 1, value=0.5, step=0.01, buttons=[], label="Position: 0 first slice, 1 last", visible=False,
        elem_id=f"{name}-position",
    )  # fmt: skip
    free.input(lambda value: gr.Slider(visible=not value), [free], [position], queue=False)
    with gr.Accordion("Sampling", open=False):
        guidance = gr.Slider(
            0, 5, value=0, step=0.25, buttons=[], label="Guidance towards class and position"
        )
        steps = gr.Slider(1, 64, value=16, step=1, buttons=[], label="Steps of the prior")
        decoder = gr.Slider(
            1,
            32,
            value=8,
            step=1,
            buttons=[],
            label="Steps of the decoder",
            visible=prior.decoder_provenance is not None,
        )
    return [number, seed, group, free, position, guidance, steps, decoder]


def _connect_choice(
    studio: Studio, choice: gr.Radio, upload: gr.UploadButton, paint: gr.Column, brush: gr.HTML,
    start: gr.Button, message: gr.HTML,
) -> None:  # fmt: skip
    assert studio.prior is not None
    values = studio.prior.masks.tokenizer.label_values if studio.prior.masks is not None else ()
    labels = [value for value in values if value]
    kind = kind_of(studio)
    blank = np.full((kind.rows, kind.columns), -1.0, dtype=np.float32)
    aspect = kind.row_mm / kind.column_mm

    def choosing(chosen: str) -> tuple[Any, ...]:
        drawn = painter("generate", blank, aspect, labels=labels) if chosen == PAINTED else ""
        return gr.UploadButton(visible=chosen == UPLOADED), gr.Column(visible=chosen == PAINTED), drawn

    @answering([message, brush])
    def starting(request: gr.Request) -> tuple[str, str]:
        mask = first_mask(studio, request)
        return status("Change the mask with the brush."), painter(
            "generate", blank, aspect, labels=labels, mask=mask
        )

    choice.input(choosing, [choice], [upload, paint, brush], queue=False)
    start.click(starting, None, [message, brush], queue=False)
    upload.upload(lambda: status("The mask is ready."), None, [message], queue=False)


def _connect_run(
    studio: Studio, inputs: tuple[Any, ...], buttons: tuple[gr.Button, gr.Button], shown: list[Any]
) -> None:
    choice, upload, form, *wished = inputs
    message, _, download, _ = shown

    @answering(shown)
    def work(
        sent: str, chosen: str, file: str | None, format_name: str, count: float, seed: float | None,
        group: str | None, free: bool, position: float, guidance: float, steps: float, decoder_steps: float,
        request: gr.Request, progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[Any]:  # fmt: skip
        wish = Wish.of(count, seed, group, free, position, guidance, steps, decoder_steps)
        session = studio.session(request)
        if chosen == FREE:
            out, command = draw(studio, request, wish, progress), wish.command()
        else:
            mask = session.folder / ("painted" if chosen == PAINTED else "uploaded") / "mask.nii.gz"
            mask.parent.mkdir(exist_ok=True)
            if chosen == PAINTED:
                kind = kind_of(studio)
                write_mask(studio, mask, mask_of(sent, (kind.rows, kind.columns)))
            elif file is not None and Path(file).is_file():
                mask.unlink(missing_ok=True)
                mask.hardlink_to(studio.workspace.uploaded(file))
            elif not mask.is_file():
                raise DataError("There is no mask yet: upload one first.")
            out, command = draw_for_mask(studio, request, wish, mask, progress), wish.command("mask.nii.gz")
        words = "Done." if is_starter(studio.weights) else f"Done. {NOT_AUDITED}"
        return [
            status(words),
            gr.Dropdown(visible=True),
            packed(studio, out, format_name),
            gallery(out, command),
        ]

    @answering([message, download])
    def packing(format_name: str, request: gr.Request) -> tuple[str, str]:
        folders = sorted(studio.session(request).folder.glob("generated-*/manifest.csv"))
        if not folders:
            raise DataError("There is nothing to download yet: generate first.")
        return status(""), packed(studio, folders[0].parent, format_name)

    hidden = gr.Textbox(visible=False)
    connect_run(
        studio, *buttons, work, [hidden, choice, upload, form, *wished], shown,
        js=script("generate", 3 + len(wished)),
    )  # fmt: skip
    form.input(packing, [form], [message, download])


def packed(studio: Studio, folder: Path, format_name: str | None) -> str:
    """Return a link to a generated set in a format."""
    assert studio.prior is not None
    name = format_name or next(iter(FORMATS))
    converted = convert(folder, FORMATS[name], SetFacts(label_names=studio.prior.label_names))
    root = None if converted == folder else converted.name
    return studio.link(pack(converted, "slicebook-generated.zip", root), f"Download: {name}")
