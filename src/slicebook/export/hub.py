"""Write a model as a hub folder, and read it again with huggingface_hub, offline or from a hub.

    HubModel.from_pretrained("folder").reconstruct("scan.nii.gz")

The folder holds the model file unchanged, so `slicebook.load` reads it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicebook.api.model import Model, load
from slicebook.environment import Provenance
from slicebook.errors import CheckpointError, ConfigError
from slicebook.io.atomic import refuse_full, replacing_folder, write_bytes, write_text
from slicebook.models.checkpoint import MODEL_NAME, LoadedPrior, LoadedTokenizer, tokenizer_of
from slicebook.starters import is_starter
from slicebook.text import to_json
from slicebook.version import __version__

try:
    from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, hf_hub_download
except ImportError as error:
    raise ConfigError("huggingface_hub: not installed; run: pip install 'slicebook[export]'") from error

CONFIG_NAME, CARD_NAME = "config.json", "README.md"


@dataclass(frozen=True)
class HubSummary:
    """What `export_hub` wrote."""

    out: Path
    kind: str
    license: str
    weights_sha256: str


class HubModel(Model, ModelHubMixin):
    """A model that huggingface_hub saves, loads and uploads.

    Its methods `save_pretrained`, `from_pretrained` and `push_to_hub` are those of `ModelHubMixin`.

    Args:
        tokenizer: As of `Model`.
        prior: As of `Model`.
        weights_license: License of the weights, for the card.
    """

    def __init__(
        self, tokenizer: LoadedTokenizer, prior: LoadedPrior | None = None, weights_license: str | None = None
    ) -> None:
        super().__init__(tokenizer, prior)
        sha256 = self.info.weights_sha256
        self.weights_license = weights_license or ("apache-2.0" if is_starter(sha256) else "unknown")

    @classmethod
    def of(cls, model: Model, weights_license: str | None = None) -> HubModel:
        """Return a loaded model with the methods of huggingface_hub."""
        return cls(model.tokenizer, model.prior, weights_license)

    def generate_model_card(self, *_: Any, **__: Any) -> ModelCard:
        """Return the card: a YAML head, how to use the model, and what it was trained on."""
        task = "unconditional-image-generation" if self.can_generate else "image-feature-extraction"
        head = ModelCardData(
            library_name="slicebook",
            license=self.weights_license,
            pipeline_tag=task,
            tags=[
                "slicebook",
                "medical-imaging",
                "vq-vae",
                "tokenizer",
                *(["generator"] if self.prior else []),
            ],
        )
        return ModelCard(f"---\n{head.to_yaml()}\n---\n\n{_card_text(self)}")

    def _save_pretrained(self, save_directory: Path) -> None:
        write_bytes(save_directory / MODEL_NAME, self.path.read_bytes())
        config = {
            "library_name": "slicebook",
            "slicebook_version": __version__,
            "kind": self.kind,
            "weights_license": self.weights_license,
            "weights_sha256": self.info.weights_sha256,
            "recipe": self.recipe.model_dump(mode="json"),
        }
        write_text(save_directory / CONFIG_NAME, to_json(config) + "\n")

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        device: str = "auto",
        weights_license: str | None = None,
        **_: Any,
    ) -> HubModel:
        path = Path(model_id) / MODEL_NAME
        if not Path(model_id).is_dir():
            path = Path(
                hf_hub_download(
                    repo_id=model_id,
                    filename=MODEL_NAME,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    token=token,
                    local_files_only=local_files_only,
                )
            )
        return cls.of(load(path, device=device), weights_license)


def export_hub(model: Model, out: str | Path, *, weights_license: str | None = None) -> HubSummary:
    """Write a hub folder: the model file, `config.json`, and a card with a YAML head (`README.md`).

    Nothing is uploaded. `HubModel.from_pretrained(out).push_to_hub("owner/name")` does that.

    Args:
        model: The model.
        out: New folder.
        weights_license: License of the weights, as the hub names it; by default unknown, and apache-2.0 for a
            starter.

    Raises:
        CheckpointError: The tokenizer of the run is not that of its prior, so that one file cannot hold both.
        DataError: `out` is not empty, or cannot be written.
    """
    refuse_full(out)
    hub_model = HubModel.of(model, weights_license)
    if model.prior and tokenizer_of(model.prior).codebook_hash != model.tokenizer.codebook_hash:
        raise CheckpointError(
            f"{model.path}: its prior was trained with another tokenizer than the one in its run folder; "
            "train the prior again, or export the file of the prior alone"
        )
    with replacing_folder(out) as partial:
        hub_model.save_pretrained(partial)
    return HubSummary(Path(out), model.kind, hub_model.weights_license, model.info.weights_sha256)


_USE = """```python
from slicebook.export.hub import HubModel

model = HubModel.from_pretrained("FOLDER or OWNER/NAME")
{lines}
```"""
_TOKENIZER = 'tokens = model.encode("scan.nii.gz")\ncopy = model.decode(tokens)'
_GENERATOR = f"{_TOKENIZER}\nsamples = model.generate(4, seed=0)"


def _card_text(model: HubModel) -> str:
    """Return the text of the card, of facts in the model file alone."""
    what = "A tokenizer of 2D medical image slices"
    if model.prior:
        what = "A tokenizer and generator of 2D medical image slices"
    trainings: dict[str, Provenance | None] = {"tokenizer": model.tokenizer.info.provenance}
    if model.prior:
        trainings["prior"] = model.prior.info.provenance
        trainings["generation decoder"] = model.prior.info.decoder_provenance
    rows = [
        f"| {name} | {made.train_patients} | {made.train_slices} | {made.epoch} | {made.commit or '–'} |"
        for name, made in trainings.items()
        if made is not None
    ]
    lines = [
        f"# {what}",
        "",
        f"Recipe `{model.recipe.name}` of Slicebook {__version__}, {model.levels} levels of tokens.",
        "",
        _USE.format(lines=_GENERATOR if model.prior else _TOKENIZER),
        "",
        "## Training",
        "",
        "| model | patients | slices | epochs | commit of Slicebook |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "Whoever publishes this model adds: who trained it, a contact, the legal basis for using the data.",
        "",
        "## Limits",
        "",
        "Research software, not a medical device. A reconstruction can be wrong and look plausible. Tokens",
        "can be decoded to an image of the patient. A generated slice may copy a training slice: evaluate",
        "the model with `slicebook evaluate --parts memorization` before sharing samples or weights.",
    ]
    return "\n".join(lines) + "\n"
