"""What the longer commands do, between the options and the library."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.catalog.schema import CatalogOptions
from braintumor_ray.cli.console import progress_bar, say
from braintumor_ray.errors import UsageError
from braintumor_ray.local_ray import ray_session
from braintumor_ray.storage import is_local, local_path

if TYPE_CHECKING:
    from braintumor_ray.training.options import TrainOptions

PHANTOM_PATIENTS = 60


def train_command(
    *,
    source: str | None,
    recipe: str,
    settings: list[str],
    classes: str | None,
    backbone: str | None,
    output: str,
    weights: str,
    num_workers: str,
    split_by: str,
    allow_leakage: bool,
    folds: int | None,
    cache: str | None,
    truth: str | None,
    use_gpu: bool | None,
    preview: bool,
    catalog_options: CatalogOptions,
) -> dict[str, Any]:
    """Train a recipe; see `braintumor-ray train --help`."""
    from braintumor_ray.recipes.loader import load_recipe, with_backbone

    number = parse_range("--num-workers", num_workers)
    loaded = load_recipe(recipe, settings)
    if backbone is not None:
        from braintumor_ray.models.classifier import input_size_of

        sized = any(setting.startswith("data.image_size") for setting in settings)
        loaded = with_backbone(loaded, backbone, None if sized else input_size_of(backbone))
    if classes is not None:
        loaded = loaded.model_copy(
            update={"data": loaded.data.model_copy(update={"classes": classes})}
        )
    from braintumor_ray.training.options import TrainOptions, Workers
    from braintumor_ray.training.run import check_run

    if not preview:
        check_run(output)
    table, described, synthetic = _training_source(source, output, catalog_options)
    if preview:
        from braintumor_ray.training.augment import preview_augmentation

        if not is_local(output):
            raise UsageError(
                f"--preview-augmentation draws on this machine, and '{output}' is not; give a "
                "local --output"
            )
        picture = local_path(output) / "augmentation.png"
        preview_augmentation(table, loaded, picture)
        return {"augmentation": str(picture)}
    with ray_session(number if isinstance(number, int) else number[1]):
        options = TrainOptions(
            loaded,
            output,
            weights,
            Workers(number, wants_gpu(use_gpu)),
            split_by,
            allow_leakage,
            cache,
            truth,
            described,
            synthetic,
        )
        if folds is not None:
            from braintumor_ray.training.folds import cross_validate

            return cross_validate(table, options, folds, say)
        return _train_once(table, options)


def _train_once(table: pa.Table, options: "TrainOptions") -> dict[str, Any]:
    from braintumor_ray.training.phases import as_text, phase_lines
    from braintumor_ray.training.run import train

    trained = train(table, options, say)
    fields = trained.bundle.fields
    metrics = fields.metrics["validation"]
    if trained.phases:
        say("test split, looked at once, after everything was chosen:")
        say(as_text(phase_lines(trained.phases, options.recipe.published)))
    return {
        "bundle": trained.path,
        "fingerprint": trained.bundle.fingerprint,
        "accuracy": metrics["accuracy"],
        "balanced_accuracy": metrics["balanced_accuracy"],
        "threshold": fields.threshold,
        "temperature": fields.temperature,
        "catalog": f"{trained.location}/catalog.parquet",
        "curves": f"{trained.location}/curves.png",
        "phases": f"{trained.location}/phases.json",
    }


def explain_command(
    *,
    files: list[str],
    bundle: str | None,
    results: str | None,
    output: Path,
    methods: list[str],
    layer: str | None,
    layout: str,
    colormap: str,
    alpha: float,
    limit: int,
    cam_class: str,
    device: str,
) -> dict[str, Any]:
    """Draw explanations; see `braintumor-ray explain --help`."""
    from braintumor_ray.worklist.explained import Drawing, explain_files, explain_results

    drawing = Drawing(layout, colormap, alpha)
    if results is not None:
        if files or bundle:
            raise UsageError("--results draws stored rows; leave out files and --bundle")
        with progress_bar("drawing") as advance:
            return explain_results(results, output, drawing, methods, limit, advance)
    if not files or not bundle:
        raise UsageError("give image files and --bundle, or --results")
    chosen: Any = cam_class  # checked by the command
    return explain_files(files, bundle, output, drawing, methods, layer, chosen, device)


def parse_range(option: str, text: str) -> int | tuple[int, int]:
    """`N` or `MIN:MAX`, all at least 1.

    Raises:
        UsageError: neither.
    """
    parts = text.split(":")
    if all(part.isdigit() and int(part) > 0 for part in parts):
        numbers = [int(part) for part in parts]
        if len(numbers) == 1:
            return numbers[0]
        if len(numbers) == 2 and numbers[0] <= numbers[1]:
            return numbers[0], numbers[1]
    raise UsageError(f"{option} '{text}' is neither a number such as 4 nor a range such as 2:8")


def _training_source(
    source: str | None, output: str, options: CatalogOptions
) -> tuple[pa.Table, str, bool]:
    """The catalog, its name for the model card, and whether it is synthetic."""
    if source is None and os.environ.get("BRAINTUMOR_DATA"):
        source = os.environ["BRAINTUMOR_DATA"]
        say(f"training on $BRAINTUMOR_DATA: {source}")
    if source is not None:
        with progress_bar("cataloguing") as advance:
            return (
                load_catalog(source, options, advance),
                f"Scans from '{Path(source).name}'",
                False,
            )
    # Training reads files where they are: on a store's run the phantoms stay on this machine.
    directory = local_path(output) / "phantoms" if is_local(output) else Path("phantoms")
    say(f"no SOURCE and no $BRAINTUMOR_DATA: training on synthetic phantoms in {directory}")
    return phantom_catalog(directory), "Synthetic phantoms", True


def phantom_catalog(directory: Path, patients: int = PHANTOM_PATIENTS) -> pa.Table:
    """Phantoms in a folder, written if they are not there, and their catalog."""
    from braintumor_ray.catalog.identity import IdentityHash
    from braintumor_ray.phantom.dataset import write_phantoms

    if not (directory / "scans.csv").exists():
        with progress_bar("phantoms") as advance:
            write_phantoms(directory, patients=patients, progress=advance)
    options = CatalogOptions(
        root=str(directory / "scans"),
        patient_column="patient_id",
        identity=IdentityHash(b"phantoms are nobody"),
    )
    return load_catalog(str(directory / "scans.csv"), options)


def wants_gpu(wanted: bool | None) -> bool:
    """Whether to use GPUs: as wanted, else where the cluster has any.

    Raises:
        UsageError: wanted, and there is none.
    """
    import ray

    have = ray.cluster_resources().get("GPU", 0) > 0
    if wanted and not have:
        raise UsageError("--gpu: the cluster has no GPU; leave it out to train on CPUs")
    return have if wanted is None else wanted
