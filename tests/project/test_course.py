"""The script of the course trains its models; the page has a picture and a table of each group."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "course.md"


@pytest.fixture(scope="module")
def course():
    """The script, imported as Python does when it runs one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        import course

        yield course


@pytest.fixture(scope="module")
def made(course, tmp_path_factory):
    """A folder of results and pictures, after two steps of two small groups."""
    folder = tmp_path_factory.mktemp("course")
    with pytest.MonkeyPatch.context() as patch:
        few = {name: course.GROUPS[name][-2:] for name in ("codebook", "noise")}
        patch.setattr(course, "GROUPS", few)
        patch.setattr(course, "STARTED", 16)
        patch.setattr(course, "SMALLER", (*course.SMALLER, "tokenizer.codebook_sizes=[16,16,16]"))
        words = ["--steps", "2", "--patients", "2", "1", "2", "--results", folder, "--images", folder]
        assert course.main([*map(str, words)]) == 0
    return folder


def test_each_variant_changes_the_baseline_and_nothing_is_trained_twice(course):
    variants = [variant for group in course.GROUPS.values() for variant in group]
    others = [variant for variant in variants if variant.name != "base"]
    assert len({variant.name for variant in others}) == len(others)
    made_of = {(variant.settings, variant.gradient, variant.noise) for variant in others}
    assert len(made_of) == len(others)
    assert ((), False, 0.0) not in made_of


def test_the_script_writes_scores_and_a_picture_of_each_group(made):
    result = json.loads((made / "course.json").read_text(encoding="utf-8"))
    assert set(result["groups"]) == {"codebook", "noise"}
    assert set(result["models"]) == {"gradient", "gradient-random", "base", "noise"}
    for model in result["models"].values():
        assert -1 <= model["scores"]["ssim_whole"]["mean_of_patients"] <= 1
        assert [len(model[name]) for name in ("codes", "grids", "codebook_sizes")] == [3, 3, 3]
    assert set(result["models"]["noise"]) - set(result["models"]["base"]) == {"scores_clean"}
    for name in ("course-codebook", "course-noise", "course-decoded", "course-tokens"):
        with Image.open(made / f"{name}.png") as picture:
            assert picture.width > picture.height > 50


def test_groups_of_an_earlier_run_are_kept_if_it_ran_in_the_same_way(course, made):
    path = made / "course.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    conditions = {name: result[name] for name in ("steps", "batch", "size", "data")}
    assert course.earlier(path, conditions) == {"groups": result["groups"], "models": result["models"]}
    assert course.earlier(path, conditions | {"steps": 3}) == {"groups": {}, "models": {}}
    assert course.earlier(made / "none.json", conditions) == {"groups": {}, "models": {}}


def test_codes_learned_by_gradient_move_and_keep_their_k_means(course):
    vectors = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    quantizer = course.GradientQuantizer(8, 4).train()
    quantizer.init_from_kmeans(vectors, torch.Generator().manual_seed(0))
    before = quantizer.codes.detach().clone()
    moved = vectors + 0.5  # k-means left no gradient towards its own vectors
    quantized = quantizer(moved)
    quantized.commitment.backward()
    assert torch.equal(quantizer.codes, before)  # no moving average
    with torch.no_grad():
        quantizer.embedding -= 0.1 * quantizer.embedding.grad
    assert quantizer(moved).commitment < quantized.commitment


def test_the_page_shows_every_group_and_picture_of_the_script(course):
    text = PAGE.read_text(encoding="utf-8")
    shown = set(re.findall(r"\]\(images/course-([\w-]+)\.png\)", text))
    assert shown == {*course.GROUPS, "decoded", "tokens"}
    assert set(re.findall(r"<!-- table: course-([\w-]+) -->", text)) == set(course.GROUPS)
    result = json.loads((ROOT / "benchmarks" / "results" / "course.json").read_text(encoding="utf-8"))
    for group, variants in course.GROUPS.items():
        assert result["groups"][group] == {variant.name: variant.title for variant in variants}
        for variant in variants:
            assert result["models"][variant.name]["settings"] == list(variant.settings)
