"""Commands on bundles: export, quantize."""

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from braintumor_ray.cli.console import progress_bar, short_errors
from braintumor_ray.cli.options import Json, anonymous_options, load_source, print_result, takes
from braintumor_ray.engines.options import ExportOptions
from braintumor_ray.evaluation.options import QuantizeOptions

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


@app.command()
@short_errors
@takes(options=QuantizeOptions)
def quantize(
    bundle: Annotated[
        str, typer.Argument(metavar="BUNDLE", help="Folder or URI: RUN/bundle of a run.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="BUNDLE8", help="The new bundle.")
    ],
    options: QuantizeOptions,
    calibrate: Annotated[
        Optional[str],  # noqa: UP045 - typer reads it
        typer.Option(
            metavar="SOURCE", help="Scans for calibration; default: RUN/catalog.parquet, 'train'."
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
