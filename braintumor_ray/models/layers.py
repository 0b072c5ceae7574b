"""A table and a picture of a network: blocks, their outputs, parameters, and what learns when."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from braintumor_ray.errors import UsageError
from braintumor_ray.models.classifier import Classifier
from braintumor_ray.models.freezing import set_trainable

_EXPANDED = 16  # containers of at most so many parts are shown by part
FROZEN_COLOR, LEARNS_COLOR = "#9aa3ad", "#2c5f94"


class Block(NamedTuple):
    """A row of the table.

    Attributes:
        name: dotted, as `--layer` and `stages.train` take it below the backbone.
        kind: class of the module.
        output: shape of its output for one image, without the batch; empty where it has not run.
        parameters: values that can learn or be frozen.
        learns: how many of them learn, by stage of the recipe.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    learns: tuple[int, ...]


def blocks_of(model: Classifier, stages: Sequence[Any] = ("all",)) -> list[Block]:
    """The blocks of a network in their order; the network itself is as before.

    Args:
        model: in eval mode, on CPU.
        stages: what learns in each, as `freezing.set_trainable` takes it.
    """
    modules = dict(_parts(model))
    shapes = _shapes(model, modules)
    before = [p.requires_grad for p in model.parameters()]
    learning = []
    for stage in stages:
        set_trainable(model, stage)
        learning.append({name: _count(m, only=True) for name, m in modules.items()})
    for parameter, flag in zip(model.parameters(), before, strict=True):
        parameter.requires_grad_(flag)
    return [
        Block(
            name,
            type(module).__name__,
            shapes.get(name, ()),
            _count(module),
            tuple(stage[name] for stage in learning),
        )
        for name, module in modules.items()
    ]


def table_lines(blocks: Sequence[Block]) -> list[str]:
    """The table as aligned text, with a sum."""
    stages = len(blocks[0].learns)
    head = ["layer", "kind", "output", "parameters", *(f"stage {i + 1}" for i in range(stages))]
    facts = ((b, [b.name, b.kind, _shape(b), f"{b.parameters:,}"]) for b in blocks)
    rows = [head, *(row + _learning(block) for block, row in facts)]
    sums = [sum(b.learns[i] for b in blocks) for i in range(stages)]
    total = f"{sum(b.parameters for b in blocks):,}"
    rows.append(["all", "", "", total, *(f"{count:,} learn" for count in sums)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    for row in rows:
        row[:] = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        row[3] = row[3].strip().rjust(widths[3])
    return ["  ".join(row).rstrip() for row in rows]


def draw_blocks(blocks: Sequence[Block], path: Path, title: str) -> None:
    """Write a picture: a bar of parameters for each block, blue where it learns in a stage.

    Raises:
        UsageError: matplotlib knows no such kind of file.
    """
    from matplotlib.figure import Figure

    count = len(blocks)
    figure = Figure(figsize=(9, 1.2 + 0.32 * count), layout="constrained")
    axes = figure.subplots()
    for row, block in enumerate(blocks):
        color = LEARNS_COLOR if any(block.learns) else FROZEN_COLOR
        axes.barh(row, max(block.parameters, 1), color=color)
        note = f" {block.parameters:,}" + (f"   {_shape(block)}" if block.output else "")
        axes.text(max(block.parameters, 1), row, note, va="center", fontsize=8)
    axes.set_yticks(range(count), [block.name for block in blocks], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(0.8, 300 * max(b.parameters for b in blocks))
    axes.set_xlabel("parameters (log scale), then channels x height x width of the output")
    axes.set_title(f"{title} (blue learns in some stage, gray is frozen)", fontsize=10, loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path, dpi=130)
    except ValueError as error:
        raise UsageError(f"picture '{path}': {error}; end it in .png") from error


def _parts(model: Classifier) -> Iterator[tuple[str, nn.Module]]:
    """Children of the network, and of its backbone and their short lists, with parameters."""
    for name, child in model.named_children():
        if name == "backbone":
            yield from _below("backbone", child)
        elif _count(child):
            yield name, child


def _below(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        inner = list(child.children())
        short = isinstance(child, nn.Sequential | nn.ModuleList) and 1 < len(inner) <= _EXPANDED
        if short:
            yield from _below(f"{prefix}.{name}", child)
        elif _count(child):
            yield f"{prefix}.{name}", child


def _count(module: nn.Module, *, only: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not only)


def _shapes(model: Classifier, modules: dict[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """What each module returns for one image; hooks are removed again."""
    found: dict[str, tuple[int, ...]] = {}
    hooks = []
    for name, module in modules.items():

        def note(_: nn.Module, __: Any, output: Any, name: str = name) -> None:  # noqa: ANN401
            if isinstance(output, Tensor):
                found[name] = tuple(output.shape[1:])

        hooks.append(module.register_forward_hook(note))
    size = model.architecture.image_size
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, size, size))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _shape(block: Block) -> str:
    return " x ".join(map(str, block.output))


def _learning(block: Block) -> list[str]:
    words = {0: "frozen", block.parameters: "learns"}
    return [words.get(count, f"{count:,} learn") for count in block.learns]
