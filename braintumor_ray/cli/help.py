"""The look of `--help`: names of options are never cut, at any width of the terminal.

Typer's own table gives the negative spelling of a flag a column of its own, and breaks all columns
alike where a terminal is narrow. Here a name, its negative and what it takes share one column that
does not wrap.
"""

import inspect
import re
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from braintumor_ray.options import FIRST

if TYPE_CHECKING:
    from rich.console import RenderableType

ONE_LINE = 30  # characters of names and value that share a line; else the value has its own
ARGUMENTS, COMMANDS = "Arguments", "Commands"
Rows = dict[str, list[tuple[str, str]]]  # by panel: names, and what they are


class HelpCommand(TyperCommand):
    """A command whose help has a panel for each subject, and in it a row for each option."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - typer's
        """Print usage, text and panels on stdout, as wide as the terminal is."""
        _print_help(self, ctx, _option_rows(self, ctx))


class HelpGroup(TyperGroup):
    """A group of commands, or the application, whose help looks like that of its commands."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - typer's
        """Print usage, text, options and commands on stdout, as wide as the terminal is."""
        found = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        commands = [
            (name, next(iter(_paragraphs(command.help or "")), ""))
            for name, command in found
            if command is not None and not command.hidden
        ]
        _print_help(self, ctx, {**_option_rows(self, ctx), COMMANDS: commands})


def use_help(app: typer.Typer) -> None:
    """Let an application, its groups and all commands show their help so."""
    app.info.cls = HelpGroup
    for command in app.registered_commands:
        command.cls = HelpCommand
    for group in app.registered_groups:
        if group.typer_instance is not None:
            use_help(group.typer_instance)


def _print_help(command: Any, ctx: Any, rows: Rows) -> None:  # noqa: ANN401 - typer's
    from rich.console import Console
    from rich.padding import Padding
    from rich.panel import Panel

    console = Console(highlight=False)
    for part in [command.get_usage(ctx), *_paragraphs(command.help or "")]:
        console.print(Padding(part, (0, 1, 1, 1)), markup=False)
    for title, found in rows.items():
        if found:
            console.print(Panel(_table(found), title=title, title_align="left", border_style="dim"))


def _option_rows(command: Any, ctx: Any) -> Rows:  # noqa: ANN401 - typer's
    """What everybody needs comes first; then the subjects, in the order of their options."""
    rows: Rows = {ARGUMENTS: [], FIRST: []}
    for parameter in command.get_params(ctx):
        if (row := _row(parameter, ctx)) is not None:
            rows.setdefault(_panel_of(parameter), []).append(row)
    return rows


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
