"""Checks every shape and type that `src` promises while the tests run, on one thread a process."""

import torch
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# As the type system has it, an int is a float (PEP 484).
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))

install_import_hook("slicebook", f"{__name__}.checked")
torch.set_num_threads(1)
