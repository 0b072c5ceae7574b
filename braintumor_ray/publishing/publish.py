"""`publish`: the rows of a results folder as DICOM objects, in a folder or on a server."""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any, TypeAlias

import pyarrow as pa
from pydicom.dataset import Dataset

from braintumor_ray.errors import PublishError, UsageError
from braintumor_ray.predict.results import ResultsFolder, results_folder
from braintumor_ray.publishing.ledger import Ledger
from braintumor_ray.publishing.objects import Frame, derived_objects
from braintumor_ray.publishing.options import PublishOptions
from braintumor_ray.publishing.rows import Chosen, chosen_rows
from braintumor_ray.publishing.sending import PublishCounts, Senders
from braintumor_ray.publishing.series import by_series, maps_of
from braintumor_ray.publishing.source import Refused, SourceFrame, read_source
from braintumor_ray.storage import write_atomically
from braintumor_ray.types import Progress

Make: TypeAlias = Callable[[list[Chosen]], tuple[list[Chosen], dict[str, Dataset]]]


def publish(
    results: str, archive: pa.Table, options: PublishOptions, progress: Progress | None = None
) -> dict[str, Any]:
    """Write or send DICOM objects of the rows of DICOM scans.

    Args:
        results: folder or URI.
        archive: catalog rows of the source, with `path` and `uri`, of the root that was scored;
            its headers need not have been read.
        options: which rows, where to.
        progress: called with the number of scans done, and of None in all.

    Returns:
        `scans` published, `objects` of them, `sent_before` (scans that the server has from an
        earlier call), `refused` (counts by reason).

    Raises:
        PublishError: nothing to publish, or some scans were refused: the others are published;
            the server is down, refuses access, or its TLS is not verified.
        UsageError: neither a folder nor a server is given, or the extra is not installed.
    """
    if options.output is None and options.to is None:
        raise UsageError("nowhere to publish to; give --output FOLDER or --to URL|AE@HOST:PORT")
    whole = options.map_per == "series"
    if whole and options.output is not None and options.to is not None:
        raise UsageError("--map-per series goes to a folder or to a server: leave out one of them")
    folder = results_folder(results)
    files = dict(zip(archive["path"].to_pylist(), archive["uri"].to_pylist(), strict=True))
    counts, done = PublishCounts(), 0
    rows = chosen_rows(folder, options)
    with _destination(folder, options, counts) as put, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's and highdicom's repeat names of patients
        for unit in by_series(rows) if whole else ([row] for row in rows):
            put(unit, partial(_made, files=files, options=options, counts=counts))
            done += len(unit)
            if progress:
                progress(done, options.limit or done)
    _check(counts)
    return {**asdict(counts), "refused": dict(counts.refused)}


@contextmanager
def _destination(
    folder: ResultsFolder, options: PublishOptions, counts: PublishCounts
) -> Iterator[Callable[[list[Chosen], Make], None]]:
    """What puts the objects of rows where they are wanted; they are made only if need be."""
    if options.to is None:
        yield partial(_only_write, options=options, counts=counts)
        return
    with Ledger(folder, options.to) as ledger, Senders(ledger, options, counts) as senders:
        yield partial(_send, senders=senders, options=options)


def _only_write(
    rows: list[Chosen], make: Make, options: PublishOptions, counts: PublishCounts
) -> None:
    kept, made = make(rows)
    _write(made, options)
    counts.published(len(made), len(kept))


def _send(rows: list[Chosen], make: Make, senders: Senders, options: PublishOptions) -> None:
    new = [row for row in rows if not senders.has(row)]
    wanted = rows if options.output is not None else new
    if not wanted:
        return
    kept, made = make(wanted)
    if options.output is not None:
        _write(made, options)
    if new and kept:
        senders.send(kept, list(made.values()))


def _made(
    rows: list[Chosen], files: dict[str, str], options: PublishOptions, counts: PublishCounts
) -> tuple[list[Chosen], dict[str, Dataset]]:
    """The rows that are not refused, and their objects by path."""
    kept: list[Chosen] = []
    made: dict[str, Dataset] = {}
    frames: list[Frame] = []
    for row in rows:
        try:
            source = _source(row, files, options)
            own = derived_objects(row.scored, source, maps=not row.per_series)
        except Refused as error:
            counts.refused[str(error)] += 1
            continue
        kept.append(row)
        made |= {f"{row.folder}/{kind}": each for kind, each in own.items()}
        frames.append((row.scored, source))
    if options.map_per == "scan" or not kept:
        return kept, made
    try:
        return kept, made | maps_of(frames)
    except Refused as error:
        counts.refused[str(error)] += len(kept)
        return [], {}


def _source(row: Chosen, files: dict[str, str], options: PublishOptions) -> SourceFrame:
    location = files.get(row.path)
    if location is None:
        raise Refused("source: no file of that path; is it the root that was scored?")
    return read_source(location, row.scored.row, options.allow_burned_in, options.mask_burned_in)


def _write(made: dict[str, Dataset], options: PublishOptions) -> None:
    for name, dataset in made.items():
        stream = io.BytesIO()
        dataset.save_as(stream, enforce_file_format=True)
        write_atomically(f"{str(options.output).rstrip('/')}/{name}.dcm", stream.getvalue())


def _check(counts: PublishCounts) -> None:
    refused = counts.refused
    if not refused:
        return
    reasons = "; ".join(f"{count} x {reason}" for reason, count in refused.most_common())
    raise PublishError(
        f"{refused.total()} scans were not published, {counts.scans} were: {reasons}"
    )
