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
    A recipe may name another one that comes with Slicebook as its `base`: its settings stand over those.

    Raises:
        ConfigError: No such recipe, not YAML, an unknown key, or a value of the wrong kind or range.
    """
    settings, where = _settings(str(name_or_path))
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


def _settings(name: str) -> tuple[dict[str, Any], str]:
    """Return the settings of a recipe over those of its base, and what to call it in an error."""
    text, where = _read(name)
    settings = _parse(text, where)
    base = settings.pop("base", None)
    if base is None:
        return settings, where
    if base not in recipe_names():
        raise ConfigError(f"{where}: base: {base!r} is not one of {', '.join(recipe_names())}")
    below, _ = _settings(base)
    return _over({key: below[key] for key in below if key not in ("name", "description")}, settings), where


def _over(below: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings over others; a group is joined key by key."""
    joined = dict(below)
    for key, value in settings.items():
        inner = joined.get(key)
        joined[key] = _over(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return joined


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
