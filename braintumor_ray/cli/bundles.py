"""Commands on bundles: export; bundle push, bundle pull."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from braintumor_ray.cli.console import short_errors
from braintumor_ray.cli.options import Json, flag, print_result, takes
from braintumor_ray.engines.options import ExportOptions

app = typer.Typer()
bundle_app = typer.Typer(help="Bundles to and from the Hugging Face Hub.", no_args_is_help=True)
app.add_typer(bundle_app, name="bundle")
Place = Annotated[
    str,
    typer.Argument(
        metavar="FOLDER|HUB_ID", help="A folder or URI, or OWNER/NAME (hf://OWNER/NAME) of the Hub."
    ),
]


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


@bundle_app.command()
@short_errors
def push(
    bundle: Annotated[
        str, typer.Argument(metavar="BUNDLE", help="Folder or URI: RUN/bundle of a run.")
    ],
    place: Place,
    license_id: Annotated[
        str,
        typer.Option("--license", metavar="ID", help="Of the weights, as the Hub names licenses."),
    ] = "unknown",
    public: Annotated[bool, flag("Everybody may read the repository.", "--public")] = False,
    as_json: Json = False,
) -> None:
    """Write a bundle in the layout of the Hugging Face Hub: a folder, or a private repository."""
    from braintumor_ray.models.hub import push_bundle

    where = push_bundle(bundle, place, license_id=license_id, public=public)
    print_result({"pushed": where}, as_json, f"bundle pushed to {where}")


@bundle_app.command()
@short_errors
def pull(
    place: Place,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder to write.")],
    revision: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="NAME", help="Branch, tag or commit of a repository."),
    ] = None,
    fingerprint: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="HEX", help="The bundle must have it; else what its card says."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Read a bundle from the layout of the Hugging Face Hub; its fingerprint is checked."""
    from braintumor_ray.models.hub import pull_bundle

    found = pull_bundle(place, bundle, revision=revision, fingerprint=fingerprint)
    result = {"bundle": str(bundle), "fingerprint": found.fingerprint}
    print_result(result, as_json, f"{bundle}: bundle {found.fingerprint}")
