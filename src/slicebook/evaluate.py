"""Judge a model on patients it never saw: is it faithful, does it generate, does it copy, is it of use?

One JSON holds every number with its convention, and what it takes to get it again; `report` draws it as a page.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from slicebook import sheets
from slicebook.checkpoint import (
    LoadedPrior,
    LoadedTokenizer,
    commit,
    find_model,
    load_prior,
    load_tokenizer,
    versions,
)
from slicebook.config import Record
from slicebook.dataset import PreparedData, SliceSet
from slicebook.errors import CheckpointError, ConfigError
from slicebook.fidelity import Fidelity, measure_fidelity
from slicebook.layouts import Split
from slicebook.likeness import Likeness, Side, draw_side, measure_likeness, read_side
from slicebook.metrics.summary import CodecReport
from slicebook.text import replace_text
from slicebook.usefulness import Usefulness, measure_usefulness

SCHEMA_VERSION = 2
REPORT_NAME = "report.json"
SHOWN = 32  # samples, and real slices beside them, in the contact sheet
STEPS = 300  # of each segmenter's training

Part = Literal["fidelity", "generation", "audit", "usefulness"]
PARTS: tuple[Part, ...] = get_args(Part)
