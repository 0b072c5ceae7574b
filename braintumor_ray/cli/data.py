"""Commands on data: phantom, catalog, split."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from braintumor_ray.catalog.options import CatalogOptions, LabelChoice, StreamOptions
from braintumor_ray.cli.console import log, progress_bar, short_errors
from braintumor_ray.cli.options import (
    Json,
    Source,
    load_source,
    print_result,
    takes,
    value_counts,
    warn_of_options,
)
from braintumor_ray.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from braintumor_ray.catalog.stream import Streamed

PHANTOM_PATIENTS = 60
app = typer.Typer()


@app.command()
@short_errors
def phantom(
    directory: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where to write the data set.")
    ],
    patients: Annotated[
        int, typer.Option(min=4, metavar="N", help="Patients over all four classes.")
    ] = 40,
    seed: Annotated[int, typer.Option(metavar="N", help="The same seed gives the same scans.")] = 0,
    as_json: Json = False,
) -> None:
    """Write synthetic scans with exact tumor masks and planted bad files (not real patients)."""
    from dataclasses import asdict

    from braintumor_ray.phantom.dataset import write_phantoms

    with progress_bar("phantoms") as advance:
        summary = write_phantoms(directory, patients=patients, seed=seed, progress=advance)
    print_result(asdict(summary), as_json, f"synthetic scans in {directory / 'scans'}")


@app.command()
@short_errors
@takes(catalog_options=CatalogOptions, made=StreamOptions, chosen=LabelChoice)
def catalog(
    source: Source,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="CATALOG", help="The catalog, .parquet.")
    ],
    catalog_options: CatalogOptions,
    made: StreamOptions,
    chosen: LabelChoice,
    as_json: Json = False,
) -> None:
    """List every scan of a source: one row per file, or per frame of a volume.

    Memory stays the same for any number of files below a folder or URI.
    """
    from braintumor_ray.catalog.build import unread_line
    from braintumor_ray.catalog.stream import can_stream, stream_catalog

    options = catalog_options.with_own_key(output)
    if chosen.labels is not None and made != StreamOptions():
        raise UsageError("--labels goes without --since and --listing; make the catalog whole")
    if chosen.labels is None and (can_stream(source, options) or made != StreamOptions()):
        warn_of_options(source, options)
        with progress_bar("cataloging") as advance:
            wrote = stream_catalog(source, output, options, made, advance)
    else:
        wrote = _catalog_in_memory(source, output, options, chosen.labels)
    if unread := unread_line(wrote.unread):
        log(f"warning: {unread}")
    counts = dict(sorted(wrote.labels.items(), key=lambda item: str(item[0])))
    labels = ", ".join(f"{name or 'unlabeled'} {n}" for name, n in counts.items())
    found = {"catalog": output, "scans": wrote.scans, "labels": counts}
    opened = f"{wrote.opened} files opened, {wrote.known} known" if made.since else ""
    lines = [f"{wrote.scans} scans in {output}: {labels}", opened, wrote.left_out.describe()]
    if made.since:
        found |= {"opened": wrote.opened, "known": wrote.known}
    print_result(
        found | {"left_out": wrote.left_out.left_out},
        as_json,
        "\n".join(line for line in (*lines, *wrote.remarks) if line),
    )


def _catalog_in_memory(
    source: str, output: str, options: CatalogOptions, labels: str | None
) -> "Streamed":
    """The catalog of a table of scans, of another catalog, or with labels of reviewers."""
    from braintumor_ray.catalog.build import unread_of
    from braintumor_ray.catalog.labels import remarks
    from braintumor_ray.catalog.listing import left_out_of
    from braintumor_ray.catalog.pacs_parts import write_pacs_catalog
    from braintumor_ray.catalog.reviewed import read_reviewed, with_reviewed_labels
    from braintumor_ray.catalog.schema import read_catalog, write_catalog
    from braintumor_ray.catalog.stream import Streamed
    from braintumor_ray.dicomweb.query import is_dicomweb

    if is_dicomweb(source):
        warn_of_options(source, options)
        with progress_bar("cataloging") as advance:
            write_pacs_catalog(source, output, options, advance)
        table = read_catalog(output)
    else:
        table = load_source(source, options)
    if labels is not None:
        table, told = with_reviewed_labels(table, read_reviewed(labels), labels)
        log(told)
    write_catalog(table, output)
    return Streamed(
        scans=table.num_rows,
        labels=Counter(table["label"].to_pylist()),
        left_out=left_out_of(table.schema),
        unread=unread_of(table.schema),
        remarks=remarks(table),
    )


@app.command()
@short_errors
def split(
    catalog_file: Annotated[str, typer.Argument(metavar="CATALOG", help="From 'catalog'.")],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="CATALOG", help="With splits, .parquet.")
    ],
    fractions: Annotated[
        str, typer.Option(metavar="TRAIN,VAL,TEST", help="Shares of the splits.")
    ] = "0.7,0.2,0.1",
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the shuffle.")] = 0,
    as_json: Json = False,
) -> None:
    """Share scans out, stratified by class; patients and duplicates never straddle a split."""
    from braintumor_ray.catalog.schema import read_catalog, write_catalog
    from braintumor_ray.training.split import split_catalog

    with progress_bar("decoding") as advance:
        table = split_catalog(read_catalog(catalog_file), _fractions(fractions), seed, advance)
    write_catalog(table, output)
    counts = value_counts(table, "split")
    print_result(
        {"catalog": output, "splits": counts},
        as_json,
        f"{output}: " + ", ".join(f"{name or 'none'} {n}" for name, n in counts.items()),
    )


def phantom_catalog(directory: Path, patients: int = PHANTOM_PATIENTS) -> "pa.Table":
    """Phantoms in a folder, written if they are not there, and their catalog."""
    from braintumor_ray.catalog.build import load_catalog
    from braintumor_ray.catalog.identity import IdentityHash
    from braintumor_ray.phantom.dataset import write_phantoms

    if not (directory / "scans.csv").exists():
        with progress_bar("phantoms") as advance:
            write_phantoms(directory, patients=patients, progress=advance)
    options = CatalogOptions(
        root=str(directory / "scans"),
        patient_column="patient_id",
        identity=IdentityHash(b"phantoms are nobody"),
    )
    return load_catalog(str(directory / "scans.csv"), options)


def _fractions(text: str) -> dict[str, float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 3:
        raise UsageError(f"--fractions '{text}' is not three shares such as 0.7,0.2,0.1")
    return dict(zip(("train", "val", "test"), values, strict=True))
