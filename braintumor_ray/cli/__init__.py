"""The command line: parse, call one function, print. Heavy modules are imported in commands."""

from pathlib import Path
from typing import Annotated

import typer

from braintumor_ray import __version__
from braintumor_ray.cli import (
    archive,
    bundles,
    data,
    evaluation,
    hospital,
    lake,
    network,
    review,
    scoring,
    serving,
    training,
)
from braintumor_ray.cli.console import log, short_errors
from braintumor_ray.cli.help import use_help
from braintumor_ray.cli.options import Json, Show, print_result, takes
from braintumor_ray.cli.quickstart import QuickstartOptions, run_quickstart

app = typer.Typer(
    name="braintumor-ray",
    help="Brain-tumor MRI classification that scales and explains itself. "
    "Research software, not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
@short_errors
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write it all.")
    ] = (Path("demo-output")),
    show: Show = False,
    as_json: Json = False,
) -> None:
    """Everything on synthetic scans: train, score, verify, report, worklist, pictures.

    No data or network needed. In the same folder it goes on from what is finished.
    """
    from braintumor_ray.cli.demo import run_demo

    found = run_demo(output, log, show=show)
    print_result(found, as_json, "\n".join(f"{key}: {value}" for key, value in found.items()))


@app.command()
@short_errors
@takes(options=QuickstartOptions)
def quickstart(
    source: Annotated[
        str, typer.Argument(metavar="FOLDER|CSV|CATALOG", help="A folder per class, or a table.")
    ],
    options: QuickstartOptions,
    show: Show = False,
    as_json: Json = False,
) -> None:
    """Your own scans, from audit over training to a report and a worklist, in so many minutes.

    Every step is a command, and is printed as it runs. In the same folder it goes on from what is
    finished.
    """
    found = run_quickstart(source, options, _run_command, log, show=show)
    print_result(found, as_json, "\n".join(f"{key}: {value}" for key, value in found.items()))


def _run_command(arguments: list[str]) -> int:
    """Run a command line in this process; its exit code."""
    return app(arguments, standalone_mode=False) or 0


work = (data, training, scoring, archive, lake, hospital)
for group in (*work, evaluation, bundles, serving, network, review):
    app.add_typer(group.app)
use_help(app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, metavar="", help="Print it."),
    ] = False,
) -> None:
    """Brain-tumor MRI classification that scales and explains itself."""


def main() -> None:
    """Entry point of the `braintumor-ray` command."""
    app()
