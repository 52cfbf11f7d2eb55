"""The tab Look: a volume slice by slice, its reconstruction, its tokens, and what each level adds."""

from __future__ import annotations

from typing import Any

import gradio as gr
import numpy as np
import torch
from jaxtyping import Float32

from slicebook.errors import DataError
from slicebook.inference.reconstruct import reconstruct
from slicebook.io.nifti import write_nifti
from slicebook.io.volume import Plane
from slicebook.metrics.image_quality import SMALLEST_SIDE, scores
from slicebook.phantom.simulator import patient_volume
from slicebook.studio import pictures
from slicebook.studio.context import MODEL_QUEUE, Studio, answering, run_job, status
from slicebook.studio.packing import pack
from slicebook.studio.study import MAX_UPLOAD, Study, open_upload, reopen

BATCH = 16  # slices that `reconstruct` passes at a time
ACQUIRED = "As acquired"
PLANES: dict[str, Plane | None] = {
    ACQUIRED: None,
    "Axial": "axial",
    "Sagittal": "sagittal",
    "Coronal": "coronal",
}
PHANTOM = {"slices": 12, "shape": (256, 128), "seed": 7}
EMPTY = (
    '<div class="sb-empty"><p>Open a volume to see its slices, their reconstruction and their tokens.</p>'
    "<p>The file stays on this computer and is removed when you close the page.</p></div>"
)


def slice_view(studio: Studio, study: Study, index: int) -> str:
    """Return a slice as HTML: compared with its reconstruction, and level by level."""
    tokenizer = studio.tokenizer.tokenizer
    original = np.array(study.slices[index])
    device = next(tokenizer.parameters()).device
    with torch.no_grad():
        passed = tokenizer(torch.from_numpy(original)[None, None].to(device))
        partial = [
            tokenizer.decode(passed.tokens, study.size, levels=count)[0, 0].clamp(-1, 1).cpu().numpy()
            for count in range(1, tokenizer.levels + 1)
        ]
    copy = passed.images[0, 0].clamp(-1, 1).cpu().numpy()
    return (
        f'<div class="sb-look"><div class="sb-pair">{_comparison(original, copy, study.aspect)}'
        f"{_difference(original, copy, study)}</div>{_scores(studio, original, copy, study)}"
        "<h3>Level by level</h3><p>The coarsest level comes first. A colour stands for a code; similar codes "
        'have similar colours. The last row shows what a level adds: <span class="sb-red">brighter</span> or '
        f'<span class="sb-blue">darker</span>.</p><div class="sb-levels">'
        f"{_levels(studio, [grid[0] for grid in passed.tokens], partial, study.aspect)}</div></div>"
    )


def _comparison(original: Float32[np.ndarray, "h w"], copy: Float32[np.ndarray, "h w"], aspect: float) -> str:
    """Return both images on top of each other, with a divider that the page's script moves."""
    below = pictures.img(pictures.slice_pixels(copy), "Reconstruction of the slice", aspect)
    above = pictures.img(pictures.slice_pixels(original), "Original slice", aspect)
    ratio = original.shape[1] / (original.shape[0] * aspect)
    return (
        f'<figure class="sb-compare" style="--ratio: {ratio:.4f}"><div class="sb-stack">{below}'
        f'<div class="sb-over">{above}</div><span class="sb-divider"></span></div>'
        '<input type="range" min="0" max="100" value="50" class="sb-split" '
        'aria-label="Divider: share of the original">'
        "<figcaption><span>Original</span><span>Reconstruction</span></figcaption></figure>"
    )


def _difference(original: Float32[np.ndarray, "h w"], copy: Float32[np.ndarray, "h w"], study: Study) -> str:
    image = pictures.img(
        pictures.difference_pixels(copy - original), "Absolute difference of the two", study.aspect
    )
    ratio = original.shape[1] / (original.shape[0] * study.aspect)
    return (
        f'<figure style="--ratio: {ratio:.4f}">{image}'
        '<div class="sb-scale sb-magma" aria-hidden="true"></div>'
        "<figcaption><span>Difference: 0</span><span>25 % of the range</span></figcaption></figure>"
    )


def _scores(
    studio: Studio, original: Float32[np.ndarray, "h w"], copy: Float32[np.ndarray, "h w"], study: Study
) -> str:
    bits = studio.tokenizer.tokenizer.bits(study.size) / (study.size[0] * study.size[1])
    rows = [("Bits per pixel", f"{bits:.3f}")]
    if min(study.size) >= SMALLEST_SIDE:
        before, after = (original.clip(-1, 1) + 1) / 2, (copy + 1) / 2
        found = scores(before, after, volume_max=1.0)
        foreground = found.ssim_foreground
        rows = [
            ("SSIM, foreground", "–" if foreground is None else f"{foreground:.3f}"),
            ("SSIM, whole slice", f"{found.ssim_whole:.3f}"),
            ("PSNR", f"{found.psnr_whole:.1f} dB"),
            *rows,
        ]
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows)
    return f'<dl class="sb-scores">{cells}</dl>'


def _levels(
    studio: Studio, grids: list[torch.Tensor], partial: list[Float32[np.ndarray, "h w"]], aspect: float
) -> str:
    """Return a column per level, coarsest first: its tokens, the image so far, and what it changed."""
    tokenizer, columns = studio.tokenizer.tokenizer, []
    before = np.full(partial[0].shape, partial[0].mean())
    for level, image in zip(reversed(range(len(grids))), partial, strict=True):
        codes, grid = tokenizer.codebook(level).codes, grids[level]
        rows, wide = grid.shape
        shape = aspect * image.shape[0] / image.shape[1] * wide / rows  # of a token
        used = len(np.unique(grid.cpu().numpy()))
        figures = [
            (
                pictures.img(
                    pictures.token_pixels(grid, pictures.code_colours(codes)),
                    f"Tokens of level {level}",
                    shape,
                    pixelated=True,
                ),
                f"{rows} × {wide} tokens, {used} of {len(codes)} codes",
            ),
            (
                pictures.img(pictures.slice_pixels(image), f"Decoded up to level {level}", aspect),
                "Image so far",
            ),
            (
                pictures.img(pictures.change_pixels(image - before), f"Change by level {level}", aspect),
                "Change",
            ),
        ]
        drawn = "".join(
            f"<figure>{drawn}<figcaption>{words}</figcaption></figure>" for drawn, words in figures
        )
        columns.append(f"<section><h4>Level {level}</h4>{drawn}</section>")
        before = image
    return "".join(columns)


def open_file(studio: Studio, request: gr.Request, file: str | None, progress: gr.Progress) -> Study:
    """Open an upload as the volume of a page, or a phantom where there is none."""
    session = studio.session(request)
    folder = session.new_folder("volume")
    session.study = None

    def work() -> Study:
        if file is not None:
            return open_upload(studio.workspace.uploaded(file), folder)
        folder.mkdir()
        path = folder / "volume.nii.gz"
        volume = patient_volume(0, 0, **PHANTOM)  # type: ignore[arg-type]  # a dict of its options
        write_nifti(path, volume.image, affine=volume.affine)
        return reopen(path, folder)

    session.study = run_job(session, 1, "Opening", progress, work)
    assert session.study is not None
    return session.study


def change(studio: Studio, request: gr.Request, *, series: int, plane: str) -> Study:
    """Open another series of the upload, or slice it in another plane."""
    session = studio.session(request)
    study = opened(studio, request)
    session.study = reopen(study.upload, study.upload.parent, series=series, plane=PLANES[plane])
    return session.study


def opened(studio: Studio, request: gr.Request) -> Study:
    """Return the open volume of a page.

    Raises:
        DataError: There is none.
    """
    study = studio.session(request).study
    if study is None:
        raise DataError("No volume is open: open one in the tab Look.")
    return study


def reconstruct_all(studio: Studio, request: gr.Request, progress: gr.Progress) -> str:
    """Reconstruct all slices, as `slicebook reconstruct` does; return a link to the files."""
    session, study = studio.session(request), opened(studio, request)
    out = session.new_folder("reconstruction")

    def work() -> None:
        reconstruct(studio.model, study.source, out, device=studio.device, plane=study.plane)

    steps = -(-len(study.slices) // BATCH)
    run_job(session, steps, "Reconstructing", progress, work)
    return studio.link(pack(out, "slicebook-reconstruction.zip"), "Download the reconstruction, NIfTI")


def build(studio: Studio) -> None:
    """Lay out the tab."""
    with gr.Row(elem_classes="sb-columns"):
        with gr.Column(scale=1, min_width=260, elem_classes="sb-side"):
            upload = gr.UploadButton(
                "Open a volume…", file_types=[".nii", ".gz", ".zip"], variant="primary", elem_id="look-open"
            )
            phantom = gr.Button("Open a phantom", elem_id="look-phantom")
            stop_opening = gr.Button("Stop", variant="stop", visible=False, elem_id="look-stop-opening")
            gr.Markdown(f"NIfTI, or a zip of one DICOM series; at most {MAX_UPLOAD // 1024**2} MB.")
            message = gr.HTML(status(""), elem_id="look-status")
            series = gr.Dropdown([], label="Series", visible=False, type="index", elem_id="look-series")
            plane = gr.Dropdown(
                list(PLANES), value=ACQUIRED, label="Plane", visible=False, elem_id="look-plane"
            )
            index = gr.Slider(
                0, 1, value=0, step=1, buttons=[], label="Slice", visible=False, elem_id="look-slice"
            )
            whole = gr.Button("Reconstruct all slices", visible=False, elem_id="look-all")
            stop = gr.Button("Stop", variant="stop", visible=False, elem_id="look-stop")
            download = gr.HTML("", elem_id="look-download")
        with gr.Column(scale=3, min_width=300):
            view = gr.HTML(EMPTY, elem_id="look-view")
    shown = [message, series, plane, index, whole, download, view]
    _connect(studio, (upload, phantom), stop_opening, shown)
    _connect_whole(studio, whole, stop, message, download)


def _updates(studio: Studio, study: Study, *, new: bool) -> list[Any]:
    """Return what the components show of a volume that was opened."""
    middle = len(study.slices) // 2
    several = gr.Dropdown(list(study.others), value=study.others[0], visible=True) if study.others else None
    return [
        status(f"{study.title}."),
        (several or gr.Dropdown(visible=False)) if new else gr.skip(),
        gr.Dropdown(value=ACQUIRED, visible=study.is_nifti) if new else gr.skip(),
        gr.Slider(0, max(1, len(study.slices) - 1), value=middle, visible=len(study.slices) > 1),
        gr.Button(visible=True),
        "",
        slice_view(studio, study, middle),
    ]


def _connect(
    studio: Studio, openers: tuple[gr.UploadButton, gr.Button], stop: gr.Button, shown: list[Any]
) -> None:
    (upload, phantom), (message, series, plane, index, _, _, view) = openers, shown

    @answering(shown)
    def opening(file: str | None, request: gr.Request, progress: gr.Progress = gr.Progress()) -> list[Any]:  # noqa: B008
        if file is None:
            raise DataError("The upload did not arrive: choose the file again.")
        return _updates(studio, open_file(studio, request, file, progress), new=True)

    @answering(shown)
    def simulating(request: gr.Request, progress: gr.Progress = gr.Progress()) -> list[Any]:  # noqa: B008
        return _updates(studio, open_file(studio, request, None, progress), new=True)

    @answering(shown)
    def reading(number: int | None, name: str, request: gr.Request) -> list[Any]:
        return _updates(studio, change(studio, request, series=number or 0, plane=name), new=False)

    @answering([view])
    def moving(number: int, request: gr.Request) -> str:
        study = opened(studio, request)
        return slice_view(studio, study, min(int(number), len(study.slices) - 1))

    connect_run(studio, upload, stop, opening, [upload], shown, event=upload.upload)
    connect_run(studio, phantom, stop, simulating, None, shown)
    for component in (series, plane):
        component.input(
            reading, [series, plane], shown, concurrency_id=MODEL_QUEUE, show_progress_on=[message]
        )
    index.input(
        moving, [index], [view], show_progress="hidden", trigger_mode="always_last", concurrency_id="look"
    )


def _connect_whole(
    studio: Studio, whole: gr.Button, stop: gr.Button, message: gr.HTML, download: gr.HTML
) -> None:
    outputs = [message, download]

    @answering(outputs)
    def work(request: gr.Request, progress: gr.Progress = gr.Progress()) -> tuple[str, str]:  # noqa: B008
        link = reconstruct_all(studio, request, progress)
        return status("All slices are reconstructed."), link

    connect_run(studio, whole, stop, work, None, outputs)


def connect_run(
    studio: Studio,
    run: gr.Button | gr.UploadButton,
    stop: gr.Button,
    work: Any,
    inputs: Any,
    outputs: list[Any],
    *,
    event: Any = None,
    **more: Any,
) -> None:
    """Make one button start a computation, and another one stop it.

    Args:
        studio: The studio.
        run: Starts it.
        stop: Stops it; visible meanwhile, in place of `run`.
        work: The computation; its first output is a message.
        inputs: Of the computation.
        outputs: Of the computation.
        event: Of `run`; a click by default.
        more: Options of the event.
    """
    message = outputs[0]

    def stopping(request: gr.Request) -> tuple[str, Any, Any]:
        studio.session(request).stop()
        return status("Stopped."), gr.update(visible=True), gr.update(visible=False)

    started = (event or run.click)(
        lambda: (status(""), gr.update(visible=False), gr.update(visible=True)),
        None,
        [message, run, stop],
        queue=False,
    )
    running = started.then(
        work, inputs, outputs, concurrency_id=MODEL_QUEUE, show_progress_on=[message], **more
    )
    running.then(lambda: (gr.update(visible=True), gr.update(visible=False)), None, [run, stop], queue=False)
    stop.click(stopping, None, [message, run, stop], queue=False, cancels=[running])
