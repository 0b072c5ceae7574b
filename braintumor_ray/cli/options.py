"""The command line of the options that dataclasses declare, and helpers that commands share."""

import functools
import inspect
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer

from braintumor_ray.cli.console import log, progress_bar
from braintumor_ray.options import FIRST, Bundle, MadeOf, Option, annotated, choices_of, type_of

if TYPE_CHECKING:
    import pyarrow as pa

    from braintumor_ray.catalog.options import CatalogOptions

METAVARS: dict[Any, str] = {int: "N", float: "X", bool: "", Path: "PATH"}


def takes(**declared: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options that dataclasses declare.

    Args:
        declared: a dataclass for each keyword of the command that it gets as one object. In
            `--help` its options are where that keyword is in the command's signature.
    """

    def with_options(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def wrapped(**values: Any) -> None:  # noqa: ANN401 - as typer passes them
            made = {name: _gather(kind, values) for name, kind in declared.items()}
            command(**values, **made)

        every: list[inspect.Parameter] = []
        signature = inspect.signature(command)
        for own in signature.parameters.values():
            if own.name in declared:
                every += [_parameter(*found) for found in _options(declared[own.name])]
            else:
                every.append(own.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        wrapped.__signature__ = signature.replace(parameters=every)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {p.name: p.annotation for p in every}
        return wrapped

    return with_options


def _options(declared: Any) -> Iterator[tuple[Field[Any], Option]]:  # noqa: ANN401 - a dataclass
    """The fields that are options, those of parts included."""
    for field in fields(declared):
        option = annotated(field, Option)
        if option is not None and not option.hidden:
            yield field, replace(option, panel=option.panel or getattr(declared, "PANEL", FIRST))
        elif option is None and (part := _part(field)):
            yield from _options(part.declared)


def _part(field: Field[Any]) -> MadeOf | None:
    """How the field is made of options that a dataclass declares; None: it is not."""
    found = annotated(field, MadeOf)
    if found is None and is_dataclass(field.type) and any(_options(field.type)):
        found = MadeOf(field.type, lambda chosen: chosen)  # type: ignore[arg-type]
    return found


def _parameter(field: Field[Any], option: Option) -> inspect.Parameter:
    """The option as typer reads it; None in place of a default that is not its text."""
    kind = _kind(field, option)
    default = field.default
    if default is MISSING:
        default = inspect.Parameter.empty
    elif option.parse or default == ():
        default = None
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=list(default) if isinstance(default, tuple) else default,
        annotation=Annotated[kind, _typer_option(option, type_of(field), field.default)],
    )


def _kind(field: Field[Any], option: Option) -> Any:  # noqa: ANN401 - a type
    """What a terminal gives: text where it is parsed or chosen, a list where it repeats."""
    kind = type_of(field)
    if option.parse or choices_of(kind):
        return str
    return list[str] if get_origin(kind) is tuple else kind


def _typer_option(option: Option, kind: Any, default: Any) -> Any:  # noqa: ANN401 - typer's
    silent = default in (None, (), MISSING) or default is False  # a default without information
    return typer.Option(
        *option.flags,
        help=option.help,
        metavar=option.metavar or "|".join(choices_of(kind)) or METAVARS.get(kind),
        rich_help_panel=option.panel,
        min=option.least,
        max=option.most,
        show_default=option.typed or not silent,
    )


def _gather(declared: Any, values: dict[str, Any]) -> Any:  # noqa: ANN401 - an object of that class
    """The object that the values make; takes its own out of `values`."""
    made = {}
    for field in fields(declared):
        option = annotated(field, Option)
        if option is None and (part := _part(field)):
            made[field.name] = part.make(_gather(part.declared, values))
        elif option and not option.hidden:
            value = values.pop(field.name)
            if value not in (None, []):  # else the dataclass's own default
                made[field.name] = _checked(field, option, value)
    return declared(**made)


def _checked(field: Field[Any], option: Option, value: Any) -> Any:  # noqa: ANN401 - of any option
    if choices := choices_of(type_of(field)):
        flag = option.flags[0] if option.flags else "--" + field.name.replace("_", "-")
        check_choice(flag, value, choices)
    if option.parse:
        return option.parse(value)
    return tuple(value) if isinstance(value, list) else value


def flag(text: str, *names: str, panel: str | None = None) -> Any:  # noqa: ANN401 - typer's
    """An option that is given or not."""
    return typer.Option(*names, help=text, metavar="", show_default=False, rich_help_panel=panel)


Json = Annotated[bool, flag("Print results as JSON on stdout.", "--json")]
Show = Annotated[bool, flag("Open the pages in the browser at the end.", "--open")]
Source = Annotated[
    str,
    typer.Argument(
        metavar="FOLDER|CSV|CATALOG|URI", help="Images, or a table or catalog (.parquet) of them."
    ),
]
Results = Annotated[str, typer.Argument(metavar="RESULTS", help="A results folder or URI.")]
BundleArgument = Annotated[str, typer.Argument(metavar="BUNDLE", help=get_args(Bundle)[1].help)]
Host = Annotated[
    str, typer.Option(metavar="ADDRESS", rich_help_panel="Network", help="Address to listen on.")
]
Port = Annotated[
    int,
    typer.Option(
        min=1, max=65535, metavar="N", rich_help_panel="Network", help="Port to listen on."
    ),
]
BundleOption = Annotated[str, _typer_option(get_args(Bundle)[1], str, MISSING)]


def anonymous_options() -> "CatalogOptions":
    """For commands that only group by patient: no key is asked for, checked or kept.

    Where the user has one, ids agree with those of catalogs; else a key of the moment will do.
    """
    from braintumor_ray.catalog.identity import IdentityHash
    from braintumor_ray.catalog.options import CatalogOptions

    return CatalogOptions(identity=IdentityHash(make=functools.cache(_grouping_key)))


def _grouping_key() -> bytes:
    import secrets

    from braintumor_ray.hash_key import usual_secrets

    return next(usual_secrets(), None) or secrets.token_bytes(32)


def load_source(source: str, options: "CatalogOptions") -> "pa.Table":
    """The catalog of a source, with progress."""
    from braintumor_ray.catalog.build import load_catalog

    warn_of_options(source, options)
    with progress_bar("cataloging") as advance:
        return load_catalog(source, options, advance)


def warn_of_options(source: str, options: "CatalogOptions") -> None:
    """Tell of options that do nothing: a catalog is not made again, a folder has no columns."""
    if unused := options.without_effect(source.rstrip("/")):
        why = "is a catalog already" if source.rstrip("/").endswith(".parquet") else "is no table"
        log(f"warning: '{source}' {why}; without effect: {', '.join(unused)}")


def value_counts(table: "pa.Table", column: str) -> dict[str, int]:
    """How often each value occurs, by name."""
    found = sorted(
        ((item["values"], item["counts"]) for item in table[column].value_counts().to_pylist()),
        key=lambda pair: str(pair[0]),
    )
    return dict(found)


def check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not one of the choices.

    Raises:
        UsageError: names the option, the value and the choices.
    """
    from braintumor_ray.errors import UsageError

    if value not in choices:
        raise UsageError(f"{option} '{value}' is unknown; use {' or '.join(choices)}")


def listed(found: dict[str, Any]) -> str:
    """Short values of a result, a line each."""
    short = {k: v for k, v in found.items() if isinstance(v, str | int | float)}
    return "\n".join(f"{key}: {value}" for key, value in short.items())


def print_result(found: dict[str, Any], as_json: bool, text: str) -> None:
    """Results on stdout: as JSON, or for people."""
    if as_json:
        text = json.dumps(_finite(found), ensure_ascii=False, default=str)
    # Names that are no UTF-8 hold lone surrogates, which stdout refuses and JSON has escapes for.
    typer.echo(text.encode("utf-8", "backslashreplace").decode())


def _finite(value: Any) -> Any:  # noqa: ANN401 - JSON values
    """The same with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
