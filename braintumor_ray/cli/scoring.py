"""Commands that score an archive: score, nightly."""

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from braintumor_ray.catalog.options import CatalogOptions
from braintumor_ray.cli.console import log, progress_bar, short_errors
from braintumor_ray.cli.lake import compact_line
from braintumor_ray.cli.options import Json, Source, flag, print_result, takes, warn_of_options
from braintumor_ray.cli.reporting import reported
from braintumor_ray.monitoring.options import RunReport
from braintumor_ray.options import Option
from braintumor_ray.scoring.options import ScoreOptions

if TYPE_CHECKING:
    from braintumor_ray.scoring.scans import Scans

app = typer.Typer()
Output = Annotated[
    str, typer.Option("--output", "-o", metavar="RESULTS", help="The results folder or URI.")
]


@dataclass(frozen=True, kw_only=True)
class ScoreRun:
    """A job, its source and what its results may hold.

    Attributes:
        options: of the job.
        catalog: how the source is read.
        redact_uri: no path is kept in the results, only its keyed hash.
        max_quarantine_fraction: more unreadable scans do not pass.
    """

    catalog: CatalogOptions = field(default_factory=CatalogOptions)
    options: ScoreOptions
    redact_uri: Annotated[
        bool, Option("Keep no path in the results, only its keyed hash.", panel="Privacy")
    ] = False
    max_quarantine_fraction: Annotated[
        float, Option("More unreadable scans: exit 3.", panel="Gates", least=0, most=1)
    ] = 0.1


@app.command()
@short_errors
@takes(run=ScoreRun, report=RunReport)
def score(
    source: Source,
    output: Output,
    run: ScoreRun,
    report: RunReport,
    dry_run: Annotated[bool, flag("Print what would be scored, and end.")] = False,
    plan: Annotated[bool, flag("Print what it asks of a cluster, by a sample, and end.")] = False,
    gpu_scans_per_s: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            min=1,
            metavar="X",
            rich_help_panel="Cluster",
            help="For --plan: what one GPU predicts, where none is here.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Score what is new in an archive: predictions and heatmaps as Parquet, exactly once.

    Run it every night, and again after any crash. Unreadable scans become rows with a reason.
    """
    if plan:
        found = _plan(source, output, run, gpu_scans_per_s)
        print_result(found, as_json, "\n".join(found["lines"]))
        return
    if dry_run:
        found = _dry_run(source, output, run)
        text = f"{found['would_score']} of {found['scans']} scans would be scored into {output}"
        print_result(found, as_json, text)
        return
    with reported("score", output, report) as ended:
        found = score_source(source, output, run, report.live.metrics_port)
        ended.summary = found
        print_result(found, as_json, _score_lines(found, output))
        _gate_quarantine(found, run.max_quarantine_fraction)


@app.command()
@short_errors
@takes(run=ScoreRun, report=RunReport)
def nightly(
    source: Source,
    output: Output,
    run: ScoreRun,
    report: RunReport,
    verify_all: Annotated[
        bool, flag("Verify every row ever scored, not only tonight's.", panel="Gates")
    ] = False,
    compact_after: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel="Archive",
            help="Compact when more than N runs are not compacted yet.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Score what is new, verify it, and compare it with the last 7 runs; exit 3 on drift.

    Safe to start twice: one of two gives up. Exit 1: something failed, run it again. Exit 3: it
    is committed, and too many scans are quarantined, 'verify' found a difference, class shares,
    entropy or quarantine share differ from the last runs by more than chance, or the scans as a
    whole differ from those that the bundle was trained on.
    """
    from braintumor_ray.errors import GateError

    with reported("nightly", output, report) as ended:
        found = score_source(source, output, run, report.live.metrics_port)
        ended.summary = found
        lines, gates = _judged(output, found, run, verify_all, compact_after)
        print_result(found, as_json, "\n".join(lines))
        for gate in gates:
            log(f"gate: {gate}")
        if gates:
            raise GateError(f"{len(gates)} gates not met in '{output}'; the rows are committed")


def _judged(
    output: str, found: dict[str, Any], run: ScoreRun, verify_all: bool, compact_after: int | None
) -> tuple[list[str], list[str]]:
    """Lines for people and the gates that are not met; what was found gets the verdict."""
    from braintumor_ray.scoring.nightly import judge

    night = judge(output, found, run.max_quarantine_fraction, None if verify_all else 1)
    lines = [_score_lines(found, output), *night.report]
    joined = None if night.gates else _compact_after(output, compact_after)
    if joined:
        lines.append(f"compaction: {compact_line(joined)}")
    found |= {"night": asdict(night), "compaction": joined}
    return lines, night.gates


def _compact_after(output: str, most: int | None) -> dict[str, int] | None:
    """Compact, and delete what was replaced a day ago, where more than so many runs are loose."""
    from braintumor_ray.archive.compact import compact
    from braintumor_ray.archive.options import CompactOptions
    from braintumor_ray.predict.results import is_compacted, results_folder

    manifests = results_folder(output).manifests()
    loose = sum(not is_compacted(manifest) for manifest in manifests)
    if most is None or loose <= most:
        return None
    return asdict(compact(output, CompactOptions(expire=True)))


def score_source(
    source: str, output: str, run: ScoreRun, metrics_port: int | None = None
) -> dict[str, Any]:
    """Score a source into a results folder, with progress; the summary as a dictionary."""
    from braintumor_ray.catalog.local_key import check_results
    from braintumor_ray.local_ray import ray_session
    from braintumor_ray.predict.results import results_folder
    from braintumor_ray.scoring.job import score as score_scans
    from braintumor_ray.scoring.pacs import drop_listing

    scans, options = _open(source, output, run)
    check_results(output, scans.key_check)
    least = (options.request.predictors or (1, 1))[0]
    with ray_session(least + 1, metrics_port), progress_bar("scoring") as advance:
        summary = score_scans(scans, output, options, advance)
    if options.limit is None:
        drop_listing(output)
    return asdict(summary) | {
        "quarantine_fraction": summary.quarantine_fraction,
        "bundle_fingerprint": results_folder(output).meta["bundle_fingerprint"],
        "left_out": scans.left_out.left_out,
    }


def _dry_run(source: str, output: str, run: ScoreRun) -> dict[str, Any]:
    """What would be scored; writes nothing and needs no Ray."""
    from braintumor_ray.scoring.job import plan_only, scoring_bundle

    scans, options = _open(source, output, run, kept=False)
    plan = plan_only(scans, output, scoring_bundle(options), options)
    return {
        "would_score": plan.remaining,
        "scans": scans.num_rows,
        "known": plan.known,
        "left_out": scans.left_out.left_out,
    }


def _plan(source: str, output: str, run: ScoreRun, gpu_scans_per_s: float | None) -> dict[str, Any]:
    """What the job would ask of a cluster, from a measured sample; needs no Ray."""
    from braintumor_ray.scoring.estimate import estimate
    from braintumor_ray.scoring.job import plan_only, scoring_bundle
    from braintumor_ray.scoring.result_settings import stored_options

    scans, options = _open(source, output, run, kept=False)
    bundle = scoring_bundle(options)
    remaining = plan_only(scans, output, bundle, options).remaining
    return estimate(scans, remaining, bundle, stored_options(output, options), gpu_scans_per_s)


def _open(
    source: str, output: str, run: ScoreRun, *, kept: bool = True
) -> tuple["Scans", ScoreOptions]:
    """The scans of a source; what is listed of a PACS is kept in the results folder if wished."""
    from braintumor_ray.catalog.redaction import uri_redaction
    from braintumor_ray.dicomweb.query import is_dicomweb
    from braintumor_ray.models.bundle import read_bundle_fields
    from braintumor_ray.scoring.pacs import open_pacs
    from braintumor_ray.scoring.scans import open_scans

    options, catalog = run.options, run.catalog.with_own_key(output)
    warn_of_options(source, catalog)
    if run.redact_uri:
        hidden = uri_redaction(catalog.identity)
        options = replace(options, decode=replace(options.decode, redaction=hidden))
    # A wrong path is found before the archive is listed; the job reads the weights, once.
    read_bundle_fields(options.predict.bundle)
    with progress_bar("cataloging") as advance:
        if is_dicomweb(source) and kept:
            retry = options.retry_quarantined
            scans = open_pacs(source, output, catalog, retry_quarantined=retry, progress=advance)
        else:
            scans = open_scans(source, catalog, advance)
    if scans.left_out.left_out:
        log(scans.left_out.describe())
    return scans, options


def _score_lines(found: dict[str, Any], output: str) -> str:
    from braintumor_ray.predict.shift import Shift

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
    shift = Shift.of_run(found)
    if shift is not None:
        lines.append(("warning: " if shift.differs else "") + shift.sentence())
    if found["engine_scans_per_s"]:  # it was 'auto'
        rates = (f"{name} {rate:.0f}" for name, rate in found["engine_scans_per_s"].items())
        lines.append(f"engine: {found['engine']} (measured, scans/s: {', '.join(rates)})")
    elif found["engine"] != "torch":
        lines.append(f"engine: {found['engine']}")
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
