"""Commands on training: recipes and train."""

from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from braintumor_ray.cli.console import short_errors
from braintumor_ray.cli.options import Json, check_choice, print_result, takes_catalog_options

if TYPE_CHECKING:
    from braintumor_ray.catalog.schema import CatalogOptions

app = typer.Typer()


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
def recipes_show(name: Annotated[str, typer.Argument(help="A recipe, or a TOML file.")]) -> None:
    """Print a recipe, its published figures in the comments."""
    from braintumor_ray.recipes.loader import recipe_text

    typer.echo(recipe_text(name), nl=False)


@app.command()
@short_errors
@takes_catalog_options
def train(
    source: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="As for 'catalog'; else $BRAINTUMOR_DATA, else phantoms."),
    ] = None,
    recipe: Annotated[str, typer.Option(help="A name ('recipes' lists them) or a TOML file.")] = (
        "mobilenetv2-finetune"
    ),
    output: Annotated[
        str, typer.Option("--output", "-o", help="Folder or URI of the run; bundle at RUN/bundle.")
    ] = "runs/latest",
    weights: Annotated[
        str, typer.Option(help="imagenet, none or a .safetensors file with timm's keys.")
    ] = "imagenet",
    num_workers: Annotated[str, typer.Option(help="Workers, or MIN:MAX (elastic).")] = "1",
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", help="A field of the recipe, such as optimizer.lr=3e-4."),
    ] = None,
    classes: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Merge, rename, leave out: tumor=glioma_tumor+pituitary_tumor,no_tumor."),
    ] = None,
    backbone: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Any convolutional timm name, at its own input size and normalization."),
    ] = None,
    split_by: Annotated[str, typer.Option(help="group, or official (the source's folders).")] = (
        "group"
    ),
    allow_leakage: Annotated[bool, typer.Option(help="Train on a split that leaks.")] = False,
    folds: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=2, help="Grouped cross-validation: a run per fold, RUN/fold-1, ..."),
    ] = None,
    cache: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Folder of decoded scans, shared by runs; else inside the run."),
    ] = None,
    truth: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Tumor masks, boxes or outlines: the evidence is guided to them."),
    ] = None,
    use_gpu: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--gpu/--no-gpu", help="A GPU per worker; else where the cluster has them."),
    ] = None,
    preview_augmentation: Annotated[
        bool, typer.Option(help="Only draw augmented scans, RUN/augmentation.png.")
    ] = False,
    as_json: Json = False,
    *,
    catalog_options: "CatalogOptions",
) -> None:
    """Train a recipe on Ray Train and write its bundle; an interrupted run goes on."""
    from braintumor_ray.commands import train_command

    check_choice("--split-by", split_by, ("group", "official"))
    found = train_command(
        source=source,
        recipe=recipe,
        settings=settings or [],
        classes=classes,
        backbone=backbone,
        output=output,
        weights=weights,
        num_workers=num_workers,
        split_by=split_by,
        allow_leakage=allow_leakage,
        folds=folds,
        cache=cache,
        truth=truth,
        use_gpu=use_gpu,
        preview=preview_augmentation,
        catalog_options=catalog_options,
    )
    print_result(found, as_json, _train_lines(found))


def _train_lines(found: dict[str, Any]) -> str:
    if "augmentation" in found:
        return str(found["augmentation"])
    if "folds" in found:
        return "\n".join(_fold_line(name, found[name]) for name in found if name != "folds")
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
