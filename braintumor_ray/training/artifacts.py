"""Files of a run for people: curves, TensorBoard events, the model card."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from braintumor_ray.metrics.conformal import set_rule
from braintumor_ray.metrics.verdicts import chance_note, found_and_missed
from braintumor_ray.models.bundle import Bundle
from braintumor_ray.training.finish import set_warnings
from braintumor_ray.training.phases import comparable, phase_lines
from braintumor_ray.training.run_data import RunData

if TYPE_CHECKING:
    from braintumor_ray.training.options import TrainOptions


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
    epochs: int,
) -> str:
    """The card of a run in Markdown, from what the run did in so many epochs."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    fields = bundle.fields
    loader = PackageLoader("braintumor_ray.training", "")
    environment = Environment(
        loader=loader, undefined=StrictUndefined, autoescape=False, trim_blocks=True
    )
    published = comparable(options.recipe.published, fields, options.synthetic)
    measured = phases[-1] if phases else fields.metrics["validation"]
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
        epochs=epochs,
        most_epochs=sum(stage.epochs for stage in options.recipe.stages),
        phases=phase_lines(phases, published) if phases else [],
        published=bool(published),
        tested=phases[-1] if phases else None,
        counted=found_and_missed,
        at_chance=chance_note(measured["confusion_matrix"]),
        sets=set_rule(fields.prediction_sets).describe(fields.class_names)
        if fields.prediction_sets
        else [],
        set_warnings=set_warnings(bundle),
        recipe=json.dumps(fields.recipe, indent=1),
    )


def _split_line(data: RunData, options: "TrainOptions") -> str:
    if data.own_split:
        return "taken from the catalog"
    if options.leave_out is not None:
        return f"source '{options.leave_out}' is tested, the others train and validate by group"
    if options.split_by == "official":
        return "the source's own"
    return f"by group, stratified by class, seed {options.recipe.seed}"


def draw_curves(history: list[dict[str, Any]], path: Path) -> None:
    """Loss, accuracy, precision, recall (training and validation) and the rate, over epochs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from braintumor_ray.pages.curves import draw_curve, recorded_curves

    curves = recorded_curves(history)
    figure = Figure(figsize=(3.4 * len(curves), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(curves), squeeze=False)[0]
    for axis, (key, title) in zip(axes, curves, strict=True):
        draw_curve(axis, history, key, title)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def write_events(history: list[dict[str, Any]], folder: Path) -> None:
    """Every figure of every epoch as a TensorBoard event file."""
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for entry in history:
            for name, value in entry.items():
                if isinstance(value, int | float) and name != "epoch":
                    writer.add_scalar(name.replace("_", "/", 1), value, entry["epoch"])
