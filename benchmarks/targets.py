"""The table of targets: what was promised before measuring, what was measured, and whether it is met."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import evaluation_tables
from cells import METRICS, Results, Target, mean, signed, table


def targets(results: Results) -> str:
    """Return every target with its result."""
    rows: list[list[str]] = []
    for target, value, met in (
        *_quality_targets(results),
        *_speed_targets(results),
        *evaluation_tables.targets(results),
        *_sampling_targets(results),
        *_founding_target(results),
    ):
        rows.append([target, value, "**yes**" if met else "**no**"])
    missing = [name for name in ("quality", "speed", "founding", "evaluation") if name not in results]
    missing += [] if evaluation_tables.priors(results) else ["generation"]
    note = f"\nNot measured yet: {', '.join(missing)}." if missing else ""
    return table(["target", "result", "met"], rows) + note


def _quality_targets(results: Results) -> Iterable[Target]:
    result = results.get("quality", {"contenders": {}})
    compact = result["contenders"].get("compact")
    if compact is None:
        return
    bits = compact["test"]["bits_per_pixel"]["mean_of_slices"]
    yield "compact: 0.17 bits per pixel or less", f"{bits:.4f}", bits <= 0.17
    leads: list[tuple[str, Any, float, float | None]] = [
        ("JPEG 2000 at equal bits", compact["test"]["codecs"]["jpeg2000"]["advantage"], 0.10, 1.0)
    ]
    if "vqvae2" in result["lead"]:
        leads.append(
            ("vqvae2 at the best of three learning rates", result["lead"]["vqvae2"]["test"], 0.20, None)
        )
    for baseline, gains, ssim_gain, psnr_gain in leads:
        for metric in ("ssim_whole", "ssim_foreground", "psnr_whole", "psnr_foreground"):
            minimum = psnr_gain if metric.startswith("psnr") else ssim_gain
            if minimum is not None:
                target = f"compact's gain over {baseline}, {METRICS[metric]}: {minimum:+g} or more"
                yield target, signed(gains, metric), gains[metric]["mean_of_patients"] >= minimum
    use = [level["usage"] for level in compact["training_tokens"]]
    yield (
        "compact's codes in use on training tokens: 90 % or more at each level",
        ", ".join(f"{share:.1%}" for share in use),
        min(use) >= 0.9,
    )
    tokens = [level["tokens_per_code"] for level in compact["training_tokens"]]
    yield (
        "compact's training tokens per code, 20 or more at each level",
        ", ".join(f"{count:.0f}" for count in tokens),
        min(tokens) >= 20,
    )


def _speed_targets(results: Results) -> Iterable[Target]:
    if "speed" not in results:
        return
    speed = results["speed"]
    for setting in speed["quantizers"]["settings"]:
        if setting["dimension"] == 64:
            yield from _quantizer_targets(setting, speed["quantizers"]["missing"])
    for setting in speed["networks"]["settings"]:
        if setting["task"] == "training":
            ratio = setting["contenders"]["vqvae2"]["ratio"]
            which = f"{setting['side']}×{setting['side']}, {setting['precision']}"
            yield (
                f"training throughput of the ladder relative to vqvae2, {which}: 2.5 or more",
                f"{ratio:.2f}",
                ratio >= 2.5,
            )
    seconds = speed["command_line"]["slicebook --help"]
    yield "`slicebook --help` in under 0.5 s", f"{seconds:.2f} s", seconds < 0.5


def _sampling_targets(results: Results) -> Iterable[Target]:
    sampling = results.get("speed", {}).get("generation")
    if sampling is not None:
        seconds = sampling["contenders"]["slicebook"]["seconds_per_slice"]
        yield "tokens of a 256×128 slice sampled in 1 s or less, batch 16", f"{seconds:.2f} s", seconds <= 1
        peers = {
            name: contender["ratio"]
            for name, contender in sampling["contenders"].items()
            if "ratio" in contender
        }
        absent = [f"{name} {why}" for name, why in sampling["missing"].items()]
        value = ", ".join([*(f"{name} {ratio:.0f}" for name, ratio in peers.items()), *absent])
        yield (
            "sampling time of each peer relative to ours: 20 or more",
            value,
            bool(peers) and min(peers.values()) >= 20,
        )


def _quantizer_targets(setting: Mapping[str, Any], missing: Mapping[str, str]) -> Iterable[Target]:
    contenders, which = setting["contenders"], f"K {setting['codes']:,}, D 64"
    slicebook = contenders["slicebook"]
    peers = {name: peer for name, peer in contenders.items() if name not in ("slicebook", "matrix product")}
    absent = [f"{name} {why}" for name, why in missing.items()]
    times = {name: peer["ratio"] for name, peer in peers.items()}
    memory = {
        name: peer["extra_memory_mib"] / slicebook["extra_memory_mib"]
        for name, peer in peers.items()
        if peer["extra_memory_mib"] is not None and slicebook["extra_memory_mib"]
    }
    for quantity, shares in (("step", times), ("extra memory", memory)):
        value = ", ".join([*(f"{name} {share:.1f}" for name, share in shares.items()), *absent])
        met = bool(shares) and min(shares.values()) >= 5
        yield f"each peer's {quantity} relative to ours, {which}: 5 or more", value or "not measured", met


def _founding_target(results: Results) -> Iterable[Target]:
    if "founding" not in results:
        return
    result = results["founding"]
    scores, goal = result["test"]["scores"], result["document"]["goal"]
    yield (
        f"comp3710, {result['epochs']} epochs on the phantom, SSIM on test patients: over {goal}",
        mean(scores, "ssim_whole"),
        scores["ssim_whole"]["mean_of_patients"] > goal,
    )
