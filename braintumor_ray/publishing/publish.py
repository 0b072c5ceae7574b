"""`publish`: the rows of a results folder as DICOM objects, in a folder or on a server."""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import pyarrow as pa
from pydicom.dataset import Dataset

from braintumor_ray.errors import PublishError, UsageError
from braintumor_ray.predict.results import ResultsFolder, results_folder
from braintumor_ray.publishing.ledger import Ledger
from braintumor_ray.publishing.objects import derived_objects
from braintumor_ray.publishing.options import PublishOptions
from braintumor_ray.publishing.rows import Chosen, chosen_rows
from braintumor_ray.publishing.sending import Make, Senders, Tally
from braintumor_ray.publishing.source import Refused, read_source
from braintumor_ray.storage import write_atomically
from braintumor_ray.types import Progress


def publish(
    results: str, archive: pa.Table, options: PublishOptions, progress: Progress | None = None
) -> dict[str, Any]:
    """Write or send DICOM objects of the rows of DICOM scans.

    Args:
        results: folder or URI.
        archive: catalog rows of the source, with `path` and `uri`, of the root that was scored;
            its headers need not have been read.
        options: which rows, where to.
        progress: told the number of scans done, and of None in all.

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
    folder = results_folder(results)
    files = dict(zip(archive["path"].to_pylist(), archive["uri"].to_pylist(), strict=True))
    tally = Tally()
    with _destination(folder, options, tally) as put, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's and highdicom's repeat names of patients
        for done, row in enumerate(chosen_rows(folder, options), start=1):
            try:
                put(row, partial(_made, row, files, options))
            except Refused as error:
                tally.refused[str(error)] += 1
            if progress:
                progress(done, options.limit or done)
    _check(tally)
    return {**asdict(tally), "refused": dict(tally.refused)}


@contextmanager
def _destination(
    folder: ResultsFolder, options: PublishOptions, tally: Tally
) -> Iterator[Callable[[Chosen, Make], None]]:
    """What puts the objects of a row where they are wanted; they are made only if need be."""
    if options.to is None:
        yield lambda row, make: tally.published(len(_write(make(), row, options)))
        return
    with Ledger(folder, options.to) as ledger, Senders(ledger, options, tally) as senders:
        yield partial(_send, senders=senders, options=options)


def _send(row: Chosen, make: Make, senders: Senders, options: PublishOptions) -> None:
    known = senders.has(row)
    if known and options.output is None:
        return
    made = make()
    if options.output is not None:
        _write(made, row, options)
    if not known:
        senders.send(row, made)


def _made(row: Chosen, files: dict[str, str], options: PublishOptions) -> dict[str, Dataset]:
    location = files.get(row.path)
    if location is None:
        raise Refused("source: no file of that path; is it the root that was scored?")
    source = read_source(location, row.scored.row, options.allow_burned_in, options.mask_burned_in)
    return derived_objects(row.scored, source)


def _write(made: dict[str, Dataset], row: Chosen, options: PublishOptions) -> dict[str, Dataset]:
    """A folder per scan, named by its id in hexadecimal digits: ids of patients are in no name."""
    name = f"{row.scan_id % 2**64:016x}"
    for kind, dataset in made.items():
        stream = io.BytesIO()
        dataset.save_as(stream, enforce_file_format=True)
        write_atomically(f"{str(options.output).rstrip('/')}/{name}/{kind}.dcm", stream.getvalue())
    return made


def _check(tally: Tally) -> None:
    refused = tally.refused
    if not refused:
        return
    reasons = "; ".join(f"{count} x {reason}" for reason, count in refused.most_common())
    raise PublishError(f"{refused.total()} scans were not published, {tally.scans} were: {reasons}")
