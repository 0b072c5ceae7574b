"""Commands on results: verify, explain, worklist."""

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from braintumor_ray.cli.console import say, short_errors
from braintumor_ray.cli.options import (
    Device,
    Json,
    check_choice,
    listed,
    print_result,
)

app = typer.Typer()


@app.command()
@short_errors
def verify(
    results: Annotated[str, typer.Argument(help="A results folder or URI.")],
    newest: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Read the rows of so many runs only, the newest."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that every scan has one current row, and nothing else; exit 3 if not."""
    from dataclasses import asdict

    from braintumor_ray.errors import GateError
    from braintumor_ray.scoring.verify import verify as check

    report = check(results, newest)
    if report.differences:
        if as_json:
            typer.echo(json.dumps(asdict(report)))
        for difference in report.differences:
            say(f"differs: {difference}")
        raise GateError(f"'{results}' has {len(report.differences)} differences")
    print_result(
        asdict(report), as_json, f"{report.scans} scans, each with one current row: verified"
    )


@app.command()
@short_errors
def explain(
    files: Annotated[Optional[list[str]], typer.Argument(help="Images to explain.")] = None,  # noqa: UP045
    bundle: Annotated[Optional[str], typer.Option("--bundle", "-b", help="For files.")] = None,  # noqa: UP045
    results: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Draw rows of a results folder instead; needs no model."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the pictures.")] = (
        Path("explained")
    ),
    method: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="gradcam, gradcam_pp, ... or any of the grad-cam library (scorecam)."),
    ] = None,
    layer: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Module of the backbone, for methods of the grad-cam library."),
    ] = None,
    layout: Annotated[str, typer.Option(help="full (a row per method) or compact.")] = "full",
    colormap: Annotated[str, typer.Option(help="jet, turbo, inferno, viridis, ...")] = "jet",
    alpha: Annotated[float, typer.Option(min=0, max=1, help="Opacity of the heatmap.")] = 0.4,
    limit: Annotated[int, typer.Option(min=1, help="At most so many rows of --results.")] = 24,
    cam_class: Annotated[str, typer.Option(help="predicted or positive.")] = "predicted",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Draw scan, heatmap and overlay, for files or for rows that were scored."""
    from braintumor_ray.commands import explain_command

    check_choice("--layout", layout, ("full", "compact"))
    check_choice("--cam-class", cam_class, ("predicted", "positive"))
    found = explain_command(
        files=files or [],
        bundle=bundle,
        results=results,
        output=output,
        methods=method or ["gradcam", "gradcam_pp"],
        layer=layer,
        layout=layout,
        colormap=colormap,
        alpha=alpha,
        limit=limit,
        cam_class=cam_class,
        device=device,
    )
    print_result(found, as_json, "\n".join(found["pictures"]))


@app.command()
@short_errors
def worklist(
    results: Annotated[str, typer.Argument(help="A results folder or URI.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the lists.")] = Path(
        "worklist"
    ),
    by: Annotated[
        str, typer.Option(help="urgency (tumor probability) or usefulness (of a label: entropy).")
    ] = "urgency",
    limit: Annotated[Optional[int], typer.Option(min=1, help="At most so many scans.")] = None,  # noqa: UP045
    overlays: Annotated[int, typer.Option(min=0, help="Scans with a picture on the page.")] = 50,
    as_json: Json = False,
) -> None:
    """Sort scored scans and patients for a reviewer: CSV and a page, from Parquet alone.

    The CSV has an empty label column: fill it in and give it to 'catalog' to train on.
    """
    from braintumor_ray.worklist.worklist import make_worklist

    check_choice("--by", by, ("urgency", "usefulness"))
    found = make_worklist(results, output, by, limit, overlays)  # type: ignore[arg-type]
    print_result(found, as_json, listed(found))
