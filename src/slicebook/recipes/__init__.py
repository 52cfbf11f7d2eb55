"""Recipes: named YAML files of settings, and changes to them by `key=value`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from slicebook.config import Recipe, validate
from slicebook.errors import ConfigError


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that come with Slicebook."""
    folder = resources.files("slicebook") / "recipes"
    return tuple(sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".yaml")))


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by its name or path and apply `key=value` settings over it.

    Keys are dotted (`training.learning_rate=1e-3`) and values are YAML (`tokenizer.scaling_rates=[8, 4, 2]`).

    Raises:
        ConfigError: No such recipe, not YAML, an unknown key, or a value of the wrong kind or range.
    """
    text, where = _read(str(name_or_path))
    settings = _parse(text, where)
    _apply(settings, overrides)
    return validate(Recipe, settings, where)


def override(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """Return a recipe with `key=value` settings over it, as `load_recipe` reads them."""
    settings = recipe.model_dump(mode="json")
    _apply(settings, overrides)
    return validate(Recipe, settings, f"recipe {recipe.name}")


def _apply(settings: dict[str, Any], overrides: Sequence[str]) -> None:
    for setting in overrides:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise ConfigError(f"{setting}: wanted key=value, such as training.learning_rate=1e-3")
        _set(settings, key, _parse_value(value, setting))


def _read(name: str) -> tuple[str, str]:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        try:
            return path.read_text(encoding="utf-8"), name
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{name}: cannot be read ({error}); give a recipe's name or a YAML file"
            ) from error
    if name not in recipe_names():
        raise ConfigError(
            f"recipe {name!r} not found; known recipes: {', '.join(recipe_names())}, or a .yaml file"
        )
    return (resources.files("slicebook") / "recipes" / f"{name}.yaml").read_text(
        encoding="utf-8"
    ), f"recipe {name}"


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses a repeated key instead of keeping the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = [key for key in keys if keys.count(key) > 1]
        if repeated:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {repeated[0]!r} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        settings = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML ({' '.join(str(error).split())})") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"{where}: found {type(settings).__name__}, wanted settings as `key: value` lines")
    return {str(key): value for key, value in settings.items()}


def _parse_value(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: the value is not valid YAML; quote it") from error


def _set(settings: dict[str, Any], key: str, value: Any) -> None:
    *groups, last = key.split(".")
    for group in groups:
        inner = settings.setdefault(group, {})
        if not isinstance(inner, dict):
            inner = settings[group] = {}
        settings = inner
    settings[last] = value
