"""Runs that have ended, as commands tell of them."""

from dataclasses import asdict

from braintumor_ray.monitoring.finish import FinishedRun
from braintumor_ray.predict.shift import Shift
from braintumor_ray.scoring.nightly import Comparison, Figure, Night
from braintumor_ray.scoring.summary import Summary

DAY = 86_400.0


def summary(**changes):
    """What a night prints with `--json`."""
    made = Summary(
        generation=8,
        scans=200,
        resumed=0,
        known=1_000,
        status={"ok": 190, "quarantined": 10},
        classes={"glioma_tumor": 100, "no_tumor": 90},
        reasons={"file not found": 10},
        mean_entropy=0.25,
        entropy_deviation=0.2,
        out_of_domain=19,
        shift=Shift(190, 100, 0.4, 0.3, True),
        seconds=10.0,
        scans_per_s=20.0,
        model_scans_per_s=40.0,
        precision="fp32",
        backlog=30,
    )
    figure = Figure("class shares", 0.2, 0.0, 0.1, 0.2, True)
    night = Night(200, Comparison([5, 6, 7], [figure]), ["drift: class shares", "shift: far"])
    found = asdict(made) | {"quarantine_fraction": 0.05, "bundle_fingerprint": "abc123"}
    return found | {"night": asdict(night), "compaction": None} | changes


def finished(exit_code=0, day=1, found=None, results="/archive/results", **changes):
    """A run that ended on some day."""
    values = {"command": "nightly", "run_id": "r1", "started": day * DAY - 60.0}
    return FinishedRun(
        results=results,
        finished=day * DAY,
        exit_code=exit_code,
        summary=found,
        **(values | changes),
    )
