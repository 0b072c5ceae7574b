"""Several data sets as one catalog; a column `source` distinguishes them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from braintumor_ray.catalog.listing import Listing, left_out_of, with_left_out
from braintumor_ray.catalog.schema import check_ids, scan_id
from braintumor_ray.errors import UsageError

SOURCE = "source"


def source_names(sources: Sequence[str]) -> list[str]:
    """A name for each source: its last part, or all of it where two have the same."""
    short = [Path(source.rstrip("/")).name for source in sources]
    return [s if short.count(n) > 1 else n for n, s in zip(short, sources, strict=True)]


def combined(catalogs: Mapping[str, pa.Table]) -> pa.Table:
    """One catalog of several, with column `source`.

    Paths begin with the source's name and scan ids are made anew, as two sources may hold the same
    path. Patients keep their keys: one that occurs in two sources is one patient.

    Args:
        catalogs: by name; two or more.

    Raises:
        UsageError: some, not all, have a column `split`.
        CatalogError: two rows of one source are the same scan.
    """
    split = {name: "split" in table.column_names for name, table in catalogs.items()}
    if len(set(split.values())) > 1:
        with_it = next(name for name, has in split.items() if has)
        without = next(name for name, has in split.items() if not has)
        raise UsageError(
            f"source '{with_it}' has a column 'split' and source '{without}' has none; give both "
            "one ('braintumor-ray split'), or drop the column"
        )
    tables = [_named(name, table) for name, table in catalogs.items()]
    found = pa.concat_tables(tables, promote_options="default")
    check_ids(found)
    listings = [left_out_of(table.schema) for table in catalogs.values()]
    counts: Counter[str] = sum((listing.left_out for listing in listings), Counter())
    archives = [path for listing in listings for path in listing.archives]
    return with_left_out(found, Listing([], counts, archives))


def has_sources(catalog: pa.Table) -> bool:
    """Whether a catalog is of two or more named sources."""
    return SOURCE in catalog.column_names and len(pc.unique(catalog[SOURCE]).drop_null()) > 1


def require_source(catalog: pa.Table, name: str) -> None:
    """Refuse a source that is not there.

    Raises:
        UsageError: names those that are.
    """
    known = pc.unique(catalog[SOURCE]).to_pylist() if SOURCE in catalog.column_names else []
    if name not in known or len(known) < 2:
        there = f"the sources are {', '.join(map(str, known))}" if known else "there is one source"
        raise UsageError(
            f"--leave-out '{name}': {there}; train on two or more and name one of them"
        )


def _named(name: str, table: pa.Table) -> pa.Table:
    paths = [f"{name}/{path}" for path in table["path"].to_pylist()]
    times = table["mtime"].cast(pa.int64()).to_pylist()  # microseconds
    keys = zip(paths, table["frame"].to_pylist(), table["size"].to_pylist(), times, strict=True)
    columns = {
        "path": pa.array(paths, pa.string()),
        "scan_id": pa.array([scan_id(*key) for key in keys], pa.int64()),
        SOURCE: pa.array([name] * table.num_rows, pa.string()),
    }
    for column, values in columns.items():
        if column in table.column_names:
            index = table.schema.get_field_index(column)
            table = table.set_column(index, column, values)
        else:
            table = table.append_column(column, values)
    return table
