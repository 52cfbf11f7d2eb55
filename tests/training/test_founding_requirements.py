"""The founding document, requirement by requirement: the recipe `comp3710` and the commands around it.

The numbered lines are those of the project's founding requirements. A full training takes hours; here the
same recipe runs for one epoch, its widths made small where only the flow is shown.
"""

import csv
import itertools
import json
import re

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.training import prepared_folder, train

from slicebook.cli import main
from slicebook.data.dataset import PreparedData
from slicebook.data.loader import SliceBatches
from slicebook.models.checkpoint import load_tokenizer
from slicebook.models.losses import loss
from slicebook.models.quantizer import nearest_code
from slicebook.models.tokenizer import Reconstruction, Tokenizer
from slicebook.recipes import load_recipe

# The document asks for four workers, whatever the machine.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")

SMALL = (
    *("tokenizer.width=16", "tokenizer.code_dim=8", "tokenizer.codebook_sizes=[4, 4, 4]"),
    *("tokenizer.residual_width=8", "tokenizer.resize=[64, 64]", "training.epochs=2"),
)
RECIPE = load_recipe("comp3710")


@pytest.fixture(scope="module")
def founding():
    """The tokenizer of the recipe, every number of it."""
    torch.manual_seed(42)
    return Tokenizer(RECIPE.tokenizer).eval()


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A folder with phantom slices in HipMRI's layout, and the same prepared."""
    folder = tmp_path_factory.mktemp("founding")
    make = f"phantom -o {folder}/raw --patients 2 1 1 --slices 10 --size 32 64"
    assert main.main(make.split()) == 0
    assert main.main(["prepare", f"{folder}/raw", "-o", f"{folder}/prepared"]) == 0
    return folder


@pytest.fixture(scope="module")
def run(house):
    line = f"train tokenizer {house}/prepared --recipe comp3710 --out {house}/run --device cpu --workers 4"
    assert main.main([*line.split(), "--precision", "32-true", *SMALL]) == 0
    return house / "run"


def test_1_the_model_is_scored_on_patients_it_never_saw_by_an_ssim_with_a_name(house, run, capsys):
    line = f"evaluate {run} {house}/prepared --out {house}/report --device cpu --json"
    assert main.main(line.split()) == 0
    report = json.loads((house / "report" / "report.json").read_text())
    assert report["split"] == "test"
    assert report["patients"] == 1
    assert 0 < report["reconstruction"]["scores"]["ssim_whole"]["mean_of_patients"] < 1
    opened = PreparedData.open(house / "prepared")
    assert not {*opened.split("train").patients} & {*opened.split("test").patients}


def test_2_slices_of_the_layout_become_tensors_in_range_of_256_by_256(house, founding):
    opened = PreparedData.open(house / "prepared")
    assert opened.info.layout == "hipmri2d"
    assert {(record.rows, record.columns) for record in opened.records} == {(32, 64), (36, 64)}
    image = opened.split("train")[0]
    assert image.dtype == torch.float32
    assert -1 <= image.min() < image.max() <= 1
    seen = []
    founding.network.encoders[0].register_forward_pre_hook(lambda _module, given: seen.append(given[0].shape))
    with torch.no_grad():
        founding(image[None])
    assert seen == [(1, 1, 256, 256)]


def test_2_batches_are_of_32_shuffled_and_shown_in_a_figure(house, run):
    assert RECIPE.training.batch_size == 32
    slices = PreparedData.open(house / "prepared").split("train")
    batches = SliceBatches(slices, 4, shuffle=True, seed=RECIPE.training.seed)
    first = [index for batch in batches for index in batch.indices.tolist()]
    batches.set_epoch(1)
    second = [index for batch in batches for index in batch.indices.tolist()]
    assert first != second
    assert sorted(first) == sorted(second) == list(range(len(slices)))
    assert (run / "batch.png").read_bytes()[:4] == b"\x89PNG"


def test_3_the_encoder_has_the_numbers_of_the_document(founding):
    settings = RECIPE.tokenizer
    assert (settings.architecture, settings.width) == ("vqvae2", 128)
    assert (settings.residual_width, settings.residual_layers) == (32, 2)
    assert settings.scaling_rates == (8, 4, 2)
    with torch.no_grad():
        features = founding.network.features(torch.zeros(1, 1, 256, 256))
    assert [tuple(map_.shape) for map_ in features] == [(1, 128, 32, 32), (1, 128, 8, 8), (1, 128, 4, 4)]


def test_3_a_downscaling_that_is_no_power_of_2_is_a_clear_error(house, capsys):
    line = f"train tokenizer {house}/prepared --recipe comp3710 --out {house}/never"
    assert main.main([*line.split(), "tokenizer.scaling_rates=[8, 3, 2]"]) == 1
    assert "scaling rate 3 is not a power of 2" in capsys.readouterr().err


def test_4_the_quantiser_has_the_numbers_of_the_document(founding):
    assert RECIPE.tokenizer.codebook_sizes == (1024, 1024, 1024)
    assert RECIPE.tokenizer.code_dim == 128
    quantizer = RECIPE.tokenizer.quantizer
    assert (quantizer.decay, quantizer.epsilon) == (0.99, 1e-5)
    for level in range(3):
        assert founding.codebook(level).codes.shape == (1024, 128)
        assert founding.network.to_latents[level].kernel_size == (1, 1)


def test_4_codes_are_found_by_squared_distance_looked_up_and_passed_straight_through(founding):
    codebook = founding.codebook(2)
    vectors = torch.randn(6, 128, requires_grad=True)
    quantized = codebook(vectors)
    assert quantized.tokens.equal(torch.cdist(vectors, codebook.codes).argmin(1))
    assert quantized.tokens.equal(nearest_code(vectors, codebook.codes))
    codes = codebook.dequantize(quantized.tokens)
    torch.testing.assert_close(quantized.vectors, codes)
    torch.testing.assert_close(quantized.commitment, (vectors - codes).square().mean())
    quantized.vectors.sum().backward()
    assert vectors.grad.eq(1).all()


def test_5_and_6_all_codes_go_through_the_one_decoder_to_a_slice_of_native_size(founding):
    seen = []
    hook = founding.network.decoder.register_forward_hook(
        lambda _module, given, drawn: seen.extend([given[0].shape, drawn.shape])
    )
    with torch.no_grad():
        output = founding(torch.zeros(1, 1, 256, 128))
    hook.remove()
    assert seen == [(1, 3 * 128, 32, 32), (1, 1, 256, 256)]
    assert output.images.shape == (1, 1, 256, 128)
    assert [tuple(grid.shape) for grid in output.tokens] == [(1, 32, 32), (1, 8, 8), (1, 4, 4)]


def test_7_the_training_has_the_numbers_of_the_document():
    training = RECIPE.training
    assert (training.epochs, training.batch_size) == (38, 32)
    assert (training.optimizer, training.learning_rate) == ("adam", 1e-4)
    assert (training.schedule, training.warmup, training.weight_decay) == ("constant", 0, 0)
    assert (training.grad_clip_norm, training.augment, training.loss.level_dropout) == (0, None, 0)
    drawn, images = torch.full((1, 1, 16, 16), 0.5), torch.zeros(1, 1, 16, 16)
    total = loss(Reconstruction(drawn, (), torch.tensor(0.75)), images, training.loss).total
    assert total == 0.25 + 0.75  # mean squared error, and the quantisers' differences with weight 1


def test_7_every_epoch_trains_validates_and_prints_loss_and_ssim_of_both(house, run, tmp_path, capsys):
    line = f"train tokenizer {house}/prepared --recipe comp3710 --out {tmp_path}/run --device cpu"
    assert main.main([*line.split(), "--precision", "32-true", *SMALL]) == 0
    lines = [text for text in capsys.readouterr().err.splitlines() if text.startswith("epoch")]
    number = r"-?\d+\.\d{4}"
    pattern = rf"epoch \d+  train loss {number} ssim {number}  validation loss {number} ssim {number}  .*"
    assert len(lines) == 2
    assert [text for text in lines if not re.fullmatch(pattern, text)] == []
    assert load_tokenizer(run).info.recipe.tokenizer.architecture == "vqvae2"
    assert (run / "curves.png").read_bytes()[:4] == b"\x89PNG"
    with (run / "metrics.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2


def test_8_prediction_writes_pairs_with_an_ssim_each_and_their_mean(run, tmp_path, capsys):
    draw = np.random.default_rng(0).gamma(2, 100, (64, 32, 3)).astype(np.float32)
    nib.save(nib.Nifti1Image(draw, np.diag([1.0, 1, 3, 1])), tmp_path / "volume.nii.gz")
    out = tmp_path / "made" / "if" / "missing"
    assert (
        main.main(
            ["reconstruct", str(run), str(tmp_path / "volume.nii.gz"), "-o", str(out), "--device", "cpu"]
        )
        == 0
    )
    assert len(list((out / "volume").glob("*.png"))) == 3
    with (out / "volume.csv").open(newline="") as file:
        each = [float(row["ssim_whole"]) for row in csv.DictReader(file)]
    assert len(each) == 3
    assert f"{np.mean(each):.4g}" in capsys.readouterr().out


def test_8_asked_for_before_any_training_it_says_so_plainly(tmp_path, capsys):
    assert main.main(["reconstruct", str(tmp_path), "volume.nii.gz", "-o", str(tmp_path / "out")]) == 1
    errors = capsys.readouterr().err
    assert "holds no trained model yet; train one first: slicebook train tokenizer DATA" in errors
    assert list(tmp_path.iterdir()) == []


def test_9_the_seed_is_42_and_fixes_every_weight(tmp_path):
    assert RECIPE.training.seed == 42
    data = prepared_folder(tmp_path / "data", shapes=((64, 32),))
    for name in ("one", "two"):
        train(data, load_recipe("comp3710", SMALL), tmp_path / name)
        torch.rand(3)
    train(data, load_recipe("comp3710", [*SMALL, "training.seed=7"]), tmp_path / "seven")
    hashes = [load_tokenizer(tmp_path / name).codebook_hash for name in ("one", "two", "seven")]
    assert [first == second for first, second in itertools.pairwise(hashes)] == [True, False]
