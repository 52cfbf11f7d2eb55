"""The table of `scale.py`: memory and seconds of every command by the size of a study."""

from __future__ import annotations

from cells import Results, table, where


def study_sizes(results: Results) -> str:
    """Return the seconds and the peak memory of each step, by the number of slices."""
    result = results["scale"]
    sizes = sorted(result["sizes"], key=lambda size: size["slices"])
    rows = [
        [
            step,
            *(f"{size['steps'][step]['cpu_seconds']:,.0f}" for size in sizes),
            *(f"{size['steps'][step]['peak_mib']:,.0f}" for size in sizes),
        ]
        for step in sizes[0]["steps"]
    ]
    slices = [f"{size['slices']:,}" for size in sizes]
    head = [
        "",
        *(f"{'CPU seconds, ' * (not number)}{count} slices" for number, count in enumerate(slices)),
        *(f"{'peak MiB, ' * (not number)}{count} slices" for number, count in enumerate(slices)),
    ]
    largest = sizes[-1]
    speeds = {
        step: 60 * largest["patients"] / largest["steps"][step]["cpu_seconds"]
        for step in ("check", "prepare")
    }
    bytes_of = "same bytes" if all(size["same_bytes_with_2_processes"] for size in sizes) else "OTHER BYTES"
    shape = f"{result['slices_per_patient']} slices of {result['side']}×{result['side']}"
    patients = ", ".join(str(size["patients"]) for size in sizes)
    return (
        table(head, rows) + f"\n{patients} patients with one volume of {shape} and its mask each. With "
        f"{largest['patients']} volumes, `check` reads {speeds['check']:,.0f} and `prepare` "
        f"{speeds['prepare']:,.0f} volumes per minute of one core; `prepare --workers 2` wrote the "
        f"{bytes_of}. "
        "The memory is that of all processes of a command together. " + where(result["machine"])
    )
