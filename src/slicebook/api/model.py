"""A loaded model, and what it does with volumes in memory.

model = slicebook.load("runs/generate")
copy = model.reconstruct("scan.nii.gz")
samples = model.generate(4, seed=0)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from slicebook.api.inputs import ImageInput, Progress, Spacing, name_of, to_labels, to_region, to_stack
from slicebook.config import Recipe
from slicebook.devices import choose_device
from slicebook.errors import CheckpointError, ConfigError
from slicebook.inference import anomaly as anomalies
from slicebook.inference.from_masks import GivenMask, MaskRequest, check_mask_request, draw_for_mask
from slicebook.inference.generate import GenerationTask, sample_volumes
from slicebook.inference.inpaint import InpaintTask, inpaint_once, positions, region_of
from slicebook.inference.reconstruct import DESCRIPTION as RECONSTRUCTION
from slicebook.inference.reconstruct import decode_tokens, encode_stack, reconstruct_slices
from slicebook.inference.synthesis import check_class, check_seeds, choose_sampling_precision
from slicebook.io.tokens import TokenFile
from slicebook.io.volume import Plane, Volume
from slicebook.models.checkpoint import (
    LoadedPrior,
    LoadedTokenizer,
    ModelInfo,
    PriorInfo,
    find_model,
    has_prior,
    load_prior,
    load_tokenizer,
    tokenizer_of,
)
from slicebook.models.sampling import SamplingSettings


def load(path: str | Path, *, device: str = "auto") -> Model:
    """Load a model for use.

    >>> import slicebook
    >>> slicebook.load("starter:compact", device="cpu").kind
    'tokenizer'

    Args:
        path: A model file, the folder of a run or of a demo, or the name of a starter, such as
            `starter:compact` (`slicebook models` lists them). A folder that holds a prior gives a model that
            also generates.
        device: auto, cpu, cuda or mps; auto takes a GPU if there is one.

    Raises:
        CheckpointError: Nothing trained there yet, a damaged file, or a part of a generator that does not
            work alone: a mask tokenizer or a generation decoder.
        ConfigError: The device is not known, or not in this machine.
    """
    chosen = choose_device(device)
    prior = load_prior(path, chosen) if has_prior(Path(path)) else None
    file = find_model(Path(path))
    alone = prior is not None and prior.path == file
    tokenizer = tokenizer_of(prior) if prior and alone else load_tokenizer(path, chosen)
    return Model(tokenizer, prior)


@dataclass(frozen=True, eq=False)
class GeneratedSample:
    """One generated sample.

    Attributes:
        seed: Its seed; with the same model and settings it gives the same sample.
        position: Requested position in the volume, from 0 to 1; None where none was requested.
        class_name: Requested class; None where none was requested.
        image: The image. Its description says that it is synthetic.
        mask: The label mask (uint8): the generated one, or the one that was given. None if the model does not
            model masks.
    """

    seed: int
    position: float | None
    class_name: str | None
    image: Volume
    mask: Volume | None


class Model:
    """A trained model: a tokenizer and, in a generator, a prior with its generation decoder.

    Made by `load`. Methods that need a prior raise `CheckpointError` if there is none (`can_generate`).

    Attributes:
        tokenizer: The tokenizer with its metadata.
        prior: The prior with its tokenizers, its decoder and its metadata; None without one.
    """

    def __init__(self, tokenizer: LoadedTokenizer, prior: LoadedPrior | None = None) -> None:
        self.tokenizer, self.prior = tokenizer, prior

    def __repr__(self) -> str:
        return f"<slicebook.Model: {self.kind} from {self.path} on {self.device}>"

    @property
    def kind(self) -> str:
        """`tokenizer` or `generator`."""
        return "generator" if self.can_generate else "tokenizer"

    @property
    def path(self) -> Path:
        """The file that the model was read from: of a generator, that of its prior."""
        return self.prior.path if self.prior else self.tokenizer.path

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.tokenizer.tokenizer.parameters()).device

    @property
    def recipe(self) -> Recipe:
        """The settings of the training."""
        return self.info.recipe

    @property
    def info(self) -> ModelInfo | PriorInfo:
        """Metadata of the file at `path`: settings, provenance and hash."""
        return self.prior.info if self.prior else self.tokenizer.info

    @property
    def levels(self) -> int:
        """Number of token grids of a slice."""
        return self.tokenizer.tokenizer.levels

    @property
    def can_generate(self) -> bool:
        """Whether there is a prior: for `generate`, `inpaint` and `anomaly`."""
        return self.prior is not None

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of the slices that the prior was trained on, the most frequent first."""
        return tuple((kind.rows, kind.columns) for kind in self.prior.info.slices) if self.prior else ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes that the prior was trained with."""
        return self.prior.info.classes if self.prior else ()

    @property
    def label_values(self) -> tuple[int, ...]:
        """Values of the label masks that the prior models; empty if it models none."""
        masks = self.prior.info.masks if self.prior else None
        return masks.tokenizer.label_values if masks else ()

    def reconstruct(
        self,
        image: ImageInput,
        *,
        spacing: Spacing | None = None,
        plane: Plane | None = None,
        refine: int = 0,
    ) -> Volume:
        """Encode and decode a volume; the result has its geometry and intensity scale.

        Args:
            image: A path of one volume, an array (slices, rows, columns) or (rows, columns), an image of
                nibabel, or a `Volume`. An array is taken as axial slices in radiological convention.
            spacing: Of an array: distance between slices, rows and columns in mm. Default: 1 mm.
            plane: Plane of the slices; the plane of acquisition by default. An array has its own.
            refine: Steps of the search for better tokens, as the option of `slicebook reconstruct`.

        Raises:
            ConfigError: `refine` is negative.
            DataError: The image is not one readable volume of finite real numbers.
            ShapeError: An array has another number of dimensions.
        """
        stack = to_stack(image, spacing, plane)
        return stack.volume_of(reconstruct_slices(self.tokenizer, stack.slices, refine), RECONSTRUCTION)

    def encode(
        self,
        image: ImageInput,
        *,
        spacing: Spacing | None = None,
        plane: Plane | None = None,
        refine: int = 0,
    ) -> TokenFile:
        """Encode a volume as tokens, with its geometry.

        Args:
            image: As for `reconstruct`.
            spacing: As for `reconstruct`.
            plane: As for `reconstruct`.
            refine: As for `reconstruct`.

        Returns:
            The token grids (`tokens`: one array per level, finest first) and all that decoding needs except
            the model. Its `write` makes the file of `slicebook encode`.

        Raises:
            ConfigError: As for `reconstruct`.
            DataError: As for `reconstruct`.
            ShapeError: As for `reconstruct`.
        """
        return encode_stack(self.tokenizer, to_stack(image, spacing, plane), refine)

    def decode(self, tokens: TokenFile | str | Path, *, levels: int | None = None) -> Volume:
        """Decode tokens to a volume with the geometry and intensity scale of the one that was encoded.

        Args:
            tokens: What `encode` returned, or the path of a token file.
            levels: Use only this many of the coarsest levels; the finer ones are set to their mean code.

        Raises:
            CheckpointError: Another model wrote the tokens.
            DataError: The token file cannot be read.
            ShapeError: The tokens do not fit the size of the slices, or there are not as many levels.
        """
        if isinstance(tokens, TokenFile):
            return decode_tokens(self.tokenizer, tokens, levels=levels)
        return decode_tokens(self.tokenizer, TokenFile.read(tokens), str(tokens), levels=levels)

    def generate(
        self,
        n: int = 1,
        seed: int = 0,
        *,
        mask: ImageInput | None = None,
        position: float | None = None,
        class_name: str | None = None,
        conditional: bool = True,
        guidance: float = 0.0,
        steps: int = 16,
        decoder_steps: int = 8,
        size: tuple[int, int] | None = None,
        spacing: Spacing | None = None,
        plane: Plane | None = None,
        precision: str = "32-true",
        progress: Progress | None = None,
    ) -> list[GeneratedSample]:
        """Generate synthetic samples: single slices, or with `mask` volumes whose labels are those of a mask.

        Sample i has seed `seed + i`, and does not depend on the other samples. A sample may be a copy of a
        training slice: see `slicebook evaluate` for the memorization audit.

        Args:
            n: Number of samples.
            seed: Seed of the first sample.
            mask: Label mask, as the image of `reconstruct`: a sample has one slice for each of its slices, in
                its geometry. Without it, the mask is generated too, if the model has masks.
            position: Position in the volume, from 0 to 1. Default: random per sample; with a mask, that of
                the slice in the mask.
            class_name: One of `classes`; unknown by default.
            conditional: Whether the prior is given any conditions.
            guidance: Weight of classifier-free guidance towards position and class; 0 turns it off.
            steps: Evaluations of the prior per slice, from noise to codes.
            decoder_steps: Evaluations of the generation decoder per slice.
            size: Rows and columns, one of `sizes`; the most frequent by default. A mask has its own.
            spacing: Of a mask that is an array, in mm.
            plane: Plane of the slices of a mask.
            precision: 32-true (float32), bf16-mixed, 16-mixed (cuda only) or auto.
            progress: Called with the number of samples done and of all samples.

        Raises:
            CheckpointError: The model holds no prior.
            ConfigError: A class or size that the prior was not trained on, a setting out of range, or a mask
                for a model without masks.
            DataError: A mask has labels that the prior does not know.
        """
        loaded, settings = self._generator(), SamplingSettings(steps, decoder_steps, guidance)
        if mask is not None:
            if size is not None or not conditional:
                raise ConfigError("mask: goes without size and conditional=False")
            request = MaskRequest(n, seed, position, class_name, plane, settings)
            given = to_labels(mask, spacing, plane), name_of(mask, "mask")
            return _generate_for_mask(loaded, *given, request, precision, progress)
        task = GenerationTask.of(
            loaded,
            count=n,
            seed=seed,
            position=position,
            group=class_name,
            conditional=conditional,
            size=size,
            settings=settings,
            precision=precision,
        )
        samples: list[GeneratedSample] = []
        for group in task.groups():
            for index, row in enumerate(group.samples):
                image, drawn = sample_volumes(group.slices, index, task.kind)
                samples.append(GeneratedSample(row.seed, row.position, class_name, image, drawn))
            if progress:
                progress(len(samples), n)
        return samples

    def inpaint(
        self,
        image: ImageInput,
        mask: ImageInput,
        n: int = 1,
        seed: int = 0,
        *,
        guidance: float = 0.0,
        steps: int = 16,
        decoder_steps: int = 8,
        spacing: Spacing | None = None,
        plane: Plane | None = None,
        precision: str = "32-true",
        progress: Progress | None = None,
    ) -> list[Volume]:
        """Generate what is inside a region of a volume. Every voxel outside keeps its exact value.

        Args:
            image: As for `reconstruct`.
            mask: Where it is not 0, the image is replaced. A path, an image of nibabel or a `Volume` has the
                shape and affine of the image; an array has the shape of the image's slices as displayed.
            n: Number of inpainted volumes; volume i has seed `seed + i`.
            seed: Seed of the first volume.
            guidance: As for `generate`.
            steps: As for `generate`.
            decoder_steps: As for `generate`.
            spacing: Of an image that is an array, in mm.
            plane: As for `reconstruct`.
            precision: As for `generate`.
            progress: Called with the number of slices done and of all slices of a volume.

        Raises:
            CheckpointError: The model holds no prior.
            ConfigError: A setting out of range.
            DataError: The mask has another shape or affine, or is empty.
        """
        loaded, settings = self._generator(), SamplingSettings(steps, decoder_steps, guidance)
        if n < 1:
            raise ConfigError(f"{n} samples: wanted 1 or more")
        check_seeds(seed, n)
        stack = to_stack(image, spacing, plane)
        names = name_of(mask, "mask"), name_of(image, "the image")
        region = region_of(to_region(mask, stack), stack, *names)
        task = InpaintTask.of(loaded, stack, region, choose_sampling_precision(loaded, precision))
        return [
            task.volume_of(inpaint_once(loaded, task, task.seeds(seed + number), settings, progress))
            for number in range(n)
        ]

    def anomaly(
        self,
        image: ImageInput,
        *,
        draws: int = 4,
        seed: int = 0,
        spacing: Spacing | None = None,
        plane: Plane | None = None,
        progress: Progress | None = None,
    ) -> Volume:
        """Map how unlikely each part of a volume is under the prior, in nats per pixel (an upper bound).

        Args:
            image: As for `reconstruct`.
            draws: Draws of the noise to average over.
            seed: Seed of the noise.
            spacing: Of an array, in mm.
            plane: As for `reconstruct`.
            progress: Called with the number of slices done and of all slices.

        Raises:
            CheckpointError: The model holds no prior.
            DataError: As for `reconstruct`.
        """
        loaded, stack = self._generator(), to_stack(image, spacing, plane)
        conditions = positions(list(range(len(stack.slices))), len(stack.slices))
        slices = torch.from_numpy(stack.slices)[:, None]
        scores = anomalies.anomaly_scores(loaded, slices, conditions, draws, seed, progress)
        return stack.volume_of_values(scores.maps.numpy(), anomalies.DESCRIPTION)

    def _generator(self) -> LoadedPrior:
        if self.prior is None:
            raise CheckpointError(
                f"{self.path}: is a tokenizer without a prior, so it cannot generate; train one first: "
                f"slicebook train generator {self.path.parent}"
            )
        return self.prior


def _generate_for_mask(
    loaded: LoadedPrior,
    labels: Volume,
    where: str,
    request: MaskRequest,
    precision: str,
    progress: Progress | None,
) -> list[GeneratedSample]:
    """Return samples for one mask."""
    check_mask_request(request)
    check_class(loaded, request.group)
    given = GivenMask.of(labels, loaded, request.plane, where)
    precision = choose_sampling_precision(loaded, precision)
    samples: list[GeneratedSample] = []
    for seed in range(request.seed, request.seed + request.count):
        image, mask = draw_for_mask(loaded, given, seed, request, precision)
        samples.append(GeneratedSample(seed, request.position, request.group, image, mask))
        if progress:
            progress(len(samples), request.count)
    return samples
