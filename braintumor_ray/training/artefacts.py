"""What a run leaves for people: curves, events, the model card."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from braintumor_ray.models.bundle import Bundle
from braintumor_ray.training.curves import draw_curves, write_events
from braintumor_ray.training.phases import phase_lines
from braintumor_ray.training.run_data import RunData

if TYPE_CHECKING:
    from braintumor_ray.training.run import TrainOptions


def write_history(history: list[dict[str, Any]], folder: Path) -> None:
    """Write history.json, curves.png and TensorBoard events."""
    (folder / "history.json").write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")
    draw_curves(history, folder / "curves.png")
    write_events(history, folder / "tensorboard")


def model_card(
    bundle: Bundle,
    data: RunData,
    phases: list[dict[str, Any]],
    options: "TrainOptions",
    weights: str,
) -> str:
    """The card of a run in Markdown, from what the run did."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    fields = bundle.fields
    loader = PackageLoader("braintumor_ray.training", "")
    environment = Environment(
        loader=loader, undefined=StrictUndefined, autoescape=False, trim_blocks=True
    )
    used = sum(sum(row.values()) for row in data.counts.values())
    return environment.get_template("model_card.md.j2").render(
        fields=fields,
        metrics=fields.metrics["validation"],
        counts=data.counts,
        left_out=data.catalog.num_rows - used,
        source=options.source,
        synthetic=options.synthetic,
        split_by=_split_line(data, options),
        patients=data.has_patients,
        leaky=data.leaks.describe() if data.leaks.leaky else "",
        weights=weights,
        phases=phase_lines(phases, options.recipe.published) if phases else [],
        tested=phases[-1] if phases else None,
        recipe=json.dumps(fields.recipe, indent=1),
    )


def _split_line(data: RunData, options: "TrainOptions") -> str:
    if options.split_by == "official":
        return "the source's own"
    return f"by group, stratified by class, seed {options.recipe.seed}"
