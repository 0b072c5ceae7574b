"""The demo: everything on synthetic scans, in a few minutes on two cores."""

import json
from pathlib import Path
from typing import Any

from braintumor_ray.cli.console import foreign_names, open_pages, progress_bar
from braintumor_ray.cli.data import phantom_catalog
from braintumor_ray.cli.scoring import ScoreRun, score_source
from braintumor_ray.errors import UsageError
from braintumor_ray.local_ray import ray_session
from braintumor_ray.progress import Log
from braintumor_ray.scoring.options import PredictSettings, ScoreOptions
from braintumor_ray.worklist.explained import explain_results
from braintumor_ray.worklist.options import ExplainOptions

PATIENTS = 240
OWN = {"phantoms", "run", "results", "overlays", "report", "worklist", "picture"}  # of a demo
RESAMPLES = 200  # for the report's intervals: enough to show them
PAGES = ("report", "worklist", "overlays")  # what --open shows


def run_demo(output: Path, log: Log, *, show: bool = False) -> dict[str, Any]:
    """Phantoms, training, scoring, verification, report, worklist and overlays below one folder.

    Args:
        output: the folder.
        log: takes a line for people.
        show: open the pages in the browser at the end.

    Returns:
        Where to look, by what it is.

    Raises:
        UsageError: the folder holds something else than an earlier demo.
    """
    _check_folder(output, log)
    log("The demo's scans are SYNTHETIC phantoms: its figures say nothing about patients.")
    catalog = phantom_catalog(output / "phantoms", PATIENTS)
    with ray_session():
        bundle = _train(catalog, output, log)
        results = str(output / "results")
        found = _score(output, bundle, results, log)
    _verify(results, log)
    drawn = ExplainOptions(layout="compact", limit=12)
    pages = {
        "report": _report(output, bundle, log),
        "worklist": _worklist(output, results, log),
        "overlays": explain_results(results, output / "overlays", drawn)["pictures"][0],
    }
    if show:
        open_pages([pages[name] for name in PAGES])
    log("Look at these (all synthetic):")
    return pages | {
        "training curves": str(output / "run" / "curves.png"),
        "model card": str(output / "run" / "bundle" / "model_card.md"),
        "predictions": _predictions(results, found),
    }


def _check_folder(output: Path, log: Log) -> None:
    if foreign := foreign_names(output, OWN):
        raise UsageError(
            f"'{output}' holds '{foreign[0]}', which is not of a demo; choose another --output"
        )
    if output.exists() and any(output.iterdir()):
        log(f"going on in '{output}': what an earlier demo has finished is used again")


def _train(catalog: Any, output: Path, log: Log) -> str:  # noqa: ANN401 - a pyarrow table
    from braintumor_ray.models.bundle import read_bundle_fields
    from braintumor_ray.recipes.loader import load_recipe
    from braintumor_ray.training.options import TrainOptions, Workers
    from braintumor_ray.training.run import train
    from braintumor_ray.training.run_folder import run_folder

    folder = run_folder(output / "run")
    if folder.note().get("status") == "finished":
        metrics = read_bundle_fields(folder.at("bundle")).metrics["validation"]
        log(f"trained before; validation accuracy on phantoms: {metrics['accuracy']:.2f}")
        return folder.at("bundle")
    options = TrainOptions(
        load_recipe("demo"),
        output / "run",
        weights="none",
        workers=Workers(2),
        source="Synthetic phantoms",
        synthetic=True,
    )
    trained = train(catalog, options, log)
    metrics = trained.bundle.fields.metrics["validation"]
    log(f"validation accuracy on phantoms: {metrics['accuracy']:.2f}")
    return str(trained.path)


def _score(output: Path, bundle: str, results: str, log: Log) -> dict[str, Any]:
    run = ScoreRun(options=ScoreOptions(PredictSettings(bundle), block_size=128))
    found = score_source(str(output / "phantoms" / "scans"), results, run)
    if found["generation"] is None:
        log(f"all {found['known']} scans were scored before")
        return found
    log(f"scored {found['scans']} scans: {found['status']}; quarantined because:")
    for reason, count in found["reasons"].items():
        log(f"  {reason} ({count})")
    return found


def _predictions(results: str, found: dict[str, Any]) -> str:
    if found["generation"] is None:
        return f"{results} ({found['known']} scans, of an earlier demo)"
    return f"{results} ({found['scans']} scans, {found['status']})"


def _verify(results: str, log: Log) -> None:
    from braintumor_ray.scoring.verify import verify

    report = verify(results)
    if report.differences:
        raise UsageError(f"verify: {report.differences[0]}")
    log(f"verified: {report.scans} scans, each with one current row")


def _report(output: Path, bundle: str, log: Log) -> str:
    """The bundle measured on the test split; its maps against the phantoms' exact masks."""
    from braintumor_ray.catalog.schema import read_catalog
    from braintumor_ray.evaluation.evaluate import METRICS, REPORT, evaluate
    from braintumor_ray.evaluation.options import EvaluateOptions
    from braintumor_ray.localization.truth import load_truth

    folder = output / "report"
    if not (folder / REPORT).exists():
        truth = load_truth(str(output / "phantoms" / "masks" / "tumour"))
        options = EvaluateOptions(truth=truth, n_boot=RESAMPLES)
        catalog = read_catalog(output / "run" / "catalog.parquet")
        with progress_bar("evaluating") as advance:
            evaluate(catalog, bundle, folder, options, advance)
    metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    log(f"measured on {metrics['n']} test scans: accuracy {metrics['accuracy']:.2f}")
    return str(folder / REPORT)


def _worklist(output: Path, results: str, log: Log) -> str:
    from braintumor_ray.worklist.worklist import PAGE, make_worklist

    found = make_worklist(results, output / "worklist", overlays=24)
    log(f"worklist: {found['positive']} of {found['ranked']} scans with a tumor by the decision")
    return str(output / "worklist" / PAGE)
