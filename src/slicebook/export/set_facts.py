"""What formats want to know of a generated set and a model does not know."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from slicebook.errors import ConfigError

SYNTHETIC = "SYNTHETIC, drawn by Slicebook: no patient"


@dataclass(frozen=True)
class SetFacts:
    """Facts about the images a model was trained on, said by the user.

    Attributes:
        contrast: Suffix of BIDS and channel name of nnU-Net, such as T1w, T2w or FLAIR.
        body_part: DICOM's Body Part Examined, such as PROSTATE or BRAIN (PS3.16, annex L).
        label_names: Names of label values; those of the model, if it has any.
    """

    contrast: str = "T2w"
    body_part: str = "PROSTATE"
    label_names: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9]+", self.contrast):
            raise ConfigError(f"--contrast {self.contrast!r}: wanted letters and digits, such as T2w")
        if not re.fullmatch(r"[A-Z0-9_ ]{1,16}", self.body_part):
            raise ConfigError(
                f"--body-part {self.body_part!r}: wanted 1 to 16 capitals of DICOM's list, such as PROSTATE"
            )
