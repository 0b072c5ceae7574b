"""Any JSON summary as tables for the report: localisation, faithfulness and what comes later."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Path = tuple[str, ...]


@dataclass
class Table:
    """A table of a summary: a row per key, a column per key below.

    Attributes:
        caption: where in the summary it stands; its own name is left out.
        columns: names of the columns.
        rows: per row its name and the path of each cell in the summary; None where there is none.
    """

    caption: str
    columns: list[str] = field(default_factory=list)
    rows: list[tuple[str, list[Path | None]]] = field(default_factory=list)


def section_tables(summary: Mapping[str, Any], path: Path = ()) -> list[Table]:
    """Cut a nested summary into tables.

    A mapping whose values are mappings of leaves becomes a table; deeper ones are gone through.
    A leaf is a number, a text, None, or an interval (a mapping with `estimate`). Lists are left
    to the JSON file.
    """
    return list(_tables(summary, path))


def section_facts(summary: Mapping[str, Any], path: Path = ()) -> list[tuple[str, Path]]:
    """The leaves at the top of a summary, as names and paths: seed, number of scans, ..."""
    return [(name, (*path, name)) for name, value in summary.items() if is_leaf(value)]


def is_leaf(value: Any) -> bool:  # noqa: ANN401 - JSON
    """Whether a JSON value is shown in one cell."""
    if isinstance(value, Mapping):
        return "estimate" in value
    return value is None or isinstance(value, str | int | float)


def _tables(summary: Mapping[str, Any], path: Path) -> Iterator[Table]:
    branches = {
        name: value
        for name, value in summary.items()
        if isinstance(value, Mapping) and not is_leaf(value) and value
    }
    rows = {name: value for name, value in branches.items() if _is_row(value)}
    if rows:
        yield _table(rows, path)
    for name, value in branches.items():
        yield from _tables(value, (*path, name))


def _is_row(value: Mapping[str, Any]) -> bool:
    return any(is_leaf(item) for item in value.values())


def _table(rows: Mapping[str, Mapping[str, Any]], path: Path) -> Table:
    columns: dict[str, None] = {}
    for value in rows.values():
        columns |= dict.fromkeys(name for name, item in value.items() if is_leaf(item))
    table = Table(" / ".join(path[2:]), list(columns))
    for name, value in rows.items():
        known = {column for column in columns if column in value and is_leaf(value[column])}
        cells = [(*path, name, column) if column in known else None for column in columns]
        table.rows.append((name, cells))
    return table
