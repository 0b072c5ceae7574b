"""Reading recipes: by name, from a user's file, with fields set on the command line."""

import sys
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from braintumor_ray.errors import UsageError, describe_validation
from braintumor_ray.recipes.schema import Recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    folder = files("braintumor_ray.recipes")
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".toml"))


def recipe_text(name_or_file: str) -> str:
    """The TOML text of a recipe, comments included.

    Raises:
        UsageError: there is no recipe and no file of that name, or it is not UTF-8.
    """
    if name_or_file in recipe_names():
        resource = files("braintumor_ray.recipes") / f"{name_or_file}.toml"
        return resource.read_text(encoding="utf-8")
    path = Path(name_or_file)
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise UsageError(f"recipe '{name_or_file}' is not UTF-8: {error}") from error
    raise UsageError(
        f"recipe '{name_or_file}' is neither one of {', '.join(recipe_names())} nor a TOML file; "
        "see 'braintumor-ray recipes'"
    )


def load_recipe(name_or_file: str, settings: Iterable[str] = ()) -> Recipe:
    """Load a recipe and set fields, each written as `section.key=value` (a TOML value).

    Raises:
        UsageError: unknown recipe, unknown field, or a value that does not fit.
    """
    try:
        raw = tomllib.loads(recipe_text(name_or_file))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"recipe '{name_or_file}' is not TOML: {error}") from error
    for setting in settings:
        _set(raw, setting)
    return recipe_from_dict(raw, name_or_file)


def recipe_from_dict(raw: dict[str, Any], origin: str = "recipe") -> Recipe:
    """Validate a recipe given as plain tables.

    Raises:
        UsageError: names each field, its value and what is wrong, in one line.
    """
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise UsageError(f"{origin}: {describe_validation(error)}") from error


def with_backbone(recipe: Recipe, backbone: str, image_size: int | None = None) -> Recipe:
    """The recipe with another backbone, at its input size where one is given.

    Stages that name layers of the recipe's own backbone train all of the new one.
    """
    if backbone == recipe.model.backbone:
        return recipe
    stages = [
        stage if isinstance(stage.train, str) else stage.model_copy(update={"train": "all"})
        for stage in recipe.stages
    ]
    data = recipe.data
    if image_size is not None:
        data = data.model_copy(update={"image_size": image_size})
    model = recipe.model.model_copy(update={"backbone": backbone})
    changes = {"model": model, "data": data, "stages": tuple(stages), "published": ()}
    return recipe.model_copy(update=changes)


def _set(raw: dict[str, Any], setting: str) -> None:
    key, separator, value = setting.partition("=")
    if not separator or not key:
        raise UsageError(f"--set {setting!r} is not KEY=VALUE, such as optimizer.lr=3e-4")
    _check_key(setting, key.strip())
    *sections, field = key.strip().split(".")
    table: Any = raw
    for section in sections:
        if isinstance(table, list):
            table = _entry(table, section, setting)
        elif isinstance(table, dict):
            table = table.setdefault(section, {})
    if not isinstance(table, dict):
        raise UsageError(f"--set {setting!r}: '{'.'.join(sections)}' has no fields")
    table[field] = _value(value.strip())


def _check_key(setting: str, key: str) -> None:
    words = key.split(".")
    if words[0] == "stages":
        del words[1:2]  # its number or name
    asked, known = ".".join(words), list(_keys(Recipe))
    if any(k == asked or k.startswith(f"{asked}.") or asked.startswith(f"{k}.") for k in known):
        return
    same_word = [k for k in known if k.rsplit(".", 1)[-1] == words[-1]]
    nearest = same_word or get_close_matches(asked, known, 1, cutoff=0.4)
    hint = f"; did you mean '{nearest[0].replace('stages.', 'stages.NAME.')}'?" if nearest else ""
    raise UsageError(
        f"--set {setting!r}: a recipe has no '{key}'{hint} ('recipes show NAME' prints one)"
    )


def _keys(section: Any) -> Iterator[str]:  # noqa: ANN401 - a section's class
    """Every key below a section, with dots."""
    for name, field in section.model_fields.items():
        kinds = get_args(field.annotation) or (field.annotation,)
        inner = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
        yield from [name] if inner is None else (f"{name}.{key}" for key in _keys(inner))


def _entry(stages: list[Any], name: str, setting: str) -> Any:  # noqa: ANN401 - a TOML value
    """One of the [[stages]], by number or by name."""
    for number, stage in enumerate(stages):
        if name in (str(number), stage.get("name")):
            return stage
    raise UsageError(
        f"--set {setting!r}: no stage '{name}' among {[s.get('name') for s in stages]}"
    )


def _value(text: str) -> Any:  # noqa: ANN401 - a TOML value
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string: --set model.backbone=resnet50
