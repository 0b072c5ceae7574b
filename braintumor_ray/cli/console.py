"""What commands share on the terminal: progress on stderr, errors as one line, exit codes."""

import functools
import inspect
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from braintumor_ray.errors import BrainTumorError, UsageError, first_line, innermost, lacks_space
from braintumor_ray.monitoring.logs import are_json, json_logs, log_line
from braintumor_ray.progress import TenthLines
from braintumor_ray.storage import is_local, local_path

if TYPE_CHECKING:
    from rich.console import Console

    from braintumor_ray.types import Progress

T = TypeVar("T")
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
LogJson = Annotated[
    bool,
    typer.Option(
        "--log-json",
        help="Log JSON on stderr, an object a line; see docs/monitoring.md.",
        metavar="",
        show_default=False,
        rich_help_panel="Monitoring",
    ),
]
logger = logging.getLogger(__name__)


def console() -> "Console":
    """The terminal on stderr; results go to stdout."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def log(line: str, fields: Mapping[str, Any] | None = None) -> None:
    """A line for people, on stderr; with `--log-json` a record that has these fields, too."""
    if are_json():
        log_line(line, fields)
    else:
        typer.echo(line, err=True)


def open_pages(pages: Sequence[str]) -> None:
    """Show local pages and pictures in the user's browser, where there is one."""
    import webbrowser

    for page in pages:
        if not webbrowser.open(Path(page).resolve().as_uri()):
            log(f"no browser was found to open '{page}'")


def foreign_names(folder: Path, own: Collection[str]) -> list[str]:
    """What is in a folder and not of a command that writes all of it, sorted.

    Hidden files are nobody's: a file manager leaves some (.DS_Store) where pages were looked at.
    """
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    return sorted(name for name in found.difference(own) if not name.startswith("."))


def short_errors(command: Callable[..., T]) -> Callable[..., T]:
    """Domain errors become one line and their exit code; anything else keeps its traceback.

    Gives the command the option `--log-json`.
    """

    @functools.wraps(command)
    def wrapped(*args: Any, log_json: bool = False, **kwargs: Any) -> T:  # noqa: ANN401 - typer's
        with json_logs(log_json, _known_places(kwargs)):
            try:
                return command(*args, **{k: _on_this_machine(v) for k, v in kwargs.items()})
            except KeyboardInterrupt:
                log("interrupted; what is finished is kept: the same command goes on from there")
                raise typer.Exit(INTERRUPTED) from None
            except Exception as error:
                cause = innermost(error)  # also of what a worker on another node raised
                if isinstance(cause, BrainTumorError):
                    log(f"error: {cause}")
                    raise typer.Exit(cause.exit_code) from error
                if lacks_space(cause):
                    log(_no_space(cause))
                    raise typer.Exit(1) from error
                if isinstance(error, OSError) and (place := _written_at(error, kwargs)):
                    log(f"error: '{place}' cannot be written: {error}; give another place")
                    raise typer.Exit(1) from error
                if not log_json or isinstance(error, typer.Exit | typer.Abort | typer.BadParameter):
                    raise
                logger.exception("unexpected failure")
                raise typer.Exit(1) from error

    signature = inspect.signature(command)
    own = inspect.Parameter(
        "log_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=LogJson
    )
    wrapped.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), own]
    )
    wrapped.__annotations__ = {**command.__annotations__, "log_json": LogJson}
    return wrapped


_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/([^/].*)", re.DOTALL)


def _on_this_machine(value: T) -> T | Path:
    """A path of an option, taken from a `file://`; other values as they are.

    Raises:
        UsageError: it is another URI, of whose two slashes pathlib has left one.
    """
    found = _URI.fullmatch(str(value)) if isinstance(value, Path) else None
    if found is None:
        return value
    if found[1] != "file":
        raise UsageError(
            f"'{found[1]}://{found[2]}' is not on this machine, and this command writes there "
            "only; give a local path"
        )
    return local_path(f"file:///{found[2]}")


def _no_space(error: BaseException) -> str:
    return (
        f"error: {first_line(error)}; what is finished is kept: free space there or in "
        f"'{tempfile.gettempdir()}' (TMPDIR), and run the same command again"
    )


def _written_at(error: OSError, options: Mapping[str, Any]) -> str | None:
    """The output of a command in whose way something is: a file, missing rights, a store."""
    given = (v for k, v in options.items() if v and (k == "output" or isinstance(v, Path)))
    for output in map(str, given):
        if error.filename is None:  # stores name none
            if not is_local(output):
                return output
            continue
        named = local_path(os.fsdecode(error.filename)).absolute()
        place = local_path(output).absolute()
        # A file that is written next to it, and renamed at the end, begins with its name.
        beside = named.parent == place.parent and named.name.lstrip(".").startswith(place.name)
        if beside or named.is_relative_to(place) or place.is_relative_to(named):
            return output
    return None


def _known_places(options: Mapping[str, Any]) -> list[str]:
    """What a log may show of paths: where results and bundles are."""
    return [str(options[name]) for name in ("output", "results", "bundle") if options.get(name)]


@contextmanager
def progress_bar(title: str) -> Iterator["Progress"]:
    """Yields `advance(done, total)`; a bar on a terminal, a line per tenth elsewhere."""
    if not sys.stderr.isatty():
        yield TenthLines(title, log)
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
