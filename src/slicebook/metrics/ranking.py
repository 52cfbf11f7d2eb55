"""How well a number tells two groups apart."""

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

CONVENTION = "Area under the ROC curve: chance that a marked one scores above an unmarked one, ties by half"


def auroc(scores: Float[np.ndarray, " n"], marked: Bool[np.ndarray, " n"]) -> float | None:
    """Return the area under the ROC curve, from the ranks (Hanley and McNeil 1982); None without both groups.

    Args:
        scores: Finite; the higher, the likelier to be marked.
        marked: Which belong to the group to be found.
    """
    inside = int(marked.sum())
    outside = len(marked) - inside
    if not inside or not outside:
        return None
    above = float(rankdata(scores)[marked].sum()) - inside * (inside + 1) / 2
    return above / (inside * outside)
