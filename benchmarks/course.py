"""Train the small models of docs/course.md: what changes when one choice of the student project changes.

    python benchmarks/course.py

Each model is the recipe `comp3710` at a smaller size, trained on phantom slices with one thread, with one
choice changed. Writes the pictures of the page to docs/images and its numbers to results/course.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import machine
import torch
from course_pictures import draw_group, draw_levels, draw_tokens
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from slicebook.data.dataset import PreparedData, SliceSet
from slicebook.data.loader import SliceBatches
from slicebook.data.prepare import prepare
from slicebook.metrics.image_quality import scores, summarise
from slicebook.models.losses import loss
from slicebook.models.quantizer import Quantized, Quantizer, nearest_code
from slicebook.models.tokenizer import Tokenizer
from slicebook.phantom import simulator
from slicebook.recipes import load_recipe

IMAGES = Path(__file__).parent.parent / "docs" / "images"
PATIENTS, SLICES, SHAPE = (24, 1, 6), 12, (128, 64)  # of the phantom; pixels left-right and front-back
SEED, BATCH, COUNTED = 42, 8, 50  # the last: steps at the end over which codes in use are counted
STARTED = 256  # slices whose latents start the codebooks
SMALLER = (
    "tokenizer.width=32",
    "tokenizer.residual_width=8",
    "tokenizer.code_dim=32",
    "tokenizer.resize=null",
)
FASTER = "training.learning_rate=1e-3"
NO_KMEANS, NO_RESET = "tokenizer.quantizer.kmeans_slices=0", "tokenizer.quantizer.reset_every=0"


@dataclass(frozen=True)
class Variant:
    """A model: the small student project with some settings changed.

    Attributes:
        name: In the results.
        title: In tables and pictures.
        settings: As on the command line.
        gradient: Whether codes are parameters that the optimiser moves, instead of moving averages.
        noise: Standard deviation of Gaussian noise added to all slices, on [-1, 1].
    """

    name: str
    title: str
    settings: tuple[str, ...] = ()
    gradient: bool = False
    noise: float = 0.0


BASE = Variant("base", "3 levels, 1,024 codes")


def _levels(rates: Sequence[int]) -> tuple[str, ...]:
    return (
        f"tokenizer.scaling_rates={list(rates)}".replace(" ", ""),
        f"tokenizer.codebook_sizes={[1024] * len(rates)}".replace(" ", ""),
    )


def _codes(size: int) -> tuple[str, ...]:
    return (f"tokenizer.codebook_sizes={[size] * 3}".replace(" ", ""),)


GROUPS: dict[str, tuple[Variant, ...]] = {
    "levels": (
        Variant("one-level", "1 level: 8", _levels([8])),
        Variant("two-levels", "2 levels: 8, 4", _levels([8, 4])),
        replace(BASE, title="3 levels: 8, 4, 2"),
        Variant("fine-level", "1 level: 4", _levels([4])),
    ),
    "codebook-size": (
        Variant("codes-16", "16 codes", _codes(16)),
        Variant("codes-128", "128 codes", _codes(128)),
        replace(BASE, title="1,024 codes"),
    ),
    "code-dim": (
        Variant("dim-2", "dimension 2", ("tokenizer.code_dim=2",)),
        Variant("dim-8", "dimension 8", ("tokenizer.code_dim=8",)),
        replace(BASE, title="dimension 32"),
    ),
    "codebook": (
        replace(BASE, title="moving average, k-means, resets"),
        Variant("no-kmeans", "no k-means", (NO_KMEANS,)),
        Variant("no-reset", "no resets", (NO_RESET,)),
        Variant("random", "neither", (NO_KMEANS, NO_RESET)),
        Variant("gradient", "gradient, k-means", (NO_RESET,), gradient=True),
        Variant("gradient-random", "gradient alone", (NO_KMEANS, NO_RESET), gradient=True),
    ),
    "loss": (
        replace(BASE, title="MSE, commitment 1"),
        Variant("commitment", "MSE, commitment 0.25", ("training.loss.commitment=0.25",)),
        Variant("l1-ssim", "L1 + SSIM", ("training.loss.kind=l1_ssim",)),
    ),
    "learning-rate": (
        Variant("slow", "learning rate 0.0001 (student project)", ("training.learning_rate=1e-4",)),
        replace(BASE, title="learning rate 0.001"),
    ),
    "noise": (
        replace(BASE, title="slices as they are"),
        Variant("noise", "with added noise", noise=0.2),
    ),
    "resize": (
        replace(BASE, title="64×128, as acquired"),
        Variant("resize", "stretched to 128×128", ("tokenizer.resize=[128,128]",)),
    ),
}
"""The variants by what they change; the baseline is in each group."""


class GradientQuantizer(Quantizer):
    """A codebook whose codes are parameters (van den Oord et al. 2017, eq. 3), for comparison."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__(size, dim)
        self.embedding = nn.Parameter(torch.randn(size, dim))

    @property
    def codes(self) -> Float[Tensor, "k d"]:
        """The codebook."""
        return self.embedding

    def forward(self, vectors: Float[Tensor, "n d"], reset_dead_codes: bool = False) -> Quantized:
        """Quantise vectors; the commitment also moves the codes."""
        tokens = nearest_code(vectors, self.embedding.detach())
        nearest = functional.embedding(tokens, self.embedding)
        pull = functional.mse_loss(vectors, nearest.detach()) + functional.mse_loss(nearest, vectors.detach())
        self.code_hits += torch.bincount(tokens, minlength=self.size)
        return Quantized(vectors + (nearest - vectors).detach(), tokens, pull)

    @torch.no_grad()
    def _set_codes(self, chosen: Tensor, table: Tensor) -> None:
        self.embedding[chosen] = (table[:, :-1] / table[:, -1:])[chosen]


def build(variant: Variant, first: Float[Tensor, "b 1 h w"]) -> tuple[Tokenizer, Any]:
    """Return an untrained model, its codebooks started as the variant says, and its training settings."""
    recipe = load_recipe("comp3710", (*SMALLER, FASTER, *variant.settings))
    torch.manual_seed(SEED)
    model = Tokenizer(recipe.tokenizer).train()
    if variant.gradient:
        sizes, dim = recipe.tokenizer.codebook_sizes, recipe.tokenizer.code_dim
        model.quantizers = nn.ModuleList(GradientQuantizer(size, dim) for size in sizes)
    if recipe.tokenizer.quantizer.kmeans_slices:
        model.init_from_kmeans(first, torch.Generator().manual_seed(SEED))
    return model, recipe.training


def endless(batches: SliceBatches) -> Iterator[Tensor]:
    """Yield the images of batches, epoch after epoch."""
    for epoch in itertools.count():
        batches.set_epoch(epoch)
        for batch in batches:
            yield batch.images


def train(variant: Variant, data: PreparedData, steps: int) -> tuple[Tokenizer, dict[str, Any]]:
    """Train one model, and return it with its usage of codes and its training time."""
    batches = endless(SliceBatches(data.split("train"), BATCH, shuffle=True, seed=SEED))
    generator = torch.Generator().manual_seed(SEED)

    def noisy() -> Tensor:
        images = next(batches)
        return images + variant.noise * torch.randn(images.shape, generator=generator)

    first: list[Tensor] = []
    while sum(len(images) for images in first) < STARTED:
        if (images := noisy()).shape[-2:] == (SHAPE[1], SHAPE[0]):  # the odd patient has more rows
            first.append(images)
    model, config = build(variant, torch.cat(first)[:STARTED])
    adam = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    started = time.process_time()
    for step in range(steps):
        if step == steps - COUNTED:
            for level in range(model.levels):
                model.codebook(level).reset_usage()
        images = noisy()
        every = model.config.quantizer.reset_every
        resets = every > 0 and step % every == every - 1 and step < 0.9 * steps
        output = model(images, reset_dead_codes=resets)
        adam.zero_grad()
        loss(output, images, config.loss).total.backward()  # type: ignore[no-untyped-call]  # torch lacks it
        adam.step()
    usage = [asdict(model.codebook(level).usage()) for level in range(model.levels)]
    return model.eval(), {"cpu_seconds": time.process_time() - started, "codes": usage}


@torch.no_grad()
def test(
    variant: Variant, model: Tokenizer, slices: SliceSet
) -> tuple[dict[str, Any], list[tuple[Tensor, Tensor]]]:
    """Score the test slices of the common size; return scores, and each slice with its reconstruction."""
    generator = torch.Generator().manual_seed(SEED)
    drawn, named, clean, patients = [], [], [], []
    for index, record in enumerate(slices.records):
        image = slices[index]
        given = image + variant.noise * torch.randn(image.shape, generator=generator)
        copy = model(given[None]).images[0]
        unit = [((x[0].clamp(-1, 1) + 1) / 2).numpy() for x in (given, copy, image)]
        named.append(scores(unit[0], unit[1]).named())
        clean.append(scores(unit[2], unit[1]).named())
        patients.append(record.patient)
        drawn.append((given[0], copy[0]))
    rows, columns = SHAPE[1], SHAPE[0]
    kept = ("ssim_whole", "ssim_foreground", "psnr_whole")
    parts = {"scores": named, "scores_clean": clean} if variant.noise else {"scores": named}
    result: dict[str, Any] = {
        name: {
            key: value.model_dump(mode="json")
            for key, value in summarise(found, patients, SEED).items()
            if key in kept
        }
        for name, found in parts.items()
    }
    result["bits_per_pixel"] = {"mean_of_slices": model.bits((rows, columns)) / rows / columns}
    return result, drawn


def measure(variant: Variant, data: PreparedData, steps: int) -> tuple[dict[str, Any], Tokenizer, list[Any]]:
    """Train and test one model."""
    model, trained = train(variant, data, steps)
    tested, drawn = test(variant, model, data.split("test"))
    row = {
        "settings": list(variant.settings),
        "gradient": variant.gradient,
        "noise": variant.noise,
        "codebook_sizes": list(model.config.codebook_sizes),
        "grids": [list(grid) for grid in model.grids((SHAPE[1], SHAPE[0]))],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    return row | trained | tested, model, drawn


def make_data(folder: Path, patients: tuple[int, int, int]) -> PreparedData:
    """Write phantom patients as the HipMRI study names them, and prepare them."""
    simulator.write_hipmri(
        folder / "phantom", patients=patients, weeks=1, slices=SLICES, shape=SHAPE, seed=SEED
    )
    prepare(folder / "phantom", folder / "prepared")
    return PreparedData.open(folder / "prepared")


def earlier(path: Path, conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Return the groups and models of an earlier run under the same conditions, if there is one."""
    kept: dict[str, Any] = {"groups": {}, "models": {}}
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if all(before.get(name) == value for name, value in conditions.items()):
            kept = {name: before[name] for name in kept}
    return kept


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--patients", type=int, nargs=3, default=PATIENTS)
    parser.add_argument("--results", type=Path, default=machine.RESULTS)
    parser.add_argument("--images", type=Path, default=IMAGES)
    parser.add_argument("--only", nargs="*", default=list(GROUPS), help="groups to train; others are kept")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.images.mkdir(parents=True, exist_ok=True)
    path = options.results / "course.json"
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder), tuple(options.patients))
        counts = {
            name: {"patients": len(data.split(name).patients), "slices": len(data.split(name))}
            for name in ("train", "test")
        }
        size = [SHAPE[1], SHAPE[0]]
        conditions = {"steps": options.steps, "batch": BATCH, "size": size, "data": counts}
        head = machine.surroundings(1) | {"precision": "32-true"} | conditions
        result = head | earlier(path, conditions)
        drawn: dict[str, list[Any]] = {}
        for group in options.only:
            for variant in GROUPS[group]:
                if variant.name in drawn:
                    continue
                row, model, drawn[variant.name] = measure(variant, data, options.steps)
                result["models"][variant.name] = row
                reached = row["scores"]["ssim_whole"]["mean_of_patients"]
                print(f"{variant.name:16} {reached:.3f} {row['cpu_seconds']:.0f} s")
                if variant.name == BASE.name:
                    draw_levels(model, drawn[BASE.name], options.images)
                    draw_tokens(model, drawn[BASE.name], options.images)
            result["groups"][group] = {variant.name: variant.title for variant in GROUPS[group]}
            columns = [(variant.title, drawn[variant.name]) for variant in GROUPS[group]]
            draw_group(columns, options.images / f"course-{group}.png")
            machine.write(path, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
