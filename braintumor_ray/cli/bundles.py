"""Commands on bundles: export, quantize; bundle push, bundle pull."""

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from braintumor_ray.cli.console import progress_bar, short_errors
from braintumor_ray.cli.options import (
    BundleArgument,
    Json,
    anonymous_options,
    flag,
    load_source,
    print_result,
    takes,
)
from braintumor_ray.engines.options import ExportOptions
from braintumor_ray.evaluation.options import CALIBRATION, QuantizeOptions

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
    bundle: BundleArgument,
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


@app.command()
@short_errors
@takes(options=QuantizeOptions)
def quantize(
    bundle: BundleArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="BUNDLE8", help="The new bundle.")
    ],
    options: QuantizeOptions,
    calibrate: Annotated[
        Optional[str],  # noqa: UP045 - typer reads it
        typer.Option(
            metavar="SOURCE",
            rich_help_panel=CALIBRATION,
            help="Scans for calibration; default: RUN/catalog.parquet, 'train'.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a bundle with int8 layers for OpenVINO, with its own temperature and threshold.

    Refused (exit 3) where validation scans show another network.
    """
    from braintumor_ray.evaluation.quantization import quantize_bundle

    source = None if calibrate is None else load_source(calibrate, anonymous_options())
    with progress_bar("quantizing") as advance:
        found = quantize_bundle(bundle, output, options, source, advance)
    print_result(found, as_json, _quantized_lines(found))


def _quantized_lines(found: dict[str, Any]) -> str:
    maps = ", ".join(f"{n} {v['mean']:.4f}" for n, v in found["map_correlation"].items())
    return (
        f"bundle: {found['path']} (run it with --engine openvino)\n"
        f"accuracy on {found['n']} validation scans: {found['accuracy_before']:.4f} in float, "
        f"{found['accuracy']:.4f} in int8\n"
        f"correlation of the maps: {maps}\n"
        f"temperature {found['temperature']:.4f}, threshold {found['threshold']:.4f}"
    )


@bundle_app.command()
@short_errors
def push(
    bundle: BundleArgument,
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
