"""Checks every shape and type that `src` promises while the tests run, on one thread a process."""

import torch
from jaxtyping import install_import_hook

install_import_hook("slicebook", "beartype.beartype")
torch.set_num_threads(1)
