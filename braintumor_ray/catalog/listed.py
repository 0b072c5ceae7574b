"""Listings that a store or another program has made, in place of listing the source again.

An S3 Inventory (its manifest.json, with CSV or Parquet files), or one CSV or Parquet file with the
columns `path` (or `key`), `size` and `mtime` (or `last_modified_date`). Read a part at a time.
"""

import csv
import gzip
import io
import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from typing import Any
from urllib.parse import unquote_plus

import pyarrow as pa

from braintumor_ray.catalog.listing import FoundFile, Listing, base_of, uri_of
from braintumor_ray.errors import CatalogError
from braintumor_ray.storage import (
    at_nanoseconds,
    is_local,
    open_filesystem,
    read_bytes,
    split_uri,
)

PATHS = ("path", "key", "uri", "name")
SIZES = ("size", "bytes", "length")
TIMES = ("mtime", "last_modified_date", "lastmodifieddate", "last_modified", "lastmodified")
LATEST, DELETED = ("is_latest", "islatest"), ("is_delete_marker", "isdeletemarker")
ROWS = 20_000

Row = dict[str, Any]


def listed_files(listing: str, root: str, found: Listing) -> Iterator[FoundFile]:
    """The files of a listing that are below a root, in the listing's order.

    Args:
        listing: manifest.json of an S3 Inventory, or a CSV or Parquet file; a path or URI.
        root: folder or URI that the files are below.
        found: where entries that cannot be scans are counted.

    Raises:
        CatalogError: the listing cannot be read, or a column or value is missing.
    """
    rows = _inventory(listing) if listing.endswith("manifest.json") else _rows(listing, None)
    yield from found.sort_out(_below(rows, listing, root, base_of(root)))


def _below(rows: Iterator[Row], listing: str, root: str, base: str) -> Iterator[FoundFile]:
    prefixes = _prefixes(root, base)
    for row in rows:
        if _is_true(row, DELETED) or _is_true(row, LATEST) is False:
            continue
        text = str(_value(row, PATHS, listing))
        if is_local(root):
            text = text.removeprefix("./")  # as `find .` names files; a key means itself
        path = _path_below(text, prefixes, listing)
        if path is None or path.endswith("/"):
            continue  # another part of the bucket, or the mark of a folder
        size, time = _value(row, SIZES, listing), _value(row, TIMES, listing)
        uri = uri_of(root, base, path)
        yield FoundFile(path, uri, _size(size, listing), _time(time, listing))


def _prefixes(root: str, base: str) -> tuple[str, str]:
    """What absolute names and keys of a bucket begin with below the root."""
    uri = split_uri(root)
    if uri is None or is_local(root):
        return f"{base.rstrip('/')}/", ""
    key = uri.path.strip("/")
    return f"{root.rstrip('/')}/", f"{key}/" if key else ""


def _path_below(text: str, prefixes: tuple[str, str], listing: str) -> str | None:
    absolute, key = prefixes
    if text.startswith(absolute):
        return text.removeprefix(absolute)
    if "://" in text or text.startswith("/"):
        return None
    if key:
        return text.removeprefix(key) if text.startswith(key) else None
    if ".." in text.split("/"):
        raise CatalogError(f"listing '{listing}': path '{text}' leaves the source; remove the row")
    return text


def _value(row: Row, names: Sequence[str], listing: str) -> Any:  # noqa: ANN401 - of any column
    for name in names:
        if name in row:
            return row[name]
    raise CatalogError(
        f"listing '{listing}' has no column {' or '.join(names[:2])} among {', '.join(row)}; add "
        "it, or leave --listing out"
    )


def _is_true(row: Row, names: Sequence[str]) -> bool | None:
    """A flag of an inventory of versions; None: it has none."""
    found = next((row[name] for name in names if name in row), None)
    return found if found is None or isinstance(found, bool) else str(found).lower() == "true"


def _size(value: Any, listing: str) -> int | None:  # noqa: ANN401
    if value in (None, ""):
        return None
    try:
        return int(value)
    except ValueError as error:
        raise CatalogError(f"listing '{listing}': size '{value}' is not a number") from error


def _time(value: Any, listing: str) -> datetime | None:  # noqa: ANN401
    """A time in UTC: of Parquet, in ISO 8601, or in seconds since 1970."""
    if value in (None, ""):
        return None
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=timezone.utc)
    try:
        return _moment(str(value))
    except (ValueError, OverflowError, OSError) as error:
        raise CatalogError(
            f"listing '{listing}': time '{value}' is neither ISO 8601 nor seconds since 1970"
        ) from error


def _moment(text: str) -> datetime:
    """Of text with any number of decimals, to the same microsecond as the source gives itself."""
    text = re.sub(r"\A((?:19|20)\d\d)(\d\d)(\d\d)\Z", r"\1-\2-\3", text)  # no summer of 1970
    if found := re.fullmatch(r"(\d+)(?:\.(\d*))?", text):
        seconds, decimals = int(found[1]), found[2]
        datetime.fromtimestamp(seconds, timezone.utc)  # refuses milliseconds: they are of no year
    else:
        found = re.fullmatch(r"(.*?)(?:(?<=:\d\d)[.,](\d+)(.*))?", text)
        whole, decimals, zone = found.groups("") if found else (text, "", "")
        then = datetime.fromisoformat(f"{whole}{zone}".replace("Z", "+00:00"))
        seconds = int((then if then.tzinfo else then.replace(tzinfo=timezone.utc)).timestamp())
    return at_nanoseconds(seconds * 10**9 + int(f"{decimals or '':0<9}"[:9]))


def _inventory(location: str) -> Iterator[Row]:
    """The rows of all files of an S3 Inventory."""
    try:
        manifest = json.loads(read_bytes(location))
        names = [name.strip() for name in str(manifest["fileSchema"]).split(",")]
        kind, files = manifest["fileFormat"], [entry["key"] for entry in manifest["files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CatalogError(
            f"'{location}' is not the manifest.json of an S3 Inventory: {error!r}"
        ) from error
    if kind not in ("CSV", "Parquet"):
        raise CatalogError(
            f"inventory '{location}' is in {kind}; let S3 write it as CSV or Parquet"
        )
    bucket = str(manifest.get("destinationBucket", "")).rpartition(":")[2]
    for key in files:
        rows = _rows(_inventory_file(location, bucket, key), names if kind == "CSV" else None)
        for row in rows:
            row["key"] = unquote_plus(row["key"]) if kind == "CSV" else row["key"]
            yield row


def _inventory_file(manifest: str, bucket: str, key: str) -> str:
    """Where a file of an inventory is: next to a copied manifest, else in its bucket.

    S3 writes SOURCE/ID/data/FILE and SOURCE/ID/DATE/manifest.json.
    """
    folder = posixpath.dirname(manifest) or "."
    name = posixpath.basename(key)
    near = [f"{folder}/data/{name}", f"{posixpath.dirname(folder) or '.'}/data/{name}"]
    for place in [*near, f"{folder}/{name}"]:
        filesystem, path = open_filesystem(place)
        if filesystem.get_file_info(path).is_file:
            return place
    return f"s3://{bucket}/{key}"


def _rows(location: str, names: Sequence[str] | None) -> Iterator[Row]:
    """Rows with column names in lower case.

    Args:
        location: a Parquet file, or CSV, perhaps packed by gzip.
        names: of the columns of a CSV without a header.
    """
    try:
        if location.endswith(".parquet"):
            yield from _parquet_rows(location)
        else:
            yield from _csv_rows(location, names)
    except (OSError, pa.ArrowException, csv.Error, UnicodeDecodeError) as error:
        raise CatalogError(f"listing '{location}' cannot be read: {error}") from error


def _parquet_rows(location: str) -> Iterator[Row]:
    import pyarrow.parquet as pq

    filesystem, path = open_filesystem(location)
    with filesystem.open_input_file(path) as stream:
        file = pq.ParquetFile(stream)
        wanted = {*PATHS, *SIZES, *TIMES, *LATEST, *DELETED}
        columns = [name for name in file.schema_arrow.names if name.lower() in wanted]
        for batch in file.iter_batches(ROWS, columns=columns):
            names = [name.lower() for name in batch.schema.names]
            plain = [_plain(column) for column in batch.columns]
            for values in zip(*plain, strict=True):
                yield dict(zip(names, values, strict=True))


def _plain(column: pa.Array) -> list[Any]:
    """Values of Python, whose times end at microseconds: as those of files, see `storage`."""
    if not pa.types.is_timestamp(column.type) or column.type.unit != "ns":
        return list(column.to_pylist())
    moments = column.cast(pa.int64()).to_pylist()
    return [None if moment is None else at_nanoseconds(moment) for moment in moments]


def _csv_rows(location: str, names: Sequence[str] | None) -> Iterator[Row]:
    filesystem, path = open_filesystem(location)
    with filesystem.open_input_stream(path, compression=None) as raw:
        unpacked: Any = gzip.GzipFile(fileobj=raw) if location.endswith(".gz") else raw
        lines = io.TextIOWrapper(unpacked, encoding="utf-8-sig", newline="")
        reader = csv.reader(lines)
        header = list(names or next(reader, []))
        plain = [name.strip().lower() for name in header]
        for cells in reader:
            if cells:
                yield dict(zip(plain, cells, strict=False))
