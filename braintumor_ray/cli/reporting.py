"""The end of a run: metrics file, `--on-finish`, a last record in the log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import typer

from braintumor_ray.cli.console import INTERRUPTED, log
from braintumor_ray.errors import BrainTumorError, innermost
from braintumor_ray.monitoring.finish import FinishedRun, notify
from braintumor_ray.monitoring.logs import are_json, describe, run_id, without_paths
from braintumor_ray.monitoring.options import RunReport
from braintumor_ray.storage import location_label


@dataclass
class Ending:
    """What a command knows at its end.

    Attributes:
        summary: what it prints with `--json`; None: it did not come so far.
        exit_code: how it ends.
        error: why that is not 0.
    """

    summary: dict[str, Any] | None = None
    exit_code: int = 0
    error: str | None = None


@contextmanager
def reported(command: str, output: str, report: RunReport) -> Iterator[Ending]:
    """Report how the block ends, whatever the end is; reporting never changes it.

    Raises:
        UsageError: the metrics file cannot be written; found before anything is done.
    """
    from braintumor_ray.monitoring.textfile import check_metrics_file

    if report.metrics_file:
        check_metrics_file(report.metrics_file)
    started, ending = time.time(), Ending()
    try:
        yield ending
    except BaseException as error:
        ending.exit_code, ending.error = _exit_of(error, output)
        raise
    finally:
        _tell(_finished(command, output, started, ending), report)


def _exit_of(error: BaseException, output: str) -> tuple[int, str | None]:
    """The exit code that an exception leads to, and its text; paths of scans are hidden."""
    cause = innermost(error)
    if isinstance(cause, BrainTumorError):
        return cause.exit_code, without_paths(str(cause), [output])
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted"
    if isinstance(error, typer.Exit):
        return error.exit_code, None
    return 1, describe(error)


def _finished(command: str, output: str, started: float, ending: Ending) -> FinishedRun:
    return FinishedRun(
        command=command,
        run_id=run_id(),
        results=location_label(output),
        started=started,
        finished=time.time(),
        exit_code=ending.exit_code,
        error=ending.error,
        summary=ending.summary,
    )


def _tell(run: FinishedRun, report: RunReport) -> None:
    from braintumor_ray.monitoring.textfile import write_metrics_file

    if are_json():
        log(f"{run.command} ended", {k: v for k, v in run.document().items() if k != "run_id"})
    if report.metrics_file:
        try:
            write_metrics_file(report.metrics_file, run)
        except (OSError, ValueError) as error:
            log(f"warning: --metrics-file '{report.metrics_file}' was not written: {error}")
    if report.on_finish:
        notify(report.on_finish, run, log)
