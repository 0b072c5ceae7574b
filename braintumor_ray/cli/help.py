"""The look of `--help`: names of options are never cut, at any width of the terminal.

Typer's own table gives the negative spelling of a flag a column of its own, and breaks all columns
alike where a terminal is narrow. Here a name, its negative and what it takes share one column that
does not wrap.
"""

import inspect
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperArgument, TyperCommand

from braintumor_ray.options import FIRST

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.panel import Panel

ONE_LINE = 30  # characters of names and value that share a line; else the value has its own
ARGUMENTS = "Arguments"


class HelpCommand(TyperCommand):
    """A command whose help has a panel for each subject, and in it a row for each option."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - typer's
        """Print usage, text and panels on stdout, as wide as the terminal is."""
        from rich.console import Console
        from rich.padding import Padding

        console = Console(highlight=False)
        parts = [self.get_usage(ctx), *_paragraphs(self.help or "")]
        for part in parts:
            console.print(Padding(part, (0, 1, 1, 1)), markup=False)
        for panel in self._panels(ctx):
            console.print(panel)

    def _panels(self, ctx: Any) -> Iterator["Panel"]:  # noqa: ANN401 - typer's
        """What everybody needs comes first; then the subjects, in the order of their options."""
        from rich.panel import Panel

        rows: dict[str, list[tuple[str, str]]] = {ARGUMENTS: [], FIRST: []}
        for parameter in self.get_params(ctx):
            if (row := _row(parameter, ctx)) is not None:
                rows.setdefault(_panel_of(parameter), []).append(row)
        for title, found in rows.items():
            if found:
                yield Panel(_table(found), title=title, title_align="left", border_style="dim")


def use_help(app: typer.Typer) -> None:
    """Let all commands of an application, those of its groups included, show their help so."""
    for command in app.registered_commands:
        command.cls = HelpCommand
    for group in app.registered_groups:
        if group.typer_instance is not None:
            use_help(group.typer_instance)


def _table(rows: list[tuple[str, str]]) -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(no_wrap=True, style="bold cyan")
    table.add_column(ratio=1)
    for names, text in rows:
        table.add_row(Text(names), Text(text))
    return table


def _row(parameter: Any, ctx: Any) -> tuple[str, str] | None:  # noqa: ANN401 - typer's
    """Names and value, and the text with default and limits; None: it is hidden."""
    record = parameter.get_help_record(ctx)
    if record is None:
        return None
    # typer brackets a default that is not the value itself; here its own brackets are enough.
    text = re.sub(r"\[default: \((.*?)\)(?=[;\]])", r"[default: \1", record[1])
    value = parameter.metavar or ""
    if isinstance(parameter, TyperArgument):
        return "\n".join(_broken(value)), text
    return _names(parameter.opts, parameter.secondary_opts, value), text


def _names(names: list[str], negatives: list[str], value: str) -> str:
    """Names, negatives and the value, on as few lines as are short."""
    shown = ", ".join(sorted(names, key=len, reverse=True))
    lines = [shown, *negatives]
    if value and len(shown) + 1 + len(value) <= ONE_LINE:
        lines[0] += f" {value}"
    elif value:
        lines += [f"  {part}" for part in _broken(value)]
    return "\n".join(lines)


def _broken(value: str) -> list[str]:
    """Choices on several lines, each but the last ending in '|'."""
    lines = [""]
    for choice in re.findall(r"[^|]*\|?", value):
        if len(lines[-1]) + len(choice) > ONE_LINE - 2 and lines[-1]:
            lines.append("")
        lines[-1] += choice
    return lines


def _panel_of(parameter: Any) -> str:  # noqa: ANN401 - typer's
    given = getattr(parameter, "rich_help_panel", None)
    return given or (ARGUMENTS if isinstance(parameter, TyperArgument) else FIRST)


def _paragraphs(text: str) -> list[str]:
    """A docstring's paragraphs, each on one line, for the terminal to wrap."""
    return [" ".join(part.split()) for part in inspect.cleandoc(text).split("\n\n") if part]
