"""Prometheus metrics of jobs and of the service, through Ray: each node's agent exports them.

Ray puts `ray_` in front of every name, and `_total` behind that of a counter. Its histograms know
only buckets, and their sum is made of the buckets' middles: exact times are counters here.
"""

import collections
from collections.abc import Mapping

import pyarrow as pa
from ray.util.metrics import Counter, Gauge, Histogram

LATENCY = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]
SECONDS = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0]


class StageMeters:
    """What one process of a stage has done; of labels there are few, and none is an id.

    Args:
        results: label of the results folder, see `results_label`.
        stage: 'decode' or 'predict'.
    """

    def __init__(self, results: str, stage: str) -> None:
        self._where = {"results": results}
        of_stage = {**self._where, "stage": stage}
        keys = ("results", "stage")
        self._rows = Counter(
            "braintumor_stage_scans", "scans that a stage has worked on", keys
        ).set_default_tags(of_stage)
        self._seconds = Counter(
            "braintumor_stage_seconds", "time that processes of a stage have worked", keys
        ).set_default_tags(of_stage)
        self._blocks = Histogram(
            "braintumor_block_seconds", "time for one block of scans", SECONDS, keys
        ).set_default_tags(of_stage)
        self._scans = Counter(
            "braintumor_scans", "scans predicted or refused", ("results", "status", "class")
        ).set_default_tags(self._where)

    def block(self, rows: pa.Table, seconds: float) -> None:
        """Count a block that the stage has made, and the outcomes where it was the last stage."""
        if not rows.num_rows:
            return  # Ray refuses to count nothing
        self._rows.inc(rows.num_rows)
        self._seconds.inc(seconds)
        self._blocks.observe(seconds)
        if "predicted_class" in rows.column_names:
            for status, name, count in outcomes(rows):
                self._scans.inc(count, {"status": status, "class": name})


def outcomes(rows: pa.Table) -> list[tuple[str, str, int]]:
    """How many rows have which status and class; only rows that are ok have a class."""
    classes = collections.Counter(rows["predicted_class"].drop_null().to_pylist())
    others = {k: n for k, n in collections.Counter(rows["status"].to_pylist()).items() if k != "ok"}
    found = [("ok", name, count) for name, count in classes.items()]
    return found + [(status, "", count) for status, count in others.items()]


class RunMeters:
    """What the driver knows of a run.

    Args:
        results: label of the results folder.
        made_by: engine, precision and bundle fingerprint: labels of the info metric.
    """

    def __init__(self, results: str, made_by: Mapping[str, str]) -> None:
        where = {"results": results}
        self._backlog = Gauge(
            "braintumor_backlog_scans", "scans of the source without a row yet", ("results",)
        ).set_default_tags(where)
        self._made_by = Gauge(
            "braintumor_run_info", "what makes the rows; always 1", ("results", *made_by)
        ).set_default_tags({**where, **made_by})

    def backlog(self, scans: int) -> None:
        """So many scans have no row yet. Call it often: Ray drops a gauge that nobody sets."""
        self._backlog.set(scans)
        self._made_by.set(1)


class RequestMeters:
    """What one front of the service has answered."""

    def __init__(self) -> None:
        keys = ("route", "code")
        self._requests = Counter("braintumor_requests", "requests that were answered", keys)
        self._latency = Histogram(
            "braintumor_request_latency_seconds",
            "from the headers to the answer",
            LATENCY,
            ("route",),
        )

    def answered(self, route: str, code: int, seconds: float) -> None:
        """Count an answer."""
        self._requests.inc(1, {"route": route, "code": str(code)})
        self._latency.observe(seconds, {"route": route})
