"""Commands that score an archive: score, nightly."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from braintumor_ray.cli.console import say, short_errors
from braintumor_ray.cli.options import (
    BundleOption,
    Device,
    Json,
    Precision,
    Source,
    check_choice,
    print_result,
    takes_catalog_options,
    with_options,
)

if TYPE_CHECKING:
    from braintumor_ray.archive_commands import ScoreChoices
    from braintumor_ray.catalog.schema import CatalogOptions

app = typer.Typer()
Output = Annotated[str, typer.Option("--output", "-o", help="The results folder or URI.")]

_SCORE_OPTIONS: dict[str, tuple[Any, Any]] = {
    "limit": (
        Annotated[Optional[int], typer.Option(min=1, help="At most so many new scans.")],  # noqa: UP045
        None,
    ),
    "max_quarantine_fraction": (
        Annotated[float, typer.Option(min=0, max=1, help="More unreadable scans: exit 3.")],
        0.1,
    ),
    "retry_quarantined": (
        Annotated[
            bool, typer.Option(help="Score quarantined scans again; newer rows become current.")
        ],
        False,
    ),
    "redact_uri": (
        Annotated[bool, typer.Option(help="Keep no path in the results, only its keyed hash.")],
        False,
    ),
    "cam_class": (
        Annotated[
            str, typer.Option(help="Map of the predicted class, or of the likeliest positive one.")
        ],
        "predicted",
    ),
    "block_size": (Annotated[int, typer.Option(min=1, help="Scans per commit.")], 256),
    "batch_size": (
        Annotated[Optional[int], typer.Option(min=1, help="Per forward pass.")],  # noqa: UP045
        None,
    ),
    "num_predictors": (
        Annotated[
            str, typer.Option(help="Predictors, MIN:MAX, or auto (as GPUs or nodes have room).")
        ],
        "auto",
    ),
    "cpus_per_decode": (
        Annotated[float, typer.Option(min=0.1, help="Logical CPUs that a decoder takes.")],
        1.0,
    ),
    "gpus_per_predictor": (
        Annotated[
            Optional[float],  # noqa: UP045
            typer.Option(min=0.01, help="Share of a GPU, such as 0.5 (default: 1 where any)."),
        ],
        None,
    ),
    "object_store_fraction": (
        Annotated[
            float, typer.Option(min=0.05, max=1, help="Of Ray's memory for scans in flight.")
        ],
        0.5,
    ),
    "device": (Device, "auto"),
    "precision": (Precision, "auto"),
    "decode_timeout": (
        Annotated[
            float, typer.Option(min=0.1, help="Seconds after which a decoder counts as stalled.")
        ],
        30.0,
    ),
}


def _score_choices(**values: Any) -> "ScoreChoices":  # noqa: ANN401 - as typer passes them
    from braintumor_ray.archive_commands import ScoreChoices

    check_choice("--cam-class", values["cam_class"], ("predicted", "positive"))
    check_choice("--precision", values["precision"], ("auto", "fp32", "bf16"))
    return ScoreChoices(**values)


def takes_score_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a scoring run; it gets them as one `choices`."""
    return with_options(command, "choices", _SCORE_OPTIONS, _score_choices)


@app.command()
@short_errors
@takes_score_options
@takes_catalog_options
def score(
    source: Source,
    bundle: BundleOption,
    output: Output,
    dry_run: Annotated[bool, typer.Option(help="Say what would be scored, and end.")] = False,
    plan: Annotated[
        bool, typer.Option(help="Say what it would ask of a cluster, from a measured sample.")
    ] = False,
    gpu_scans_per_s: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=1, help="For --plan: what one GPU predicts, where none is here."),
    ] = None,
    as_json: Json = False,
    *,
    choices: "ScoreChoices",
    catalog_options: "CatalogOptions",
) -> None:
    """Score what is new in an archive: predictions and heatmaps as Parquet, exactly once.

    Run it every night, and again after any crash. Unreadable scans become rows with a reason.
    """
    from braintumor_ray.archive_commands import dry_run_command, plan_command, score_command

    arguments = (source, bundle, output, choices, catalog_options)
    if plan:
        found = plan_command(*arguments, gpu_scans_per_s)
        print_result(found, as_json, "\n".join(found["lines"]))
        return
    if dry_run:
        found = dry_run_command(*arguments)
        text = f"{found['would_score']} of {found['scans']} scans would be scored into {output}"
        print_result(found, as_json, text)
        return
    found = score_command(*arguments)
    print_result(found, as_json, _score_lines(found, output))
    _gate_quarantine(found, choices.max_quarantine_fraction)


@app.command()
@short_errors
@takes_score_options
@takes_catalog_options
def nightly(
    source: Source,
    bundle: BundleOption,
    output: Output,
    verify_all: Annotated[
        bool, typer.Option(help="Verify every row ever scored, not only tonight's.")
    ] = False,
    as_json: Json = False,
    *,
    choices: "ScoreChoices",
    catalog_options: "CatalogOptions",
) -> None:
    """Score what is new, verify it, and compare it with the last 7 runs; exit 3 on drift.

    Safe to start twice: one of two gives up. Exit 1: something failed, run it again. Exit 3: it
    is committed, and too many scans are quarantined, 'verify' found a difference, or class
    shares, entropy or quarantine share differ from the last runs by more than chance.
    """
    from braintumor_ray.archive_commands import nightly_command
    from braintumor_ray.errors import GateError

    found = nightly_command(source, bundle, output, choices, catalog_options, verify_all)
    night = found["night"]
    lines = [_score_lines(found, output), *night["report"]]
    print_result(found, as_json, "\n".join(lines))
    for gate in night["gates"]:
        say(f"gate: {gate}")
    if night["gates"]:
        raise GateError(
            f"{len(night['gates'])} gates not met in '{output}'; the rows are committed"
        )


def _score_lines(found: dict[str, Any], output: str) -> str:
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
