"""The command of people who look at scored scans: review."""

from dataclasses import replace
from typing import Annotated, Optional

import typer

from braintumor_ray.cli.console import log, short_errors
from braintumor_ray.cli.options import (
    Host,
    Json,
    Port,
    Results,
    anonymous_options,
    load_source,
    print_result,
    takes,
)
from braintumor_ray.errors import UsageError
from braintumor_ray.review.options import ReviewOptions

app = typer.Typer()


@app.command()
@short_errors
@takes(options=ReviewOptions)
def review(
    results: Results,
    options: ReviewOptions,
    source: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="FOLDER|CSV|CATALOG|URI",
            help="Where the scans are now, if not where they were scored.",
        ),
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 8100,
    as_json: Json = False,
) -> None:
    """Look at scored scans in a browser and label them; ends with Ctrl-C. See docs/review.md.

    Every label is on the disk before the page says so. 'train --labels FILE' learns from them.
    """
    from braintumor_ray.review.command import review_command
    from braintumor_ray.review.export import export_review, exported

    archive = None
    if source is not None:
        archive = load_source(source, replace(anonymous_options(), probe_headers=False))
    if options.output is not None and options.export is None:
        raise UsageError(f"--output '{options.output}' is of --export; add --export coco|fiftyone")
    if options.export is not None:
        written = export_review(results, archive, options)
        print_result(written, as_json, exported(written, log))
        return
    found = review_command(results, archive, options, host, port, log)
    text = f"{found['done']} of {found['total']} scans reviewed: {found['labels']}"
    if found["done"]:
        log(f"to learn from them: braintumor-ray train SOURCE --labels {found['labels']}")
    print_result(found, as_json, text)
