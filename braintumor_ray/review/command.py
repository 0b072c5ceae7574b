"""What `braintumor-ray review` does: a server of this machine, without Ray."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import uvicorn

from braintumor_ray.errors import UsageError
from braintumor_ray.predict.results import results_folder
from braintumor_ray.progress import Log
from braintumor_ray.review.explainer import Explainer
from braintumor_ray.review.log import LabelLog
from braintumor_ray.review.options import LABELS, ReviewOptions
from braintumor_ray.review.pictures import Pictures
from braintumor_ray.review.scans import RankedScans
from braintumor_ray.review.web import Review, create_app
from braintumor_ray.serving.command import authority, check_port, is_loopback
from braintumor_ray.serving.settings import ServingSettings, token_digest
from braintumor_ray.storage import is_local


def labels_file(results: str, chosen: str | None) -> str:
    """Where labels go.

    Raises:
        UsageError: none was chosen, and the results are not on this machine.
    """
    if chosen is not None:
        return chosen
    if not is_local(results):
        raise UsageError(
            f"'{results}' is on an object store, where lines cannot be appended; give a local "
            "--labels FILE.jsonl"
        )
    return f"{results.rstrip('/')}/{LABELS}"


@contextmanager
def opened(results: str, source: pa.Table | None, options: ReviewOptions) -> Iterator[Review]:
    """A review of a results folder; labels are also written as a table when it ends.

    Raises:
        ResultsError: no results, or no scan was scored.
        UsageError: the file of labels cannot be written, or the bundle is another one.
    """
    folder = results_folder(results)
    scans = RankedScans.load(folder, source)
    network = None
    if options.bundle is not None:
        network = Explainer(options.bundle, options.device, folder)
    label_log = LabelLog(labels_file(results, options.labels))
    pictures = Pictures()
    try:
        yield Review(scans, label_log, pictures, network, options.order, options.reviewer)
    finally:
        pictures.close()
        if label_log.count:
            label_log.write_table()
        label_log.close()


def review_command(
    results: str,
    source: pa.Table | None,
    options: ReviewOptions,
    host: str,
    port: int,
    log: Log,
) -> dict[str, object]:
    """Serve until stopped; blocks.

    Args:
        results: the folder, a path or URI.
        source: catalog of where the scans are now; None: where they were scored.
        options: see `ReviewOptions`.
        host: address to listen on.
        port: TCP port.
        log: prints a line for people.

    Returns:
        `labels` (the file), `done` and `total`.

    Raises:
        UsageError: the port is taken, the token cannot be used, or as for `opened`.
    """
    check_port(host, port)
    digest = token_digest(ServingSettings(bundle="", token_file=options.token_file))
    if digest is None and not is_loopback(host):
        raise UsageError(
            f"--host {host} is reached by others, and no token is set; set BRAINTUMOR_TOKEN or "
            "give --token-file"
        )
    with opened(results, source, options) as review:
        progress = review.progress()
        log(f"{progress['total']} scans, {progress['done']} of them reviewed, from {results}")
        log(f"open http://{authority(host, port)}/ ; labels go to {review.log.path}")
        log("token: " + ("asked for" if digest else "none (set BRAINTUMOR_TOKEN)"))
        log("research software, not a medical device; Ctrl-C ends it")
        config = uvicorn.Config(
            create_app(review, digest, host),
            host=host,
            port=port,
            log_level="warning",
            lifespan="off",
            access_log=False,  # nothing about who looked at what
            timeout_graceful_shutdown=5,
        )
        # uvicorn ends in order and then raises the signal that ended it once more.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            uvicorn.Server(config).run()
        except KeyboardInterrupt:
            log("ended")
        finally:
            signal.signal(signal.SIGTERM, before)
        found = review.progress()
        return {"labels": str(review.log.path), "done": found["done"], "total": found["total"]}
