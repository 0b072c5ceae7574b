"""`publish`: the rows of a results folder as DICOM objects, in a folder or on a server."""

import io
from collections import Counter
from typing import Any

import pyarrow as pa
from pydicom.dataset import Dataset

from braintumor_ray.errors import PublishError, UsageError
from braintumor_ray.predict.results import results_folder
from braintumor_ray.publishing.objects import derived_objects
from braintumor_ray.publishing.options import PublishOptions
from braintumor_ray.publishing.rows import Chosen, chosen_rows
from braintumor_ray.publishing.source import Refused, read_source
from braintumor_ray.storage import write_atomically
from braintumor_ray.types import Progress


def publish(
    results: str, archive: pa.Table, options: PublishOptions, progress: Progress | None = None
) -> dict[str, Any]:
    """Write DICOM objects of the rows of DICOM scans.

    Args:
        results: folder or URI.
        archive: catalog rows of the source, with `path` and `uri`, of the root that was scored;
            its headers need not have been read.
        options: which rows, where to.
        progress: told the number of scans done, and of None in all.

    Returns:
        `scans` published, `objects` written, `refused` (counts by reason).

    Raises:
        PublishError: nothing to publish, or some scans were refused: the others are published.
        UsageError: neither a folder nor a server is given, or the extra is not installed.
    """
    if options.output is None and options.to is None:
        raise UsageError("nowhere to publish to; give --output FOLDER")
    folder = results_folder(results)
    files = dict(zip(archive["path"].to_pylist(), archive["uri"].to_pylist(), strict=True))
    found: Counter[str] = Counter(scans=0, objects=0)
    refused: Counter[str] = Counter()
    for done, row in enumerate(chosen_rows(folder, options), start=1):
        try:
            made = _made(row, files, options)
        except Refused as error:
            refused[str(error)] += 1
        else:
            _write(made, row, options)
            found.update(scans=1, objects=len(made))
        if progress:
            progress(done, options.limit or done)
    _check(refused, found["scans"])
    return {**found, "refused": dict(refused)}


def _made(row: Chosen, files: dict[str, str], options: PublishOptions) -> dict[str, Dataset]:
    location = files.get(row.path)
    if location is None:
        raise Refused("source: no file of that path; is it the root that was scored?")
    source = read_source(location, row.scored.row, options.allow_burned_in)
    return derived_objects(row.scored, source)


def _write(made: dict[str, Dataset], row: Chosen, options: PublishOptions) -> None:
    """A folder per scan, named by its id in hexadecimal digits: ids of patients are in no name."""
    name = f"{row.scan_id % 2**64:016x}"
    for kind, dataset in made.items():
        stream = io.BytesIO()
        dataset.save_as(stream, enforce_file_format=True)
        write_atomically(f"{str(options.output).rstrip('/')}/{name}/{kind}.dcm", stream.getvalue())


def _check(refused: Counter[str], published: int) -> None:
    if not refused:
        return
    reasons = "; ".join(f"{count} x {reason}" for reason, count in refused.most_common())
    raise PublishError(f"{refused.total()} scans were not published, {published} were: {reasons}")
