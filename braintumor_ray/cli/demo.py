"""The demo: everything on synthetic scans, in a few minutes on two cores."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from braintumor_ray.cli.data import phantom_catalog
from braintumor_ray.cli.scoring import ScoreRun, score_source
from braintumor_ray.errors import UsageError
from braintumor_ray.local_ray import ray_session
from braintumor_ray.scoring.options import PredictSettings, ScoreOptions
from braintumor_ray.worklist.explained import explain_results
from braintumor_ray.worklist.options import ExplainOptions

Say = Callable[[str], None]
PATIENTS = 240
OWN = {"phantoms", "run", "results", "overlays"}  # what a demo writes


def run_demo(output: Path, say: Say) -> dict[str, Any]:
    """Phantoms, training, scoring, verification and overlays below one folder.

    Returns:
        Where to look, by what it is.

    Raises:
        UsageError: the folder holds something else than an earlier demo.
    """
    found_before = {path.name for path in output.iterdir()} if output.exists() else set()
    foreign = sorted(found_before - OWN)
    if foreign:
        raise UsageError(
            f"'{output}' holds '{foreign[0]}', which is not of a demo; choose another --output"
        )
    if found_before:
        say(f"going on in '{output}': what an earlier demo has finished is used again")
    say("The demo's scans are SYNTHETIC phantoms: its figures say nothing about patients.")
    catalog = phantom_catalog(output / "phantoms", PATIENTS)
    with ray_session():
        bundle = _train(catalog, output, say)
        results = str(output / "results")
        found = _score(output, bundle, results, say)
    _verify(results, say)
    drawn = ExplainOptions(layout="compact", limit=12)
    pictures = explain_results(results, output / "overlays", drawn)["pictures"]
    say("Look at these (all synthetic):")
    return {
        "overlays": pictures[0],
        "training curves": str(output / "run" / "curves.png"),
        "model card": str(output / "run" / "bundle" / "model_card.md"),
        "predictions": _predictions(results, found),
    }


def _train(catalog: Any, output: Path, say: Say) -> str:  # noqa: ANN401 - a pyarrow table
    from braintumor_ray.models.bundle import read_bundle_fields
    from braintumor_ray.recipes.loader import load_recipe
    from braintumor_ray.training.options import TrainOptions, Workers
    from braintumor_ray.training.run import train
    from braintumor_ray.training.run_folder import run_folder

    folder = run_folder(output / "run")
    if folder.note().get("status") == "finished":
        metrics = read_bundle_fields(folder.at("bundle")).metrics["validation"]
        say(f"trained before; validation accuracy on phantoms: {metrics['accuracy']:.2f}")
        return folder.at("bundle")
    options = TrainOptions(
        load_recipe("demo"),
        output / "run",
        weights="none",
        workers=Workers(2),
        source="Synthetic phantoms",
        synthetic=True,
    )
    trained = train(catalog, options, say)
    metrics = trained.bundle.fields.metrics["validation"]
    say(f"validation accuracy on phantoms: {metrics['accuracy']:.2f}")
    return str(trained.path)


def _score(output: Path, bundle: str, results: str, say: Say) -> dict[str, Any]:
    run = ScoreRun(options=ScoreOptions(PredictSettings(bundle), block_size=128))
    found = score_source(str(output / "phantoms" / "scans"), results, run)
    if found["generation"] is None:
        say(f"all {found['known']} scans were scored before")
        return found
    say(f"scored {found['scans']} scans: {found['status']}; quarantined because:")
    for reason, count in found["reasons"].items():
        say(f"  {reason} ({count})")
    return found


def _predictions(results: str, found: dict[str, Any]) -> str:
    if found["generation"] is None:
        return f"{results} ({found['known']} scans, of an earlier demo)"
    return f"{results} ({found['scans']} scans, {found['status']})"


def _verify(results: str, say: Say) -> None:
    from braintumor_ray.scoring.verify import verify

    report = verify(results)
    if report.differences:
        raise UsageError(f"verify: {report.differences[0]}")
    say(f"verified: {report.scans} scans, each with one current row")
