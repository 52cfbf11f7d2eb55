"""Generate slices with the ONNX models beside this file; needs NumPy and onnxruntime alone.

python sample.py --seed 0 -n 4 --out samples.npz
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

Noise = Callable[[tuple[int, ...]], np.ndarray]
"""Draws standard normal noise of a shape for each sample."""


def generate(
    folder: Path,
    count: int,
    noise: Noise,
    *,
    steps: int = 16,
    decoder_steps: int = 8,
    position: float | None = None,
    group: int = -1,
) -> dict[str, np.ndarray]:
    """Return `images` in [-1, 1] and, if the model has masks, `masks`.

    Args:
        folder: Of the models.
        count: Number of slices.
        noise: Called for each step and grid, and once for the generation decoder.
        steps: Evaluations of the prior.
        decoder_steps: Evaluations of the generation decoder.
        position: In the volume, from 0 to 1; any by default.
        group: Index of the class; -1 for any.
    """
    info = json.loads((folder / "model.json").read_text(encoding="utf-8"))["generator"]
    where = np.full(count, math.nan if position is None else position, np.float32)
    tokens = _tokens(folder, info, noise, steps, where, np.full(count, group))
    image = {f"tokens_{name[6:]}": grid for name, grid in tokens.items() if name.startswith("image_")}
    (slices,) = _session(folder, "decoder").run(None, {**image, "size": np.array(info["size"])})
    made = {"images": np.clip(slices, -1, 1)}
    if info["label_values"]:
        masks = {name: grid for name, grid in tokens.items() if name.startswith("mask_")}
        (made["masks"],) = _session(folder, "masks").run(None, masks)
    if info["padded"]:
        start = noise((1, *info["padded"]))
        made["images"] = _textured(folder, made["images"], image["tokens_0"], start, decoder_steps)
    return made


def _tokens(
    folder: Path, info: dict[str, Any], noise: Noise, steps: int, where: np.ndarray, group: np.ndarray
) -> dict[str, np.ndarray]:
    """Go from noise to tokens: estimate the codes and add noise, in part new and less at each step."""
    prior, grids, share = _session(folder, "prior"), info["grids"], info["fresh_noise"]
    samples: dict[str, np.ndarray] = {}
    outputs: list[np.ndarray] = []
    for index in range(steps):
        time = index / steps
        for number, grid in enumerate(grids):
            drawn = noise((grid["channels"], grid["rows"], grid["columns"]))
            if index:
                codes, before = outputs[number], (index - 1) / steps
                kept = math.sqrt(1 - share**2) / (1 - before) * (samples[grid["name"]] - before * codes)
                drawn = time * codes + (1 - time) * (kept + share * drawn)
            samples[grid["name"]] = drawn.astype(np.float32)
        times = np.full(len(where), time, np.float32)
        outputs = prior.run(None, {**samples, "times": times, "position": where, "group": group})
    return dict(zip(samples, outputs[len(grids) :], strict=True))


def _textured(
    folder: Path, base: np.ndarray, finest: np.ndarray, samples: np.ndarray, steps: int
) -> np.ndarray:
    """Follow the flow of the generation decoder by a solver of second order."""
    decoder = _session(folder, "generation_decoder")
    samples, previous, last_step = samples.astype(np.float32), None, math.inf
    for index in range(steps):
        start, end = index / steps, (index + 1) / steps
        times = np.full(len(base), start, np.float32)
        inputs = {"samples": samples, "base": base, "tokens_0": finest, "times": times}
        data, images = decoder.run(None, inputs)
        if end == 1:
            break
        step = math.log(end / (1 - end)) - (math.log(start / (1 - start)) if start else -math.inf)
        target = data
        if previous is not None and math.isfinite(last_step):
            share = step / (2 * last_step)
            target = (1 + share) * data - share * previous
        kept = (1 - end) / (1 - start)
        samples = (kept * samples + (end - start * kept) * target).astype(np.float32)
        previous, last_step = data, step
    drawn: np.ndarray = images
    return drawn


def _session(folder: Path, name: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])


def main() -> None:
    """Write samples as arrays."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-n", type=int, default=4, help="number of slices")
    parser.add_argument("--seed", type=int, default=0, help="of the first slice")
    parser.add_argument("--steps", type=int, default=16, help="evaluations of the prior")
    parser.add_argument("--position", type=float, help="in the volume, from 0 to 1; any by default")
    parser.add_argument("--out", type=Path, default=Path("samples.npz"), help="file of NumPy to write")
    given = parser.parse_args()
    each = [np.random.default_rng(given.seed + index) for index in range(given.n)]

    def noise(shape: tuple[int, ...]) -> np.ndarray:
        return np.stack([generator.standard_normal(shape, np.float32) for generator in each])

    folder = Path(__file__).resolve().parent
    made = generate(folder, given.n, noise, steps=given.steps, position=given.position)
    np.savez_compressed(given.out, **made)  # type: ignore[arg-type]  # its keywords may be any names


if __name__ == "__main__":
    main()
