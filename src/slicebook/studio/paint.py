"""The tab Paint: brush a region of a slice, and let the prior fill it. Pixels outside stay as they are."""

from __future__ import annotations

import shutil
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from slicebook.inference.inpaint import inpaint
from slicebook.studio import pictures
from slicebook.studio.context import Studio, answering, run_job, status
from slicebook.studio.generate import NO_PRIOR, Wish, steps_of
from slicebook.studio.look import connect_run, opened
from slicebook.studio.packing import pack
from slicebook.studio.painter import mask_of, painter, script

MAX_COUNT = 8
EMPTY = '<div class="sb-empty"><p>Open a volume in the tab Look. Then paint a region here.</p></div>'


def brush(studio: Studio, request: gr.Request, index: int) -> str:
    """Return a slice of the open volume with a brush."""
    study = opened(studio, request)
    return painter("paint", np.array(study.slices[min(index, len(study.slices) - 1)]), study.aspect)


def fill(
    studio: Studio, request: gr.Request, sent: str | None, index: int, wish: Wish, progress: gr.Progress
) -> Path:
    """Inpaint the painted region, as `slicebook inpaint` does; return the folder."""
    session, study = studio.session(request), opened(studio, request)
    region = mask_of(sent, study.size) > 0
    out = session.new_folder("painted")
    mask = session.folder / "region.nii.gz"
    study.write_region(mask, min(index, len(study.slices) - 1), region)

    def work() -> None:
        inpaint(
            studio.model, study.source, mask, out, count=wish.count, seed=wish.seed, settings=wish.settings,
            plane=study.plane, device=studio.device,
        )  # fmt: skip

    run_job(session, steps_of(studio, wish.settings, wish.count), "Filling", progress, work)
    shutil.copy(mask, out / mask.name)
    return out


def results(folder: Path, wish: Wish, plane: str | None) -> str:
    """Return what was filled as HTML: before, region and after for each seed."""
    figures = "".join(
        f'<li><figure><img src="{pictures.png_uri(path.read_bytes())}" '
        f'alt="Before, painted region and after, seed {wish.seed + number}"><figcaption><span>Before</span>'
        f"<span>Region</span><span>After, seed {wish.seed + number}</span></figcaption></figure></li>"
        for number, path in enumerate(sorted(folder.glob("sample-*/slice-*.png")))
    )
    words = f"slicebook inpaint MODEL IMAGE region.nii.gz --out DIR -n {wish.count} --seed {wish.seed}"
    words += f" --steps {wish.settings.steps} --decoder-steps {wish.settings.decoder_steps}"
    words += f" --guidance {wish.settings.guidance:g}" if wish.settings.guidance else ""
    words += f" --plane {plane}" if plane else ""
    return (
        f'<ul class="sb-filled" aria-label="Filled slices">{figures}</ul>'
        '<p class="sb-command">The same on the '
        f"command line: <code>{escape(words)}</code></p>"
    )


def build(studio: Studio, tab: gr.Tab) -> None:
    """Lay out the tab."""
    prior = studio.prior
    if prior is None:
        gr.Markdown(NO_PRIOR, elem_id="paint-none")
        return
    with gr.Row(elem_classes="sb-columns"):
        with gr.Column(scale=1, min_width=260, elem_classes="sb-side"):
            index = gr.Slider(
                0, 1, value=0, step=1, buttons=[], label="Slice", visible=False, elem_id="paint-slice"
            )
            count = gr.Slider(
                1, MAX_COUNT, value=1, step=1, buttons=[], label="Number", elem_id="paint-number"
            )
            seed = gr.Number(0, precision=0, minimum=0, label="Seed of the first", elem_id="paint-seed")
            with gr.Accordion("Sampling", open=False):
                guidance = gr.Slider(
                    0, 5, value=0, step=0.25, buttons=[], label="Guidance towards the position"
                )
                steps = gr.Slider(1, 64, value=16, step=1, buttons=[], label="Steps of the prior")
                has_decoder = prior.decoder_provenance is not None
                decoder = gr.Slider(
                    1, 32, value=8, step=1, buttons=[], label="Steps of the decoder", visible=has_decoder
                )
            run = gr.Button("Fill the region", variant="primary", elem_id="paint-run")
            stop = gr.Button("Stop", variant="stop", visible=False, elem_id="paint-stop")
            message = gr.HTML(status(""), elem_id="paint-status")
            download = gr.HTML("", elem_id="paint-download")
        with gr.Column(scale=3, min_width=300):
            area = gr.HTML(EMPTY, elem_id="paint-brush")
            view = gr.HTML("", elem_id="paint-view")
    _connect_brush(studio, tab, index, [message, area])
    inputs = [index, count, seed, guidance, steps, decoder]
    _connect_run(studio, inputs, run, stop, [message, download, view])


def _connect_brush(studio: Studio, tab: gr.Tab, index: gr.Slider, shown: list[Any]) -> None:
    message, area = shown
    painted = gr.State("")  # name of the volume that the brush is on

    @answering([message, index, area, painted])
    def entering(before: str, request: gr.Request) -> tuple[Any, ...]:
        study = studio.session(request).study
        if study is None:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        name = str(getattr(study.slices, "filename", ""))
        if name == before:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        last, middle = len(study.slices) - 1, len(study.slices) // 2
        slider = gr.Slider(0, max(1, last), value=middle, visible=last > 0)
        return status(""), slider, brush(studio, request, middle), name

    @answering([message, area])
    def moving(number: int, request: gr.Request) -> tuple[str, str]:
        return status(""), brush(studio, request, int(number))

    tab.select(
        entering, [painted], [message, index, area, painted], concurrency_id="look", show_progress="hidden"
    )
    index.input(
        moving,
        [index],
        [message, area],
        concurrency_id="look",
        show_progress="hidden",
        trigger_mode="always_last",
    )


def _connect_run(
    studio: Studio, inputs: list[Any], run: gr.Button, stop: gr.Button, shown: list[Any]
) -> None:
    @answering(shown)
    def work(
        sent: str, index: float, count: float, seed: float | None, guidance: float, steps: float,
        decoder_steps: float, request: gr.Request, progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[Any]:  # fmt: skip
        wish = Wish.of(min(count, MAX_COUNT), seed, None, True, 0.0, guidance, steps, decoder_steps)
        out = fill(studio, request, sent, int(index), wish, progress)
        link = studio.link(pack(out, "slicebook-painted.zip"), "Download: NIfTI")
        return [
            status("Done. Pixels outside the region are unchanged."),
            link,
            results(out, wish, opened(studio, request).plane),
        ]

    hidden = gr.Textbox(visible=False)
    connect_run(studio, run, stop, work, [hidden, *inputs], shown, js=script("paint", len(inputs)))
