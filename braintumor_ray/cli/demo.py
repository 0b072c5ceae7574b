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


def run_demo(output: Path, say: Say) -> dict[str, Any]:
    """Phantoms, training, scoring, verification and overlays below one folder.

    Returns:
        Where to look, by what it is.

    Raises:
        UsageError: the folder holds something else.
    """
    if output.exists() and any(output.iterdir()):
        raise UsageError(f"'{output}' is not empty; remove it or choose another --output")
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
        "predictions": f"{results} ({found['scans']} scans, {found['status']})",
    }


def _train(catalog: Any, output: Path, say: Say) -> str:  # noqa: ANN401 - a pyarrow table
    from braintumor_ray.recipes.loader import load_recipe
    from braintumor_ray.training.options import TrainOptions, Workers
    from braintumor_ray.training.run import train

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
    say(f"scored {found['scans']} scans: {found['status']}; quarantined because:")
    for reason, count in found["reasons"].items():
        say(f"  {reason} ({count})")
    return found


def _verify(results: str, say: Say) -> None:
    from braintumor_ray.scoring.verify import verify

    report = verify(results)
    if report.differences:
        raise UsageError(f"verify: {report.differences[0]}")
    say(f"verified: {report.scans} scans, each with one current row")
