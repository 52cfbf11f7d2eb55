"""The tables of `speed.py`: quantizers, networks, sampling, data path and command line."""

from __future__ import annotations

from cells import NOT_MEASURED, Results, table, where


def quantizers(results: Results) -> str:
    """Return time and memory of a training step of each quantizer, absolute and relative to ours."""
    result = results["speed"]["quantizers"]
    rows = []
    for setting in result["settings"]:
        contenders, size = setting["contenders"], [f"{setting['codes']:,}", f"{setting['dimension']}"]
        for name, contender in contenders.items():
            times = [
                f"{contender['ratio']:.2f}",
                f"{contender['ratio'] / contenders['matrix product']['ratio']:.2f}",
            ]
            extra = contender.get("extra_memory_mib")
            memory = ["", ""]
            if extra is not None:
                memory = [f"{extra:.1f}", f"{extra / contenders['slicebook']['extra_memory_mib']:.1f}"]
            rows.append([*size, name, f"{1000 * contender['seconds']:.1f}", *times, *memory])
        rows += [[*size, name, why, "", "", "", ""] for name, why in result["missing"].items()]
    head = [
        "K",
        "D",
        "",
        "ms per step",
        "relative to ours",
        "relative to the matrix product",
        "extra memory, MiB",
        "relative to ours",
    ]
    return (
        table(head, rows) + f"\n{result['vectors']:,} vectors. {result['memory']}\n" + where(results["speed"])
    )


def networks(results: Results) -> str:
    """Return the throughput of each network."""
    result = results["speed"]["networks"]
    names = [*result["settings"][0]["contenders"]]
    rows = []
    for setting in result["settings"]:
        side, contenders = setting["side"], setting["contenders"]
        rates = [f"{contenders[name]['images_per_second']:.1f}" for name in names]
        faster = f"{contenders['vqvae2']['ratio']:.2f}"
        rows.append([setting["task"], f"{side}×{side}", setting["precision"], *rates, faster])
    head = ["slices/s", "pixels", "precision", *names, "ladder / vqvae2"]
    sizes = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in result["parameters"].items())
    missing = "".join(f" {name}: {why}." for name, why in result["missing"].items())
    return table(head, rows) + f"\nBatches of {result['batch_size']}. Parameters: {sizes}.{missing}"


def sampling(results: Results) -> str:
    """Return the sampling time of a slice's tokens, compared with MONAI's transformer."""
    result = results["speed"].get("generation")
    if result is None:
        return NOT_MEASURED
    rows = [
        [
            name,
            f"{contender['parameters'] / 1e6:.2f} M",
            f"{contender['seconds_per_slice']:.2f}",
            f"{contender.get('ratio', 1):.1f}",
        ]
        for name, contender in result["contenders"].items()
    ]
    rows += [[name, why, "", ""] for name, why in result["missing"].items()]
    tokens = ", ".join(f"{name} {count}" for name, count in result["tokens"].items())
    return (
        table(["", "parameters", "seconds per slice", "relative to ours"], rows)
        + f"\nA slice of {result['rows']}×{result['columns']} at batch {result['batch_size']}, "
        f"{result['precision']}; tokens: {tokens}. Decoding them takes "
        f"{result['decoding_seconds_per_slice']:.3f} s more. The peer is timed for {result['peer']}.\n"
        + where(results["speed"])
    )


def other_speed(results: Results) -> str:
    """Return the speed of the data path and of the command line."""
    path, line = results["speed"]["data_path"], results["speed"]["command_line"]
    rows = [
        ["loading batches from a prepared folder, slices/s", f"{path['slices_per_second']['read']:,.0f}"],
        ["the same with augmentation, slices/s", f"{path['slices_per_second']['augmented']:,.0f}"],
        *([f"`{name}`, seconds", f"{seconds:.2f}"] for name, seconds in line.items()),
    ]
    return table(["", ""], rows) + "\nSlices of the phantom, 256×128, loaded in the training process."
