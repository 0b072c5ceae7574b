"""The command that shows a network: a table of its layers and a picture."""

from pathlib import Path
from typing import Annotated, Any

import typer

from braintumor_ray.cli.console import short_errors
from braintumor_ray.cli.options import BundleArgument, Json, print_result

app = typer.Typer()


@app.command()
@short_errors
def network(
    bundle: BundleArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PICTURE", help="The picture, .png.")
    ] = Path("network.png"),
    as_json: Json = False,
) -> None:
    """Show a bundle's network: layers, shapes, parameters, and what learned in each stage."""
    from braintumor_ray.models.bundle import load_bundle
    from braintumor_ray.models.layers import blocks_of, draw_blocks, table_lines

    loaded = load_bundle(bundle)
    architecture = loaded.fields.architecture
    blocks = blocks_of(loaded.build_model(), _stages(loaded.fields.recipe))
    title = f"{architecture.backbone}, {architecture.head} head, {architecture.image_size} px"
    if not output.suffix:
        output = output.with_suffix(".png")
    draw_blocks(blocks, output, title)
    found = {"layers": [block._asdict() for block in blocks], "picture": str(output)}
    print_result(found, as_json, "\n".join([*table_lines(blocks), f"picture: {output}"]))


def _stages(recipe: dict[str, Any]) -> list[Any]:
    """What learned in each stage of a recipe; all of it where the bundle does not record it."""
    return [stage.get("train", "all") for stage in recipe.get("stages", [])] or ["all"]
