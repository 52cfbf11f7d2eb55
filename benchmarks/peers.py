"""What `speed.py` times: quantizers of several libraries, networks, and a peer's sampler.

All quantizers use EMA codebooks (decay 0.99), commitment weight 1 and the straight-through gradient, without
k-means initialisation or resets of dead codes; vectors have the layout that the library expects. All tensors
are made on torch's default device.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from slicebook.models.quantizer import BLOCK_ELEMENTS, Quantizer
from slicebook.models.tokenizer import Tokenizer
from slicebook.recipes import load_recipe

Step = Callable[[], None]

OURS = "slicebook"
FLOOR = "matrix product"
"""Vectors times codes, block by block into a small buffer: a lower bound for any exact search."""

HEAD_DIM = 64  # of the peer's attention

SIDE = 32
"""Vectors come from grids of 32×32, as those of 256×256 slices do."""


def _ours(n: int, k: int, d: int) -> Step:
    return _step(Quantizer(k, d), torch.randn(n, d), lambda output: (output.vectors, output.commitment))


def _floor(n: int, k: int, d: int) -> Step:
    vectors, codes = torch.randn(n, d), torch.randn(d, k)
    rows = max(1, BLOCK_ELEMENTS // k)
    buffer = torch.empty(rows, k)

    def multiply() -> None:
        for block in torch.split(vectors, rows):
            torch.mm(block, codes, out=buffer[: len(block)])

    return multiply


def _lucidrains(n: int, k: int, d: int) -> Step:
    library = importlib.import_module("vector_quantize_pytorch")
    module = library.VectorQuantize(
        dim=d,
        codebook_size=k,
        decay=0.99,
        commitment_weight=1.0,
        rotation_trick=False,
        threshold_ema_dead_code=0,
    )
    return _step(module, torch.randn(n // SIDE**2, SIDE**2, d), lambda output: (output[0], output[2]))


def _monai(n: int, k: int, d: int) -> Step:
    library = importlib.import_module("monai.networks.layers.vector_quantizer")
    module = library.EMAQuantizer(2, num_embeddings=k, embedding_dim=d, commitment_cost=1.0, decay=0.99)
    return _step(module, _maps(n, d), lambda output: (output[0], output[1]))


def _medtokenizers(n: int, k: int, d: int) -> Step:
    module = _medtokenizers_quant().VectorQuantizer(k, d, dim=2, beta=1.0, use_ema=True, ema_decay=0.99)
    return _step(module, _maps(n, d), lambda output: (output[0], output[1].mean()))


QUANTIZERS: dict[str, Callable[[int, int, int], Step]] = {
    OURS: _ours,
    "vector-quantize-pytorch": _lucidrains,
    "monai": _monai,
    "medtokenizers": _medtokenizers,
    FLOOR: _floor,
}
"""By package: given the numbers of vectors, codes and dimensions, a training step forward and backward."""


def _ladder() -> nn.Module:
    return Tokenizer(load_recipe("compact").tokenizer)


def _vqvae2() -> nn.Module:
    return Tokenizer(load_recipe("comp3710", ["tokenizer.resize=null"]).tokenizer)


class _MonaiVQVAE(nn.Module):
    """MONAI's VQVAE, which has one level, with the settings of the finest level of `vqvae2`."""

    def __init__(self) -> None:
        super().__init__()
        library = importlib.import_module("monai.networks.nets.vqvae")
        self.net = library.VQVAE(
            spatial_dims=2,
            in_channels=1,
            out_channels=1,
            channels=(64, 128, 128),
            num_res_channels=32,
            num_res_layers=2,
            num_embeddings=1024,
            embedding_dim=128,
            decay=0.99,
            commitment_cost=1.0,
        )

    def forward(self, images: Tensor) -> Any:
        reconstruction, commitment = self.net(images)
        return types.SimpleNamespace(images=reconstruction, commitment=commitment)

    def encode(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.net.index_quantize(images)
        return tokens


NETWORKS: dict[str, Callable[[], nn.Module]] = {"ladder": _ladder, "vqvae2": _vqvae2, "monai": _MonaiVQVAE}
"""`ladder` is the recipe `compact`, `vqvae2` is `comp3710` without resizing; MONAI's has one level."""


def training_step(module: nn.Module, images: Tensor, precision: str) -> Step:
    """Return a step of forward, backward and AdamW, on squared error + commitment, the same for all."""
    optimizer = torch.optim.AdamW(module.train().parameters(), lr=1e-4)

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            output = module(images)
        loss = functional.mse_loss(output.images.float(), images) + output.commitment.float()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def encoding(module: nn.Module, images: Tensor, precision: str) -> Step:
    """Return a step that encodes slices to tokens, in evaluation mode."""
    encode = module.eval().encode
    assert callable(encode)
    return _inference(encode, images, precision)


def reconstruction(module: nn.Module, images: Tensor, precision: str) -> Step:
    """Return a step that encodes and decodes slices, in evaluation mode."""
    return _inference(module.eval(), images, precision)


def _inference(function: Callable[[Tensor], object], images: Tensor, precision: str) -> Step:
    def step() -> None:
        bf16 = precision == "bf16-mixed"
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            function(images)

    return step


class MonaiTransformer:
    """MONAI's transformer with about the given number of parameters, sampled by MONAI's own inferer."""

    def __init__(self, parameters: int, codes: int, tokens: int, width: int) -> None:
        nets = importlib.import_module("monai.networks.nets.transformer")
        inferers = importlib.import_module("monai.inferers")

        def build(layers: int) -> nn.Module:
            module: nn.Module = nets.DecoderOnlyTransformer(
                num_tokens=codes + 1,  # with a start token
                max_seq_len=tokens,
                attn_layers_dim=width,
                attn_layers_depth=layers,
                attn_layers_heads=width // HEAD_DIM,
                use_flash_attention=True,  # half the time of its default
            )
            return module.eval()

        single, double = (_parameters(build(layers)) for layers in (1, 2))
        self.module = build(max(1, 1 + round((parameters - single) / (double - single))))
        self.parameters = _parameters(self.module)
        self.codes = codes
        self.inferer = inferers.VQVAETransformerInferer()
        # One token is sampled at a time and nothing is decoded, so that only the sampler is timed.
        self.stage_one = types.SimpleNamespace(num_embeddings=codes, decode_samples=lambda tokens: tokens)
        self.order = types.SimpleNamespace(get_revert_sequence_ordering=lambda: [0])

    def step(self, before: int, batch: int) -> Step:
        """Return a step that samples one token per sample after `before` tokens, start token included."""
        prefix = torch.cat(
            [torch.full((batch, 1), self.codes), torch.randint(self.codes, (batch, before - 1))], 1
        )

        def draw() -> None:
            self.inferer.sample(
                latent_spatial_dim=(1, 1),
                starting_tokens=prefix,
                vqvae_model=self.stage_one,
                transformer_model=self.module,
                ordering=self.order,
                verbose=False,
            )

        return draw


SAMPLERS: dict[str, Callable[[int, int, int, int], MonaiTransformer]] = {"monai": MonaiTransformer}
"""Given parameters, codes, tokens of a slice and width."""


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _step(module: nn.Module, vectors: Tensor, outputs: Callable[[Any], tuple[Tensor, Tensor]]) -> Step:
    module.train()
    vectors.requires_grad_()
    gradients = [torch.randn(vectors.shape), torch.ones(())]

    def step() -> None:
        quantized, commitment = outputs(module(vectors))
        torch.autograd.backward([quantized, commitment.sum()], gradients)
        vectors.grad = None

    return step


def _maps(n: int, d: int) -> Tensor:
    return torch.randn(n // SIDE**2, d, SIDE, SIDE)


def _medtokenizers_quant() -> Any:
    """Import its quantizer without its package initialisers, which need torchvision and more."""
    for name in ("medtokenizers", "medtokenizers.modules"):
        if name not in sys.modules:
            spec = importlib.util.find_spec(name)
            if spec is None:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__path__ = list(spec.submodule_search_locations or ())
    return importlib.import_module("medtokenizers.modules.quant")
