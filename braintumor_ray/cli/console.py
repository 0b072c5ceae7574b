"""What commands share on the terminal: progress on stderr, errors as one line, exit codes."""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import typer

from braintumor_ray.errors import BrainTumorError
from braintumor_ray.progress import TenthLines

if TYPE_CHECKING:
    from rich.console import Console

P = ParamSpec("P")
T = TypeVar("T")
Advance = Callable[[int, int], None]
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def console() -> "Console":
    """The terminal on stderr; results go to stdout."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """A line for people, on stderr."""
    typer.echo(line, err=True)


def short_errors(command: Callable[P, T]) -> Callable[P, T]:
    """Domain errors become one line and their exit code; anything else keeps its traceback."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except BrainTumorError as error:
            say(f"error: {error}")
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt:
            say("interrupted; what is finished is kept: the same command goes on from there")
            raise typer.Exit(INTERRUPTED) from None

    return wrapped


@contextmanager
def progress_bar(title: str) -> Iterator[Advance]:
    """Yields `advance(done, total)`; a bar on a terminal, a line per tenth elsewhere."""
    if not sys.stderr.isatty():
        yield TenthLines(title, say)
        return
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[speed]}"),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console()) as bar:
        task = bar.add_task(title, total=None, speed="")

        def advance(done: int, total: int) -> None:
            elapsed = bar.tasks[0].elapsed
            speed = f"{done / elapsed:.0f}/s" if elapsed and done else ""
            bar.update(task, completed=done, total=total or None, speed=speed)

        yield advance
