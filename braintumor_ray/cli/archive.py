"""Commands on an archive and its results: score, verify, explain, worklist."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from braintumor_ray.cli.options import (
    BundleOption,
    Device,
    Json,
    Precision,
    Source,
    check_choice,
    listed,
    print_result,
    takes_catalog_options,
)
from braintumor_ray.console import say, short_errors

if TYPE_CHECKING:
    from braintumor_ray.data.catalog import CatalogOptions

app = typer.Typer()


@app.command()
@short_errors
@takes_catalog_options
def score(
    source: Source,
    bundle: BundleOption,
    output: Annotated[str, typer.Option("--output", "-o", help="The results folder or URI.")],
    limit: Annotated[Optional[int], typer.Option(min=1, help="At most so many new scans.")] = None,  # noqa: UP045
    dry_run: Annotated[bool, typer.Option(help="Say what would be scored, and end.")] = False,
    max_quarantine_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="More unreadable scans than this: exit 3.")
    ] = 0.1,
    retry_quarantined: Annotated[
        bool, typer.Option(help="Score quarantined scans again; newer rows become current.")
    ] = False,
    redact_uri: Annotated[
        bool, typer.Option(help="Keep no path in the results, only its keyed hash.")
    ] = False,
    cam_class: Annotated[
        str, typer.Option(help="Map of the predicted class, or of the likeliest positive one.")
    ] = "predicted",
    block_size: Annotated[int, typer.Option(min=1, help="Scans per commit.")] = 256,
    batch_size: Annotated[Optional[int], typer.Option(min=1, help="Per forward pass.")] = None,  # noqa: UP045
    num_predictors: Annotated[str, typer.Option(help="Predictors, or MIN:MAX.")] = "1",
    device: Device = "auto",
    precision: Precision = "auto",
    decode_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds after which a decoder counts as stalled.")
    ] = 30.0,
    as_json: Json = False,
    *,
    catalog_options: "CatalogOptions",
) -> None:
    """Score what is new in an archive: predictions and heatmaps as Parquet, exactly once.

    Run it every night, and again after any crash. Unreadable scans become rows with a reason.
    """
    from braintumor_ray.commands import score_command

    check_choice("--cam-class", cam_class, ("predicted", "positive"))
    check_choice("--precision", precision, ("auto", "fp32", "bf16"))
    found = score_command(
        source=source,
        bundle=bundle,
        output=output,
        limit=limit,
        dry_run=dry_run,
        retry_quarantined=retry_quarantined,
        redact_uri=redact_uri,
        cam_class=cam_class,
        block_size=block_size,
        batch_size=batch_size,
        num_predictors=num_predictors,
        device=device,
        precision=precision,
        decode_timeout=decode_timeout,
        catalog_options=catalog_options,
    )
    print_result(found, as_json, _score_lines(found, output))
    _gate_quarantine(found, max_quarantine_fraction)


@app.command()
@short_errors
def verify(
    results: Annotated[str, typer.Argument(help="A results folder or URI.")],
    as_json: Json = False,
) -> None:
    """Check that every scan has one current row, and nothing else; exit 3 if not."""
    from dataclasses import asdict

    from braintumor_ray.errors import GateError
    from braintumor_ray.scoring.verify import verify as check

    report = check(results)
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
        str, typer.Option(help="urgency (tumour probability) or usefulness (of a label: entropy).")
    ] = "urgency",
    limit: Annotated[Optional[int], typer.Option(min=1, help="At most so many scans.")] = None,  # noqa: UP045
    overlays: Annotated[int, typer.Option(min=0, help="Scans with a picture on the page.")] = 50,
    as_json: Json = False,
) -> None:
    """Sort scored scans and patients for a reviewer: CSV and a page, from Parquet alone.

    The CSV has an empty label column: fill it in and give it to 'catalog' to train on.
    """
    from braintumor_ray.evaluation.worklist import make_worklist

    check_choice("--by", by, ("urgency", "usefulness"))
    found = make_worklist(results, output, by, limit, overlays)  # type: ignore[arg-type]
    print_result(found, as_json, listed(found))


def _score_lines(found: dict[str, Any], output: str) -> str:
    if "would_score" in found:
        return f"{found['would_score']} of {found['scans']} scans would be scored into {output}"
    if found["generation"] is None:
        return f"nothing new: all {found['known']} scans are scored in {output}"
    counts = ", ".join(f"{name} {n}" for name, n in found["status"].items())
    classes = ", ".join(f"{name} {n}" for name, n in found["classes"].items())
    lines = [
        f"{found['scans']} scans in {output}: {counts}",
        f"classes: {classes}",
        f"{found['seconds']:.1f} s, {found['scans_per_s']:.0f} scans/s",
    ]
    if found["share_of_model_speed"] is not None:
        lines[-1] += f" ({found['share_of_model_speed']:.0%} of the model's own speed)"
    lines += [f"quarantined: {reason} ({n})" for reason, n in list(found["reasons"].items())[:5]]
    return "\n".join(lines)


def _gate_quarantine(found: dict[str, Any], most: float) -> None:
    from braintumor_ray.errors import GateError

    share = found.get("quarantine_fraction", 0.0)
    if share > most:
        raise GateError(
            f"{share:.1%} of the scans are quarantined, over --max-quarantine-fraction {most}; "
            "the rows are committed: look at their reasons"
        )
