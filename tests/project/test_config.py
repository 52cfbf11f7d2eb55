"""Settings: strict reading, overrides, and messages that name the key and the nearest known one."""

import re
from importlib import resources

import pytest
import yaml
from pydantic import ValidationError

from slicebook.config import Recipe, TokenizerConfig, validate
from slicebook.errors import ConfigError
from slicebook.recipes import load_recipe, recipe_names


def written(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def test_the_recipes_are_these():
    assert recipe_names() == ("comp3710", "compact", "demo", "detail", "generate")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_reads_carries_its_name_and_says_what_it_is_for(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description


def test_a_resolved_recipe_spells_out_every_default_and_reads_back_the_same(tmp_path):
    recipe = load_recipe("compact", ["training.learning_rate=3e-4"])
    text = recipe.to_yaml()
    assert yaml.safe_load(text)["training"]["augment"]["gamma"] == 0.15
    assert load_recipe(written(tmp_path, text)) == recipe


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "'1e-4'"])
def test_a_number_that_yaml_takes_for_text_is_a_number(text, tmp_path):
    path = written(tmp_path, f"training: {{learning_rate: {text}}}")
    assert load_recipe(path).training.learning_rate == 1e-4
    assert load_recipe("demo", [f"training.learning_rate={text}"]).training.learning_rate == 1e-4


def test_a_setting_given_on_the_line_goes_over_the_recipes_and_leaves_the_rest():
    recipe = load_recipe(
        "comp3710", ["tokenizer.codebook_sizes=[64, 32, 16]", "training.loss.commitment=0.5"]
    )
    assert recipe.tokenizer.codebook_sizes == (64, 32, 16)
    assert recipe.training.loss.commitment == 0.5
    assert recipe.training.loss.kind == "mse"


def test_a_group_that_is_off_can_be_turned_off_and_on():
    assert load_recipe("compact", ["training.augment=null"]).training.augment is None
    augment = load_recipe("comp3710", ["training.augment.flip_probability=0.25"]).training.augment
    assert augment is not None
    assert (augment.flip_probability, augment.rotate_degrees) == (0.25, 5.0)


@pytest.mark.fault("mistyped key", "refused with the nearest known key")
@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("training.epoch", "training.epochs"),
        ("tokenizer.quantiser.decay", "tokenizer.quantizer"),
        ("tokenizer.scaling_rate", "tokenizer.scaling_rates"),
        ("training.augment.flip_probabilty", "training.augment.flip_probability"),
        ("tokenizer.quantizer.epsilom", "tokenizer.quantizer.epsilon"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(key, nearest):
    with pytest.raises(ConfigError, match=f"did you mean '{nearest}'"):
        load_recipe("demo", [f"{key}=1"])


@pytest.mark.fault("value out of range", "refused by name")
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("tokenizer.scaling_rates=[8, 6, 2]", "scaling rate 6 is not a power of 2"),
        ("tokenizer.scaling_rates=[8, 1, 2]", "scaling rate 1 is not a power of 2"),
        ("tokenizer.scaling_rates=[8, 4]", "2 scaling_rates and 3 codebook_sizes"),
        ("tokenizer.codebook_sizes=[0, 4, 4]", r"codebook_sizes\.0.*greater than or equal to 1"),
        ("tokenizer.codebook_sizes=[65537, 4, 4]", r"codebook_sizes\.0.*less than or equal to 65536"),
        ("tokenizer.width=8", "tokenizer.width"),
        ("training.learning_rate=-1", r"training\.learning_rate: .*greater than 0 \(found -1\)"),
        ("training.learning_rate=fast", r"training\.learning_rate: .*number.*'fast'"),
        ("training.batch_size=1.5", "training.batch_size"),
        ("training.optimizer=sgd", r"training\.optimizer: .*'adamw' or 'adam'"),
        ("training=3", "training"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(setting, said):
    with pytest.raises(ConfigError, match=said) as caught:
        load_recipe("demo", [setting])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("training: {epochs: 3}\ntraining: {epochs: 4}", "'training' stands twice"),
        ("training: {epochs: 3, epochs: 4}", "'epochs' stands twice"),
        ("training: [", "not valid YAML"),
        ("- compact", "found list, wanted settings"),
        ("name: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("? [1, 2]\n: 3", "not valid YAML"),
        ("1: 2", "unknown setting '1'"),
        ("training: {1: 2}", r"training\.1"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line_with_its_name(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said) as caught:
        load_recipe(written(tmp_path, text))
    assert "mine.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_file_is_all_defaults(tmp_path):
    assert load_recipe(written(tmp_path, "")) == Recipe()


@pytest.mark.parametrize("name", ["grand", "grand.yaml", "nowhere/grand.yml"])
def test_a_recipe_that_is_not_there_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=name):
        load_recipe(name)


@pytest.mark.parametrize("setting", ["training.epochs", "=3", "training.epochs=[", "a.b.c=1", ".=1"])
def test_a_setting_that_cannot_be_read_is_refused(setting):
    with pytest.raises(ConfigError):
        load_recipe("demo", [setting])


def test_a_record_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().tokenizer.width = 32


def test_settings_of_any_record_are_validated_with_where_they_came_from():
    with pytest.raises(ConfigError, match=r"here: unknown setting 'widht'; did you mean 'width'"):
        validate(TokenizerConfig, {"widht": 3}, "here")


def test_a_recipe_with_a_base_has_its_settings_but_for_its_own(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text("base: generate\ntraining: {epochs: 7, loss: {level_dropout: 0}}\ndecoder: null\n")
    recipe, base = load_recipe(path), load_recipe("generate")
    assert (recipe.name, recipe.description) == ("custom", "")
    assert (recipe.tokenizer, recipe.labels, recipe.prior) == (base.tokenizer, base.labels, base.prior)
    assert (recipe.training.epochs, recipe.training.batch_size) == (7, base.training.batch_size)
    assert recipe.training.loss == base.training.loss.model_copy(update={"level_dropout": 0})
    assert recipe.decoder is None
    assert base.decoder is not None


@pytest.mark.parametrize("base", ["grand", "[generate]", "small.yaml", "7"])
def test_a_base_that_does_not_come_with_slicebook_is_refused(base, tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(f"base: {base}\n")
    with pytest.raises(ConfigError, match=r"small\.yaml: base: .* is not one of comp3710, compact, demo"):
        load_recipe(path)


def test_the_demo_has_the_sizes_of_generate_by_its_base():
    text = (resources.files("slicebook") / "recipes" / "demo.yaml").read_text(encoding="utf-8")
    assert "\nbase: generate\n" in text
    assert not {"width", "widths", "codebook_sizes", "scaling_rates"} & set(re.findall(r"\w+", text))
    demo, base = load_recipe("demo"), load_recipe("generate")
    assert (demo.tokenizer, demo.labels.tokenizer) == (base.tokenizer, base.labels.tokenizer)
    assert (demo.prior.widths, demo.decoder.widths) == (base.prior.widths, base.decoder.widths)
