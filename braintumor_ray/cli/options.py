"""Options and small helpers that several commands share."""

import functools
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from braintumor_ray.cli.console import progress_bar

if TYPE_CHECKING:
    import pyarrow as pa

    from braintumor_ray.catalog.schema import CatalogOptions

# `Optional` throughout: typer reads annotations at run time, also on Python 3.10.
Json = Annotated[bool, typer.Option("--json", help="Print results as JSON on stdout.")]
KeyFile = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads this at run time, also on Python 3.10
    typer.Option(help="File with the secret for hashing ids (else BRAINTUMOR_HASH_KEY)."),
]
ClearIds = Annotated[bool, typer.Option(help="Keep patient ids readable: they may name people.")]
PathColumn = Annotated[Optional[str], typer.Option(help="CSV column of the file paths.")]  # noqa: UP045
LabelColumn = Annotated[Optional[str], typer.Option(help="CSV column of the classes.")]  # noqa: UP045
PatientColumn = Annotated[Optional[str], typer.Option(help="CSV column of the patients.")]  # noqa: UP045
Root = Annotated[Optional[str], typer.Option(help="Folder that the CSV's paths are below.")]  # noqa: UP045
PatientPattern = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Regular expression over the path, group 'patient' is the id."),
]
Plane = Annotated[str, typer.Option(help="Slices of NIfTI volumes: axial, coronal or sagittal.")]
Volume = Annotated[int, typer.Option(min=0, help="Which volume of a 4-D NIfTI, from 0.")]
Source = Annotated[str, typer.Argument(help="Folder, CSV, catalog (.parquet) or URI of images.")]
BundleOption = Annotated[
    str, typer.Option("--bundle", "-b", help="Bundle directory: RUN/bundle of a training run.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Precision = Annotated[str, typer.Option(help="auto (bf16 where the hardware gains), fp32 or bf16.")]


_CATALOG_OPTIONS: dict[str, tuple[Any, Any]] = {
    "path_column": (PathColumn, None),
    "label_column": (LabelColumn, None),
    "patient_column": (PatientColumn, None),
    "root": (Root, None),
    "patient_pattern": (PatientPattern, None),
    "hash_key_file": (KeyFile, None),
    "clear_ids": (ClearIds, False),
    "plane": (Plane, "axial"),
    "volume": (Volume, 0),
}


def takes_catalog_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a source; it gets them as one `catalog_options`."""
    return with_options(command, "catalog_options", _CATALOG_OPTIONS, _catalog_options)


def with_options(
    command: Callable[..., None],
    name: str,
    options: dict[str, tuple[Any, Any]],
    gathered: Callable[..., Any],
) -> Callable[..., None]:
    """Replace a keyword of a command by options, given to it as what `gathered` makes of them.

    Args:
        command: takes `name`.
        name: of the keyword.
        options: by their names, annotation for typer and default.
        gathered: takes the options' values as keywords.
    """

    @functools.wraps(command)
    def wrapped(**values: Any) -> None:  # noqa: ANN401 - as typer passes them
        chosen = {key: values.pop(key) for key in options}
        command(**values, **{name: gathered(**chosen)})

    signature = inspect.signature(command)
    kept = [p for key, p in signature.parameters.items() if key != name]
    added = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for key, (kind, default) in options.items()
    ]
    every = [*kept, *added]
    wrapped.__signature__ = signature.replace(parameters=every)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in every}
    return wrapped


def _catalog_options(
    path_column: str | None,
    label_column: str | None,
    patient_column: str | None,
    root: str | None,
    patient_pattern: str | None,
    hash_key_file: Path | None,
    clear_ids: bool,
    plane: str,
    volume: int,
) -> "CatalogOptions":
    from typing import cast

    from braintumor_ray.catalog.identity import compile_patient_pattern, load_identity_hash
    from braintumor_ray.catalog.schema import CatalogOptions
    from braintumor_ray.decode.types import Plane as PlaneName
    from braintumor_ray.decode.types import VolumeOptions

    check_choice("--plane", plane, ("axial", "coronal", "sagittal"))
    return CatalogOptions(
        path_column,
        label_column,
        patient_column,
        root,
        compile_patient_pattern(patient_pattern),
        load_identity_hash(hash_key_file, clear_ids),
        volumes=VolumeOptions(cast("PlaneName", plane), volume),
    )


def anonymous_options() -> "CatalogOptions":
    """For commands that only group by patient: a key of the moment, kept nowhere."""
    import secrets

    from braintumor_ray.catalog.identity import IdentityHash
    from braintumor_ray.catalog.schema import CatalogOptions

    return CatalogOptions(identity=IdentityHash(secrets.token_bytes(32)))


def load_source(source: str, options: "CatalogOptions") -> "pa.Table":
    """The catalog of a source, with progress."""
    from braintumor_ray.catalog.build import load_catalog

    with progress_bar("cataloguing") as advance:
        return load_catalog(source, options, advance)


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
        typer.echo(json.dumps(found, ensure_ascii=False, default=str))
    else:
        typer.echo(text)
