"""What `score` and `nightly` do, between the options and the library."""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from braintumor_ray.catalog.redaction import uri_redaction
from braintumor_ray.catalog.schema import CatalogOptions
from braintumor_ray.cli.console import progress_bar
from braintumor_ray.commands import parse_range, wants_gpu
from braintumor_ray.local_ray import ray_session
from braintumor_ray.storage import absolute

if TYPE_CHECKING:
    from braintumor_ray.scoring.options import ScoreOptions
    from braintumor_ray.scoring.scans import Scans


@dataclass(frozen=True)
class ScoreChoices:
    """The options of `score`, as typed; see `braintumor-ray score --help`."""

    limit: int | None = None
    max_quarantine_fraction: float = 0.1
    retry_quarantined: bool = False
    redact_uri: bool = False
    cam_class: str = "predicted"
    block_size: int = 256
    batch_size: int | None = None
    num_predictors: str = "auto"
    cpus_per_decode: float = 1.0
    gpus_per_predictor: float | None = None
    object_store_fraction: float = 0.5
    device: str = "auto"
    precision: str = "auto"
    decode_timeout: float = 30.0


def score_command(
    source: str, bundle: str, output: str, choices: ScoreChoices, catalog_options: CatalogOptions
) -> dict[str, Any]:
    """Score an archive; see `braintumor-ray score --help`."""
    from braintumor_ray.scoring.job import score

    scans, options = _prepare(source, bundle, choices, catalog_options)
    least = (options.num_predictors or (1, 1))[0]
    with ray_session(least + 1), progress_bar("scoring") as advance:
        options = replace(options, gpus_per_predictor=_gpus(choices))
        summary = score(scans, output, options, advance)
    return asdict(summary) | {"quarantine_fraction": summary.quarantine_fraction}


def dry_run_command(
    source: str, bundle: str, output: str, choices: ScoreChoices, catalog_options: CatalogOptions
) -> dict[str, Any]:
    """Say what would be scored; writes nothing and needs no Ray."""
    from braintumor_ray.scoring.job import plan_only

    scans, options = _prepare(source, bundle, choices, catalog_options)
    plan = plan_only(scans, output, options)
    return {"would_score": plan.remaining, "scans": scans.num_rows, "known": plan.known}


def plan_command(
    source: str,
    bundle: str,
    output: str,
    choices: ScoreChoices,
    catalog_options: CatalogOptions,
    gpu_scans_per_s: float | None,
) -> dict[str, Any]:
    """Say what the job would ask of a cluster, from a measured sample; needs no Ray."""
    from braintumor_ray.scoring.estimate import estimate
    from braintumor_ray.scoring.job import plan_only

    scans, options = _prepare(source, bundle, choices, catalog_options)
    remaining = plan_only(scans, output, options).remaining
    return estimate(scans, remaining, options, gpu_scans_per_s, choices.gpus_per_predictor)


def nightly_command(
    source: str,
    bundle: str,
    output: str,
    choices: ScoreChoices,
    catalog_options: CatalogOptions,
    verify_everything: bool,
) -> dict[str, Any]:
    """Score what is new, verify it and compare it with the last runs.

    Returns:
        The summary, with `night`: gates that were not met, and tonight beside the last runs.
    """
    from braintumor_ray.scoring.nightly import judge

    found = score_command(source, bundle, output, choices, catalog_options)
    newest = None if verify_everything else 1
    night = judge(output, found, choices.max_quarantine_fraction, newest)
    return found | {"night": asdict(night)}


def _prepare(
    source: str, bundle: str, choices: ScoreChoices, catalog_options: CatalogOptions
) -> tuple["Scans", "ScoreOptions"]:
    from braintumor_ray.models.bundle import load_bundle

    options = _options(bundle, choices, catalog_options)
    load_bundle(bundle)  # a wrong path is found before the archive is listed
    from braintumor_ray.scoring.scans import open_scans

    with progress_bar("cataloguing") as advance:
        return open_scans(source, catalog_options, advance), options


def _options(bundle: str, choices: ScoreChoices, catalog_options: CatalogOptions) -> "ScoreOptions":
    from braintumor_ray.scoring.options import DecodeSettings, PredictSettings, ScoreOptions

    number = None
    if choices.num_predictors != "auto":
        number = parse_range("--num-predictors", choices.num_predictors)
    predict = PredictSettings(
        bundle=absolute(bundle),
        device=choices.device,
        precision=choices.precision,  # type: ignore[arg-type]
        cam_class=choices.cam_class,  # type: ignore[arg-type]
        batch_size=choices.batch_size,
    )
    hidden = uri_redaction(catalog_options.identity) if choices.redact_uri else None
    return ScoreOptions(
        predict,
        DecodeSettings(timeout_s=choices.decode_timeout, redaction=hidden),
        block_size=choices.block_size,
        num_predictors=(number, number) if isinstance(number, int) else number,
        cpus_per_decode=choices.cpus_per_decode,
        object_store_fraction=choices.object_store_fraction,
        limit=choices.limit,
        retry_quarantined=choices.retry_quarantined,
    )


def _gpus(choices: ScoreChoices) -> float:
    """GPUs of each predictor on the cluster that we are connected to."""
    if not wants_gpu(False if choices.device == "cpu" else None):
        return 0.0
    return 1.0 if choices.gpus_per_predictor is None else choices.gpus_per_predictor
