"""Every setting as a frozen record, and the reading of recipes: YAML plus `key=value`.

A recipe is a named YAML file. It is read strictly: an unknown key is an error that names the nearest known
one, and a repeated key is an error. Knows neither torch nor files of images.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_origin

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from slicebook.errors import ConfigError
from slicebook.records import Record

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
Side = Annotated[int, Field(ge=1, le=4096)]  # pixels; a model file may not ask for any amount of memory
Widths = Annotated[tuple[Annotated[int, Field(ge=32, multiple_of=32)], ...], Field(min_length=1)]
LabelValue = Annotated[int, Field(ge=0, le=255)]  # a mask is read as uint8
CodebookSize = Annotated[int, Field(ge=1, le=65536)]  # a token file stores 16 bits per token


R = TypeVar("R", bound=Record)


class Settings(Record):
    """A group of settings: no number may be NaN or infinite."""

    model_config = ConfigDict(allow_inf_nan=False)


class ContrastConfig(Settings):
    """Random contrast and image quality of training slices, so that a model works on scans unlike them.

    After SynthSeg (Billot et al. 2023, https://doi.org/10.1016/j.media.2023.102789), which changes labels.
    """

    probability: Probability = 0.75
    """Share of the slices that are changed."""
    knots: Annotated[int, Field(ge=2)] = 7
    """Number of random values that the piecewise linear intensity curve interpolates; air stays dark."""
    bias: Fraction = 0.45
    """A smooth random field from 1 - 2·bias to 1 multiplies the intensity."""
    blur: Annotated[float, Field(ge=0.0, le=3.0)] = 1.2
    """Largest standard deviation of a Gaussian blur, in pixels."""
    noise: Fraction = 0.06
    """Largest standard deviation of Gaussian noise on [0, 1]."""


class AugmentConfig(Settings):
    """Random changes to training slices; each is drawn uniformly within plus or minus its setting."""

    flip_probability: Probability = 0.5
    """Probability of a left-right mirror (patients are nearly symmetric; labels have no side)."""
    rotate_degrees: Annotated[float, Field(ge=0.0, le=180.0)] = 5.0
    """Rotation around the centre of the slice."""
    scale: Fraction = 0.08
    """Relative zoom: 0.08 draws a factor from 0.92 to 1.08."""
    shift: Fraction = 0.04
    """Shift along each axis, as a fraction of the slice."""
    gamma: Fraction = 0.15
    """Exponent on [0, 1] intensity is drawn from 1 - gamma to 1 + gamma."""
    intensity_scale: Fraction = 0.08
    """Intensity on [0, 1] is multiplied by 1 - intensity_scale to 1 + intensity_scale."""
    contrast: ContrastConfig | None = None
    """Random contrast, for models that start other trainings; null keeps the contrast."""


class QuantizerConfig(Settings):
    """How each codebook learns (van den Oord et al. 2017, appendix A.1)."""

    decay: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.99
    """Decay per step of the moving averages that the codes are made of."""
    epsilon: Positive = 1e-5
    """Laplace smoothing of the counts."""
    kmeans_slices: Annotated[int, Field(ge=0)] = 256
    """Slices whose latents start the codebooks by k-means; 0 keeps the random start."""
    reset_every: Annotated[int, Field(ge=0)] = 20
    """Training steps between revivals of dead codes; 0 never revives."""
    reset_below: Fraction = 0.03
    """A code is dead if its moving average of hits is below this fraction of the codebook's mean."""


class TokenizerConfig(Settings):
    """Architecture of a tokenizer. Sequences run from the finest level to the coarsest."""

    architecture: Literal["ladder", "vqvae2"] = "ladder"
    """`ladder`: our own. `vqvae2`: that of the student project."""
    scaling_rates: tuple[int, ...] = (8, 4, 2)
    """Downscaling of each level against the next finer one (the finest against the slice)."""
    codebook_sizes: tuple[CodebookSize, ...] = (1024, 512, 128)
    """Number of codes per level."""
    code_dim: Count = 16
    """Length of a code, at every level."""
    width: Annotated[int, Field(ge=16, multiple_of=16)] = 128
    """Channels of the network; its groups of 8 also divide half of them."""
    residual_width: Count = 32
    """Inner channels of a residual layer (`vqvae2` only)."""
    residual_layers: Annotated[int, Field(ge=0)] = 2
    """Residual layers per level, in the encoder and again in the decoder."""
    resize: tuple[Side, Side] | None = None
    """Stretch every slice to (rows, columns) first. Only `comp3710` does: it loses the aspect."""
    quantizer: QuantizerConfig = QuantizerConfig()
    label_values: tuple[LabelValue, ...] = ()
    """Empty for grayscale slices; for a mask tokenizer all label values, one channel each."""

    @property
    def channels(self) -> int:
        """Channels of a slice: one for grayscale, or one per label value."""
        return max(1, len(self.label_values))

    @model_validator(mode="after")
    def _levels_agree(self) -> TokenizerConfig:
        for rate in self.scaling_rates:
            if rate < 2 or rate & (rate - 1):
                raise ValueError(f"scaling rate {rate} is not a power of 2; use 2, 4, 8, …")
        if not self.scaling_rates or len(self.scaling_rates) != len(self.codebook_sizes):
            raise ValueError(
                f"{len(self.scaling_rates)} scaling_rates and {len(self.codebook_sizes)} codebook_sizes; "
                "give one of each per level, finest first"
            )
        return self

    @model_validator(mode="after")
    def _labels_fit(self) -> TokenizerConfig:
        values = self.label_values
        if values and (len(values) < 2 or list(values) != sorted(set(values))):
            raise ValueError(f"label_values {list(values)}: wanted two or more, each once, in rising order")
        if values and (self.architecture != "ladder" or self.resize):
            raise ValueError("label_values are for the architecture ladder, without resize: use it for masks")
        return self


class LossConfig(Settings):
    """What training minimises, besides the commitment."""

    kind: Literal["l1_ssim", "mse", "ce_dice"] = "l1_ssim"
    """`l1_ssim`: L1 + (1 - SSIM). `mse`: mean squared error. `ce_dice`: cross-entropy + soft Dice (masks)."""
    commitment: Annotated[float, Field(ge=0.0)] = 0.25
    """Weight of the commitment, summed over levels."""
    denoise_strength: Annotated[float, Field(ge=0.0)] = 0.0
    """The target is the slice without detail weaker than this many times its noise; 0 keeps the slice."""
    level_dropout: Probability = 0.0
    """Share of training slices decoded from their coarser levels only, the others at the mean code."""


class LoopConfig(Settings):
    """Settings of a training loop: duration, learning rate, validation."""

    optimizer: Literal["adamw", "adam"] = "adamw"
    """AdamW decays weights apart from the gradient, Adam with it."""
    learning_rate: Positive = 1e-3
    """Largest learning rate of the schedule."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """How far back the optimiser's moments reach."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-4
    """Weight decay of the optimiser."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the learning rate goes on after `warmup`: down to almost 0, or constant."""
    warmup: Fraction = 0.02
    """Share of the training over which the learning rate rises from 0."""
    grad_clip_norm: Annotated[float, Field(ge=0.0)] = 1.0
    """Largest gradient norm; 0 does not clip."""
    batch_size: Count = 16
    """Slices per step, of all processes together."""
    epochs: Count = 100
    """Passes over the training slices."""
    max_minutes: Positive | None = None
    """Stop after this much training time, whatever `epochs` says; the schedule follows the clock."""
    validate_every: Count = 1
    """Epochs between validation passes."""
    save_minutes: Positive = 5.0
    """Minutes between the states kept for resuming, besides one at each validation pass."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Stop after this many validation passes without improvement; 0 never stops early."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    """Random seed of the weights, the order of the slices and the augmentation."""


class TrainingConfig(LoopConfig):
    """The training of a tokenizer."""

    loss: LossConfig = LossConfig()
    augment: AugmentConfig | None = AugmentConfig()


def _over(default: Record) -> BeforeValidator:
    """Lay plain settings over a record's, so that a setting left out has that record's value."""

    def lay(given: Any, over: Record = default) -> Any:
        if not isinstance(given, Mapping):
            return given
        whole = over.model_dump()
        for key, value in given.items():
            inner = getattr(over, key, None)
            whole[key] = lay(value, inner) if isinstance(inner, Record) else value
        return whole

    return BeforeValidator(lay)


_FLIP_ONLY = AugmentConfig(rotate_degrees=0, scale=0, shift=0, gamma=0, intensity_scale=0)


class DecoderTrainingConfig(LoopConfig):
    """The training of a generation decoder."""

    learning_rate: Positive = 2e-3
    batch_size: Count = 16
    validate_every: Count = 5
    augment: Annotated[AugmentConfig | None, _over(_FLIP_ONLY)] = _FLIP_ONLY
    """Only the flip: resampling makes slices less sharp."""
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.995
    """Decay per step of the averaged weights, which are validated, saved and used."""


class DecoderConfig(Settings):
    """The generation decoder: a flow that draws what the tokenizer's decoder leaves out."""

    widths: Widths = (32, 64, 96)
    """Channels at half the resolution of the slice, a quarter, and so on."""
    blocks: Count = 1
    """Residual blocks per resolution, on the way down and again on the way up."""
    embedding: Count = 64
    """Channels of the embedding of time."""
    training: DecoderTrainingConfig = DecoderTrainingConfig()


_PRIOR_VIEWS = AugmentConfig(rotate_degrees=4, scale=0.05, gamma=0.1, intensity_scale=0.05)


class PriorTrainingConfig(LoopConfig):
    """The training of a prior."""

    weight_decay: Annotated[float, Field(ge=0.0)] = 0.02
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    batch_size: Count = 64
    validate_every: Count = 5
    patience: Annotated[int, Field(ge=0)] = 10
    num_views: Count = 8
    """Encoded versions of each slice: the slice itself, and copies changed as `augment` says."""
    augment: Annotated[AugmentConfig, _over(_PRIOR_VIEWS)] = _PRIOR_VIEWS
    condition_dropout: Probability = 0.1
    """Fraction of the slices trained without conditions, for classifier-free guidance."""
    mask_dropout: Probability = 0.1
    """Fraction of the slices trained without mask tokens, so that a likelihood needs no mask."""
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.998
    """Decay per step of the averaged weights that are validated, saved and sampled from."""


class PriorConfig(Settings):
    """A prior: its U-Net, and its training."""

    widths: Widths = (64, 128, 192)
    """Channels at the finest grid and each coarser one; the last also for all coarser ones."""
    blocks: Count = 2
    """Residual blocks per grid, on the way down and again on the way up."""
    embedding: Count = 128
    """Channels of the embedding of time, position and class."""
    fresh_noise: Probability = 1.0
    """Share of the noise that a sampling step draws anew: 1 corrects most errors, 0 is the most diverse."""
    training: PriorTrainingConfig = PriorTrainingConfig()


_LABEL_TOKENIZER = TokenizerConfig(
    scaling_rates=(16,), codebook_sizes=(256,), code_dim=8, width=64, residual_layers=1
)
_LABEL_TRAINING = TrainingConfig(
    loss=LossConfig(kind="ce_dice"),
    learning_rate=2e-3,
    batch_size=4,
    validate_every=5,
    augment=AugmentConfig(rotate_degrees=0, scale=0, gamma=0, intensity_scale=0),
)


class LabelsConfig(Settings):
    """The small tokenizer of label masks, and its training."""

    tokenizer: Annotated[TokenizerConfig, _over(_LABEL_TOKENIZER)] = _LABEL_TOKENIZER
    """Where `label_values` are empty, training takes those of the data."""
    training: Annotated[TrainingConfig, _over(_LABEL_TRAINING)] = _LABEL_TRAINING
    """Of `augment`, what moves a mask is used: mirror, rotation, scale and shift."""

    @model_validator(mode="after")
    def _loss_is_of_labels(self) -> LabelsConfig:
        if self.training.loss.kind != "ce_dice":
            raise ValueError(f"training.loss.kind {self.training.loss.kind!r}: wanted 'ce_dice' for masks")
        return self


class Recipe(Settings):
    """A named set of settings: tokenizers of slices and of masks, and generation: a prior, a decoder."""

    name: str = "custom"
    """Of the recipe; it names the default run folder."""
    description: str = ""
    """Purpose of the recipe, for readers."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    training: TrainingConfig = TrainingConfig()
    labels: LabelsConfig = LabelsConfig()
    decoder: DecoderConfig | None = DecoderConfig()
    """Null generates with the tokenizer's own decoder."""
    prior: PriorConfig = PriorConfig()

    @model_validator(mode="after")
    def _loss_fits(self) -> Recipe:
        if (self.training.loss.kind == "ce_dice") != bool(self.tokenizer.label_values):
            raise ValueError(
                "tokenizer.label_values and training.loss.kind 'ce_dice' go together: both for masks, "
                "neither for grayscale slices (whose masks have settings of their own, under labels)"
            )
        return self

    def for_labels(self, values: Sequence[int]) -> Recipe:
        """Return the recipe of the label tokenizer for masks with these values, as its file keeps it."""
        known = self.labels.tokenizer.label_values or tuple(values)
        settings = self.labels.tokenizer.model_dump() | {"label_values": known}
        tokenizer = validate(TokenizerConfig, settings, "labels.tokenizer")
        return self.model_copy(update={"tokenizer": tokenizer, "training": self.labels.training})

    def to_yaml(self) -> str:
        """Return the resolved recipe, every default spelled out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def validate(kind: type[R], settings: Mapping[str, Any], where: str) -> R:
    """Turn plain settings into a record; the error names the key and the nearest known one."""
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(kind, item, where) for item in error.errors())) from error


def _explain(kind: type[Record], item: Any, where: str) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] != "extra_forbidden":
        value = "" if item["type"] == "missing" else f" (found {item['input']!r})" if key else ""
        return f"{where}: {key or 'settings'}: {item['msg']}{value}"
    near = difflib.get_close_matches(key, _known_keys(kind), n=1, cutoff=0.0)
    return f"{where}: unknown setting {key!r}; did you mean {near[0]!r}?"


def _known_keys(kind: type[Record], prefix: str = "") -> list[str]:
    keys = []
    for name, field in kind.model_fields.items():
        keys.append(prefix + name)
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if get_origin(inner) is None and isinstance(inner, type) and issubclass(inner, Record):
                keys += _known_keys(inner, f"{prefix}{name}.")
    return keys
