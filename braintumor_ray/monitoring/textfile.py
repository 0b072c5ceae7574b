"""Figures of runs that have ended, as Prometheus text for node_exporter's textfile collector.

A night ends, and its own metrics end with it. The file stays, and a run that fails keeps what it
does not know: the time of the last success, and the figures of the last generation.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from braintumor_ray import __version__
from braintumor_ray.errors import GateError, UsageError
from braintumor_ray.monitoring.finish import FinishedRun

PREFIX = "braintumor_ray"
_OF_RUN = {
    "last_run_timestamp_seconds": "when the last run ended",
    "last_run_duration_seconds": "of the last run, with cataloging and its gates",
    "last_run_exit_code": "of the last run: 0 done, 1 failed, 2 usage, 3 a gate is not met",
    "last_run_new_scans": "rows that the last run has committed",
    "last_success_timestamp_seconds": "when a run last did all its work (exit code 0 or 3)",
    "gates_not_met": "of the last run that did its work",
    "known_scans": "scans of the source that have a row",
    "backlog_scans": "scans of the source that --limit left for later runs",
}
_OF_GENERATION = {
    "generation_scans": "rows of the newest generation",
    "generation_class_scans": "readable rows of the newest generation",
    "quarantine_ratio": "unreadable rows of the newest generation, a share",
    "out_of_domain_ratio": "readable rows unlike the training scans, a share",
    "mean_entropy": "of the newest generation's predictions, 0 to 1",
    "scans_per_second": "of the newest generation's run",
    "model_scans_per_second": "that one predictor alone would reach",
    "shift_distance": "of the newest generation's mean scan from the training scans",
    "shift_limit": "what chance and usual differences explain",
    "drift_distance": "of a figure from those of the last runs",
    "drift_limit": "more is drift",
    "drifts": "1: the figure differs from those of the last runs by more than chance",
    "bundle_info": "what made the newest generation; always 1",
}
HELP = _OF_RUN | _OF_GENERATION


class Sample(NamedTuple):
    """One value of a metric; the name is without the prefix."""

    name: str
    value: float
    labels: Mapping[str, str] = {}


def check_metrics_file(path: str) -> None:
    """Refuse a file that could not be written at the end, before there is anything to write.

    Raises:
        UsageError: its folder is not there or not writable.
    """
    folder = Path(path).absolute().parent
    if not os.access(folder, os.W_OK):
        raise UsageError(f"--metrics-file '{path}': cannot write into '{folder}'; make the folder")
    if not path.endswith(".prom"):
        raise UsageError(
            f"--metrics-file '{path}': node_exporter reads only files that end with .prom"
        )


def write_metrics_file(path: str, run: FinishedRun) -> None:
    """Replace the file by the figures of a run, and by earlier ones that it does not know.

    Raises:
        OSError: it cannot be written.
        ValueError: it is there and holds something else than metrics.
    """
    from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

    known = list(samples(run))
    told = {sample.name for sample in known}
    if run.summary and run.summary["generation"] is not None:
        told.update(_OF_GENERATION)  # of those before, also what a small night has no figure for
    kept = [sample for sample in _earlier(path, run.results) if sample.name not in told]
    registry, made = CollectorRegistry(), dict[str, Any]()
    for name, value, labels in [*kept, *known]:
        if name not in made:
            keys = ("results", *labels)
            made[name] = Gauge(f"{PREFIX}_{name}", HELP[name], keys, registry=registry)
        made[name].labels(results=run.results, **labels).set(value)
    write_to_textfile(path, registry)  # renamed into place


def samples(run: FinishedRun) -> Iterator[Sample]:
    """What is known of a run that has ended."""
    yield Sample("last_run_timestamp_seconds", run.finished)
    yield Sample("last_run_duration_seconds", run.finished - run.started)
    yield Sample("last_run_exit_code", run.exit_code)
    if run.exit_code in (0, GateError.exit_code):
        yield Sample("last_success_timestamp_seconds", run.finished)
    found = run.summary
    if not found:
        return
    yield Sample("last_run_new_scans", found["scans"])
    yield Sample("known_scans", found["known"] + found["scans"])
    yield Sample("backlog_scans", found["backlog"])
    night = found.get("night")
    if night:
        yield Sample("gates_not_met", len(night["gates"]))
    if found["generation"] is not None:
        yield from _of_generation(found)
        yield from _of_comparison((night or {}).get("comparison") or {})


def _of_generation(found: Mapping[str, Any]) -> Iterator[Sample]:
    for status, count in found["status"].items():
        yield Sample("generation_scans", count, {"status": status})
    for name, count in found["classes"].items():
        yield Sample("generation_class_scans", count, {"class": name})
    yield Sample("quarantine_ratio", found["quarantine_fraction"])
    readable = sum(found["classes"].values())
    if readable:
        yield Sample("out_of_domain_ratio", found["out_of_domain"] / readable)
        yield Sample("mean_entropy", found["mean_entropy"])
    yield Sample("scans_per_second", found["scans_per_s"])
    yield Sample("model_scans_per_second", found["model_scans_per_s"])
    if found["shift"]:
        yield Sample("shift_distance", found["shift"]["distance"])
        yield Sample("shift_limit", found["shift"]["limit"])
    made_by = {
        "engine": found["engine"],
        "precision": found["precision"] or "",
        "bundle_fingerprint": found["bundle_fingerprint"],
        "version": __version__,
    }
    yield Sample("bundle_info", 1, made_by)


def _of_comparison(comparison: Mapping[str, Any]) -> Iterator[Sample]:
    for figure in comparison.get("figures", []):
        labels = {"figure": figure["name"]}
        yield Sample("drift_distance", figure["distance"], labels)
        yield Sample("drift_limit", figure["limit"], labels)
        yield Sample("drifts", figure["drifts"], labels)  # fewer quarantined scans do not


def _earlier(path: str, results: str) -> list[Sample]:
    """What the file holds of these results; nothing of a file that is not there or not ours."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        families = list(text_string_to_metric_families(Path(path).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise ValueError(f"it holds something else than metrics ({error}); remove it") from error
    found = []
    for sample in (sample for family in families for sample in family.samples):
        name = sample.name.removeprefix(f"{PREFIX}_")
        labels = {key: value for key, value in sample.labels.items() if key != "results"}
        if sample.labels.get("results") == results and name in HELP:
            found.append(Sample(name, sample.value, labels))
    return found
