"""Commands on a trained bundle: neurons."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from braintumor_ray.cli.options import (
    BundleOption,
    Device,
    Json,
    Source,
    anonymous_options,
    listed,
    load_source,
    print_result,
)
from braintumor_ray.console import progress_bar, short_errors

if TYPE_CHECKING:
    pass

app = typer.Typer()


@app.command()
@short_errors
def neurons(
    source: Source,
    bundle: BundleOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the tables.")] = Path(
        "neurons"
    ),
    limit: Annotated[Optional[int], typer.Option(min=1, help="At most so many scans.")] = None,  # noqa: UP045
    top: Annotated[int, typer.Option(min=1, help="Neurons shown per class.")] = 6,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Which features of the last layer follow which class, and which scans excite them most."""
    from braintumor_ray.evaluation.neurons import NeuronOptions, run_neurons

    table = load_source(source, anonymous_options())
    with progress_bar("neurons") as advance:
        found = run_neurons(
            table, bundle, output, NeuronOptions(device=device, top=top, limit=limit), advance
        )
    print_result(found, as_json, listed(found))
