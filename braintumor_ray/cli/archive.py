"""Commands on results: verify, explain, worklist, studies."""

import json
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from braintumor_ray.cli.console import log, progress_bar, short_errors
from braintumor_ray.cli.options import Json, Results, check_choice, listed, print_result, takes
from braintumor_ray.errors import UsageError
from braintumor_ray.worklist.options import ORDERS, SETS, ExplainOptions

app = typer.Typer()


@app.command()
@short_errors
def verify(
    results: Results,
    newest: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, metavar="N", help="Read the rows of so many runs only, the newest."),
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
            log(f"differs: {difference}")
        raise GateError(f"'{results}' has {len(report.differences)} differences")
    print_result(
        asdict(report), as_json, f"{report.scans} scans, each with one current row: verified"
    )


@app.command()
@short_errors
@takes(options=ExplainOptions)
def explain(
    options: ExplainOptions,
    files: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(metavar="[FILE|FOLDER]...", help="Images, or folders of them."),
    ] = None,
    bundle: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--bundle", "-b", metavar="BUNDLE", help="For files."),
    ] = None,
    results: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="RESULTS", help="Draw rows of these results; needs no model."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Of the pictures.")
    ] = Path("explained"),
    as_json: Json = False,
) -> None:
    """Draw scan, heatmap and overlay, for files or for rows that were scored."""
    from braintumor_ray.worklist.explained import explain_files, explain_results

    if results is not None:
        if files or bundle:
            raise UsageError("--results draws stored rows; leave out files and --bundle")
        with progress_bar("drawing") as advance:
            found = explain_results(results, output, options, advance)
    elif files and bundle:
        with progress_bar("explaining") as advance:
            found = explain_files(files, bundle, output, options, advance)
    else:
        raise UsageError("give image files and --bundle, or --results")
    for name, reason in found["unreadable"].items():
        log(f"warning: not drawn: {name}: {reason}")
    if found["burned_in"]:
        log(
            f"warning: {len(found['burned_in'])} of the scans drawn seem to carry burned-in text, "
            "which can name a patient; look before you share their pictures"
        )
    print_result(found, as_json, "\n".join(found["pictures"]))


@app.command()
@short_errors
def worklist(
    results: Results,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Of the lists.")
    ] = Path("worklist"),
    by: Annotated[
        str,
        typer.Option(
            metavar="|".join(ORDERS), help="Tumor probability, or entropy: what to label next."
        ),
    ] = "urgency",
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="At most so many scans.")
    ] = None,
    overlays: Annotated[
        int, typer.Option(min=0, metavar="N", help="Scans with a picture on the page.")
    ] = 50,
    sets: Annotated[
        str,
        typer.Option(
            metavar="|".join(SETS),
            help="Only scans whose prediction set is so; unsure: not one class.",
        ),
    ] = "all",
    as_json: Json = False,
) -> None:
    """Sort scored scans and patients for a reviewer: CSV and a page, from Parquet alone.

    The CSV has an empty label column: fill it in and give it to 'catalog' to train on.
    """
    from braintumor_ray.worklist.worklist import make_worklist

    check_choice("--by", by, ORDERS)
    check_choice("--sets", sets, SETS)
    found = make_worklist(results, output, by, limit, overlays, sets)  # type: ignore[arg-type]
    print_result(found, as_json, _worklist_lines(found, str(output)))


@app.command()
@short_errors
def studies(
    results: Results,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="The table: .csv or .parquet.")
    ],
    level: Annotated[
        str, typer.Option(metavar="series|study|patient", help="What makes a row.")
    ] = "series",
    aggregate: Annotated[
        str,
        typer.Option(
            metavar="max|mean", help="Decide by the most probable slice, or by the slices' mean."
        ),
    ] = "max",
    rule: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="EVALUATION",
            help="Decide as this folder of `evaluate` chose on validation; no --aggregate.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Roll scored slices up to series, studies or patients: a row each, the most urgent first.

    Out-of-domain slices are counted and not used. A scan without a key is a row of its own.
    """
    from dataclasses import asdict

    from braintumor_ray.predict import study

    check_choice("--level", level, study.LEVELS)
    check_choice("--aggregate", aggregate, study.AGGREGATES)
    decide = study.chosen_rule(rule, results, level) if rule else study.StudyRule(aggregate)  # type: ignore[arg-type]
    table = study.write_studies(results, output, level, decide)  # type: ignore[arg-type]
    how = {name: value for name, value in asdict(decide).items() if value is not None}
    found = {"output": output, "level": level, **how, **study.summarize_studies(table)}
    print_result(found, as_json, listed(found))


def _worklist_lines(found: dict[str, Any], output: str) -> str:
    """What was ranked, and where the lists are."""
    lines = [f"{found['scans']} of {found['ranked']} scans with a prediction, by {found['by']}"]
    if found["patients"] is not None:
        lines[0] += f", of {found['patients']} patients"
    lines.append(f"decision positive: {found['positive']}")
    lines += [f"not ranked, {status}: {count}" for status, count in found["not_ranked"].items()]
    lines += found["shifts"]
    folder = output.rstrip("/")
    return "\n".join([*lines, *(f"{folder}/{name}" for name in reversed(found["files"]))])
