"""Numbers as the card and the comparison write them: three digits, the interval in brackets."""

from collections.abc import Sequence

UNKNOWN = "–"

Ends = tuple[float, float]


def number(value: float | None) -> str:
    """Return a value in three digits, or all of its digits before the point.

    >>> [number(0.12345), number(-2935.3), number(None)]
    ['0.123', '−2,935', '–']
    """
    if value is None:
        return UNKNOWN
    return (f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}").replace("-", "−")


def estimate(value: float | None, interval: Ends | None) -> str:
    """Return a value with its interval.

    >>> estimate(14.9, (7.07, 22.74))
    '14.9 [7.07, 22.7]'
    """
    return f"{number(value)} {ends(interval)}" if interval else number(value)


def ends(interval: Ends | None) -> str:
    """Return an interval alone."""
    return UNKNOWN if interval is None else f"[{number(interval[0])}, {number(interval[1])}]"


def share(value: float | None) -> str:
    """Return a share in percent."""
    return UNKNOWN if value is None else f"{value:.0%}"


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it.

    >>> [duration(90), duration(192.6), duration(86400)]
    ['90 s', '3.2 min', '24.0 h']
    """
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def listed(names: Sequence[str]) -> str:
    """Return names as a sentence lists them.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
