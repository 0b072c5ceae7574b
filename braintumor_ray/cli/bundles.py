"""Commands on bundles: export."""

from pathlib import Path
from typing import Annotated

import typer

from braintumor_ray.cli.console import short_errors
from braintumor_ray.cli.options import Json, print_result, takes
from braintumor_ray.engines.options import ExportOptions

app = typer.Typer()


@app.command()
@short_errors
@takes(options=ExportOptions)
def export(
    bundle: Annotated[
        str, typer.Argument(metavar="BUNDLE", help="Folder or URI: RUN/bundle of a run.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The graph.")],
    options: ExportOptions,
    as_json: Json = False,
) -> None:
    """Write network and heatmaps as one graph: uint8 squares in, probabilities and maps out.

    A card and an example that needs no torch go into the same folder.
    """
    from braintumor_ray.engines.export import export_bundle

    found = export_bundle(bundle, output, options)
    print_result(found, as_json, "\n".join(found["files"]))
