"""The label values of the phantom's masks."""

from __future__ import annotations

Number = int | float
