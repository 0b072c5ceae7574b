"""Commands on results as tables: compact, query, register."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from braintumor_ray.archive.options import CompactOptions
from braintumor_ray.cli.console import progress_bar, short_errors
from braintumor_ray.cli.options import Json, Results, print_result, takes

if TYPE_CHECKING:
    import pyarrow as pa

app = typer.Typer()
SHOWN = 40  # rows on a terminal


@app.command()
@short_errors
@takes(options=CompactOptions)
def compact(results: Results, options: CompactOptions, as_json: Json = False) -> None:
    """Join the small files of many nights into few, sorted by patient; readers notice nothing.

    Safe at any moment, and after any crash: run it again. Old files stay until --expire.
    """
    from braintumor_ray.archive.compact import compact as join

    with progress_bar("compacting") as advance:
        found = asdict(join(results, options, advance))
    print_result(found, as_json, compact_line(found))


def compact_line(found: dict[str, int]) -> str:
    """What a compaction did, for people."""
    done = "nothing to compact"
    if found["compactions"]:
        done = (
            f"{found['generations']} generations, {found['rows']} rows: "
            f"{found['files_before']} files are now {found['files_after']}"
        )
    notes = {
        "dropped": "superseded rows dropped",
        "expired": "old files deleted",
        "waiting": "old files wait for --expire or for the grace time",
        "registered": "old files are still in a registered table: run 'register'",
    }
    return "; ".join([done, *(f"{found[k]} {text}" for k, text in notes.items() if found[k])])


@app.command()
@short_errors
def query(
    results: Results,
    sql: Annotated[str, typer.Argument(metavar="SQL", help="Over the view 'scans'.")],
    output: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--output", "-o", metavar="FILE", help="Write it: .csv or .parquet."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask the current rows, one per scan, by SQL (DuckDB; extra 'sql')."""
    from braintumor_ray.archive.query import query as ask
    from braintumor_ray.archive.query import write_answer

    table = ask(results, sql)
    if output is not None:
        write_answer(table, output)
        print_result({"output": output, "rows": table.num_rows}, as_json, output)
        return
    rows: Any = table.to_pylist() if as_json else None
    print_result(rows, as_json, "" if as_json else _shown(table))


def _shown(table: "pa.Table") -> str:
    """The first rows as tab-separated text, under their names."""
    lines = ["\t".join(table.column_names)]
    for row in table.slice(0, SHOWN).to_pylist():
        lines.append("\t".join("" if value is None else str(value) for value in row.values()))
    if table.num_rows > SHOWN:
        lines.append(f"... {table.num_rows} rows; --output FILE has all")
    return "\n".join(lines)


@app.command()
@short_errors
def register(
    results: Results,
    catalog: Annotated[
        str,
        typer.Option(
            metavar="URI", help="Of the Iceberg catalog: sqlite:///FILE, postgresql+..., http(s)."
        ),
    ],
    table: Annotated[
        str, typer.Option(metavar="NAMESPACE.NAME", help="Made if it is not there.")
    ] = "braintumor.scans",
    warehouse: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="URI|NAME",
            help="Of the table's metadata; else RESULTS/iceberg. Of REST catalogs: a name.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Add committed files to an Apache Iceberg table without copying them (extra 'iceberg').

    One snapshot a run, exactly once: run it after every night, and again after any crash.
    """
    from braintumor_ray.archive.register import register as add

    found = asdict(add(results, catalog, table, warehouse))
    text = (
        f"{found['table']}: {found['snapshots']} new snapshots with {found['generations']} "
        f"generations; {found['files']} files"
    )
    print_result(found, as_json, text)
