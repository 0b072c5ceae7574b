"""Commands on training: recipes and train."""

import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from braintumor_ray.catalog.options import CatalogOptions
from braintumor_ray.cli.console import log, short_errors
from braintumor_ray.cli.data import phantom_catalog
from braintumor_ray.cli.options import Json, flag, load_source, print_result, takes
from braintumor_ray.errors import UsageError
from braintumor_ray.monitoring.options import LiveMetrics
from braintumor_ray.storage import is_local, local_path
from braintumor_ray.tracking.options import TrainTrackingOptions
from braintumor_ray.training.options import TrainOptions

if TYPE_CHECKING:
    import pyarrow as pa

    from braintumor_ray.tracking.run import Run
    from braintumor_ray.training.run import TrainingResult

app = typer.Typer()
TRACKED_FILES = ("curves.png", "history.json", "phases.json", "bundle/model_card.md")

recipes_app = typer.Typer(help="List the recipes, or show one.", invoke_without_command=True)
app.add_typer(recipes_app, name="recipes")


@recipes_app.callback()
@short_errors
def recipes(context: typer.Context, as_json: Json = False) -> None:
    """List the recipes, or show one."""
    if context.invoked_subcommand:
        return
    from braintumor_ray.recipes.loader import load_recipe, recipe_names

    found = {name: load_recipe(name).description for name in recipe_names()}
    width = max(len(name) for name in found)
    lines = "\n".join(f"{name:<{width}}  {text}" for name, text in found.items())
    print_result(found, as_json, lines)


@recipes_app.command("show")
@short_errors
def recipes_show(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A recipe, or a TOML file.")],
) -> None:
    """Print a recipe, its published figures in the comments."""
    from braintumor_ray.recipes.loader import recipe_text

    typer.echo(recipe_text(name), nl=False)


def _phantoms_with_their_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """Without data and without a choice, take the recipe for phantoms: the default is for scans."""

    @functools.wraps(command)
    def wrapped(context: typer.Context, **values: Any) -> None:  # noqa: ANN401 - as typer passes them
        given = [context.get_parameter_source(name) for name in ("recipe", "backbone")]
        chosen = any(source is not None and source.name != "DEFAULT" for source in given)
        if not (chosen or values["sources"] or os.environ.get("BRAINTUMOR_DATA")):
            values["recipe"] = "demo"
        command(**values)

    first = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    signature = inspect.signature(command)
    parameters = [first, *signature.parameters.values()]
    wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapped


@app.command()
@short_errors
@_phantoms_with_their_recipe
@takes(
    options=TrainOptions,
    catalog_options=CatalogOptions,
    tracking=TrainTrackingOptions,
    live=LiveMetrics,
)
def train(
    options: TrainOptions,
    catalog_options: CatalogOptions,
    tracking: TrainTrackingOptions,
    live: LiveMetrics,
    sources: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            metavar="FOLDER|CSV|CATALOG|URI",
            help="As for 'catalog', one or several; else $BRAINTUMOR_DATA, else phantoms (demo).",
        ),
    ] = None,
    folds: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=2, metavar="N", help="Grouped cross-validation: a run per fold, RUN/fold-1, ..."
        ),
    ] = None,
    preview_augmentation: Annotated[
        bool, flag("Only draw augmented scans, RUN/augmentation.png.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a recipe on Ray Train and write its bundle; an interrupted run goes on."""
    from braintumor_ray.catalog.labels import remarks
    from braintumor_ray.catalog.listing import left_out_of
    from braintumor_ray.tracking.run import tracked
    from braintumor_ray.training.run import check_run

    if preview_augmentation:
        tracking = replace(tracking, mlflow=None)
    else:
        check_run(options.output)
    with tracked(tracking, options.recipe.name, log, resumed_in=options.output) as run:
        table, options = _with_data(sources or [], options, catalog_options)
        left_out = left_out_of(table.schema)
        for line in (left_out.describe(), *([] if options.recipe.data.classes else remarks(table))):
            if line:
                log(line)
        if preview_augmentation:
            found = _preview(table, options)
        else:
            model = tracking.mlflow_model or f"braintumor-{options.recipe.name}"
            found = _train_on_ray(table, options, folds, run, live.metrics_port)
            if folds is None:
                run.files(str(options.output), TRACKED_FILES)
                run.bundle(found["bundle"], model)
    print_result(found | {"left_out": left_out.left_out}, as_json, _train_lines(found))


def _with_data(
    sources: list[str], options: TrainOptions, catalog_options: CatalogOptions
) -> tuple["pa.Table", TrainOptions]:
    """The catalog, and the options with what the model card says of it."""
    if not sources and os.environ.get("BRAINTUMOR_DATA"):
        sources = [os.environ["BRAINTUMOR_DATA"]]
        log(f"training on $BRAINTUMOR_DATA: {sources[0]}")
    if sources:
        run = str(options.output)
        named = ", ".join(f"'{Path(source).name}'" for source in sources)
        described = replace(options, source=f"Scans from {named}")
        return _load_sources(sources, catalog_options.with_own_key(run)), described
    # Training reads files where they are: on a store's run the phantoms stay on this machine.
    run = str(options.output)
    directory = local_path(run) / "phantoms" if is_local(run) else Path("phantoms")
    log(
        f"no SOURCE and no $BRAINTUMOR_DATA: training recipe '{options.recipe.name}' on synthetic "
        f"phantoms in {directory}"
    )
    synthetic = replace(options, source="Synthetic phantoms", synthetic=True)
    return phantom_catalog(directory), synthetic


def _load_sources(sources: list[str], options: CatalogOptions) -> "pa.Table":
    """The catalog of a source, or that of several, which a column `source` distinguishes."""
    from braintumor_ray.catalog.sources import combined, source_names

    if len(sources) == 1:
        return load_source(sources[0], options)
    names = source_names(sources)
    if len(set(names)) < len(names):
        raise UsageError(f"sources {', '.join(names)}: one is given twice; give each once")
    log(f"sources: {', '.join(names)}")
    return combined({n: load_source(s, options) for n, s in zip(names, sources, strict=True)})


def _preview(table: "pa.Table", options: TrainOptions) -> dict[str, Any]:
    from braintumor_ray.training.augment import preview_augmentation
    from braintumor_ray.training.run_data import class_map, named_catalog

    run = str(options.output)
    if not is_local(run):
        raise UsageError(
            f"--preview-augmentation draws on this machine, and '{run}' is not; give a "
            "local --output"
        )
    picture = local_path(run) / "augmentation.png"
    table = named_catalog(table, options.recipe)
    preview_augmentation(table, options.recipe, class_map(table, options.recipe), picture)
    return {"augmentation": str(picture)}


def _train_on_ray(
    table: "pa.Table",
    options: TrainOptions,
    folds: int | None,
    run: "Run",
    metrics_port: int | None,
) -> dict[str, Any]:
    from braintumor_ray.local_ray import ray_session, wants_gpu
    from braintumor_ray.training.folds import cross_validate
    from braintumor_ray.training.run import train as train_recipe

    with ray_session(options.workers.most, metrics_port):
        workers = replace(options.workers, use_gpu=wants_gpu(options.workers.use_gpu))
        options = replace(options, workers=workers)
        run.parameters(_parameters(options, folds))
        if folds is None:
            return _trained(train_recipe(table, options, log, run.epoch), options, run)
        found = cross_validate(table, options, folds, log, run.epoch)
        run.figures(found)
        return found


def _parameters(options: TrainOptions, folds: int | None) -> dict[str, Any]:
    """What is logged in a tracked run: the recipe, and how it is trained."""
    return {
        **options.recipe.model_dump(mode="json"),
        "weights": options.weights,
        "workers": options.workers.most,
        "gpu": options.workers.use_gpu,
        "split_by": options.split_by,
        "leave_out": options.leave_out,
        "guided_by_truth": options.truth is not None,
        "data": {**options.recipe.data.model_dump(mode="json"), "source": options.source},
        "folds": folds,
    }


def _trained(trained: "TrainingResult", options: TrainOptions, run: "Run") -> dict[str, Any]:
    """What the run ended in, for the tracker, for people and as the command's result."""
    from braintumor_ray.metrics.verdicts import chance_note, found_and_missed
    from braintumor_ray.training.phases import as_text, comparable, phase_lines

    fields = trained.bundle.fields
    metrics = fields.metrics["validation"]
    run.tags({"bundle_fingerprint": trained.bundle.fingerprint})
    run.figures(_final(trained))
    measured = trained.phases[-1] if trained.phases else metrics
    if trained.phases:
        published = comparable(options.recipe.published, fields, options.synthetic)
        log("test split, looked at once, after everything was chosen:")
        log(as_text(phase_lines(trained.phases, published)))
    where = f"at threshold {measured['binary']['threshold']:.3f}"
    log(f"tumor decision {where}: {found_and_missed(measured['binary'])}")
    if at_chance := chance_note(measured["confusion_matrix"]):
        log(f"warning: {at_chance}")
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


def _final(trained: "TrainingResult") -> dict[str, Any]:
    """What the run ended in: figures of validation and, where there is one, of the test split."""
    fields = trained.bundle.fields
    test = {"test": trained.phases[-1]} if trained.phases else {}
    chosen = {"threshold": fields.threshold, "temperature": fields.temperature}
    return {**fields.metrics, **test, **chosen}


def _train_lines(found: dict[str, Any]) -> str:
    if "augmentation" in found:
        return str(found["augmentation"])
    if "folds" in found:
        return "\n".join(
            _fold_line(name, found[name]) for name in found if name not in ("folds", "left_out")
        )
    return (
        f"bundle: {found['bundle']}\n"
        f"validation: accuracy {found['accuracy']:.3f}, balanced accuracy "
        f"{found['balanced_accuracy']:.3f} (threshold {found['threshold']:.3f}, temperature "
        f"{found['temperature']:.2f}); see {found['curves']}"
    )


def _fold_line(name: str, found: dict[str, float | None]) -> str:
    if found["mean"] is None:
        return f"{name}: undefined"
    if found["low"] is None:
        return f"{name}: {found['mean']:.3f}"
    return f"{name}: {found['mean']:.3f} (95% interval {found['low']:.3f} to {found['high']:.3f})"
