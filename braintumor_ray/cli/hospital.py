"""Commands for a hospital's archive: publish."""

from dataclasses import replace
from typing import Annotated

import typer

from braintumor_ray.catalog.options import IdentityChoice
from braintumor_ray.cli.console import progress_bar, short_errors
from braintumor_ray.cli.options import (
    Json,
    Results,
    anonymous_options,
    load_source,
    print_result,
    takes,
)
from braintumor_ray.publishing.options import PublishOptions

app = typer.Typer()


@app.command()
@short_errors
@takes(options=PublishOptions)
def publish(
    results: Results,
    source: Annotated[
        str,
        typer.Option(
            metavar="FOLDER|CSV|CATALOG|URI", help="The scans as they were scored; read again."
        ),
    ],
    options: PublishOptions,
    as_json: Json = False,
) -> None:
    """Make DICOM objects of results: Parametric Maps, a report (TID 1500), a capture.

    They refer to their scans and carry their patient (extra 'hospital'). Research use only.
    """
    from braintumor_ray.dicomweb.query import is_dicomweb
    from braintumor_ray.publishing.publish import publish as make
    from braintumor_ray.scoring.pacs import scored_objects

    if is_dicomweb(source):
        IdentityChoice(options.hash_key_file).load()  # the key opens the URIs, too
        archive = scored_objects(results, source)
    else:
        archive = load_source(source, replace(anonymous_options(), probe_headers=False))
    with progress_bar("publishing") as advance:
        found = make(results, archive, options, advance)
    before = f"; {found['sent_before']} scans were there already" if found["sent_before"] else ""
    print_result(found, as_json, f"{found['scans']} scans: {found['objects']} objects{before}")
