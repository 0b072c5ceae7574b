"""Logs as JSON, an object a line, of the driver and of Ray's workers; without ids in clear.

Names of files and folders of an archive are ids, too: patients' names are in them. So every path
in a message is hidden but those below a few known folders.
"""

import io
import json
import logging
import os
import re
import sys
import traceback
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, TextIO

RUN_ID = "BRAINTUMOR_RUN_ID"
HIDDEN = "[path]"
PACKAGE = "braintumor_ray"
CONSOLE = f"{PACKAGE}.console"
PRINTED = "stderr"  # what came as a line, not as a record
WORKER_HOOK = f"{__name__}.log_as_worker"
# In quotation marks with a slash in it, or a URI, or a path from the root; a word after a blank
# that has a slash in it goes on with the path.
_PATHS = re.compile(
    r"'([^'\n]*/[^'\n]*)'"
    r"|\"([^\"\n]*/[^\"\n]*)\""
    r"|(?<![\w.])((?:[a-z][\w+.-]*:/)?/[^\s'\",;]+(?: [^\s'\",;]*/[^\s'\",;]*)*)"
)
# What Ray prints of a worker: "(MapWorker(MapBatches(Decode)) pid=12, ip=10.0.0.3) line".
_OF_RAY = re.compile(r"^(?:\x1b\[[0-9;]*m)*\((?:.*?pid=\d+|raylet|autoscaler|gcs_server)\b.*?\)")
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


def run_id() -> str:
    """Of this process and of the workers that it starts; made at the first call."""
    return os.environ.setdefault(RUN_ID, uuid.uuid4().hex)


def without_paths(text: str, known: Sequence[str] = ()) -> str:
    """A message whose paths and URIs are hidden, but those at or below known places."""

    def shown(found: re.Match[str]) -> str:
        path = next(group for group in found.groups() if group is not None)
        if any(path == place or path.startswith(place.rstrip("/") + "/") for place in known):
            return found[0]
        return found[0].replace(path, HIDDEN)

    return _PATHS.sub(shown, text)


class JsonFormatter(logging.Formatter):
    """Records as JSON objects: time, level, logger, message, run_id, fields.

    Args:
        run: id of the run.
        known: places whose paths may be shown.
    """

    def __init__(self, run: str, known: Sequence[str] = ()) -> None:
        super().__init__()
        self._run, self._known = run, tuple(known)

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        message = without_paths(record.getMessage(), self._known)
        if record.exc_info and record.exc_info[1] is not None:
            message += f" [{describe(record.exc_info[1])}]"
        found: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(
                "T", "milliseconds"
            ),
            "level": record.levelname,
            "logger": record.name,
            "message": message,
            "run_id": self._run,
            "fields": {k: v for k, v in vars(record).items() if not _is_standard(k)},
        }
        return json.dumps(found, default=str)


def _is_standard(attribute: str) -> bool:
    """Whether each record has it; Ray adds some that begin with an underscore."""
    return attribute in _STANDARD or attribute.startswith("_")


def describe(error: BaseException) -> str:
    """Type and places of an exception; its text may quote a header or a path."""
    frames = traceback.extract_tb(error.__traceback__)
    places = ", ".join(f"{os.path.basename(f.filename)}:{f.lineno} {f.name}" for f in frames[-5:])
    return f"{type(error).__name__} at {places or 'nowhere'}"


class LinesAsRecords(io.TextIOBase):
    """Takes the place of stderr: what anybody prints becomes log records.

    Lines of workers that are records already pass; their other lines are in Ray's own files.
    """

    def __init__(self, out: TextIO) -> None:
        self._out, self._rest = out, ""

    def write(self, text: str) -> int:
        """Complete lines become records."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._line(line)
        return len(text)

    def flush(self) -> None:
        """Records are written at once."""
        self._out.flush()

    def fileno(self) -> int:
        """Of stderr itself: programs that are started write there."""
        return self._out.fileno()

    def isatty(self) -> bool:
        """No bars among records."""
        return False

    def _line(self, line: str) -> None:
        if record := _record_in(line):
            print(record, file=self._out, flush=True)
        elif line.strip() and not _OF_RAY.match(line):
            logging.getLogger(PRINTED).info("%s", line)


def _record_in(line: str) -> str | None:
    """The record that a line ends with, as a worker has written it."""
    start = line.find('{"time":')
    if start < 0:
        return None
    try:
        found = json.loads(line[start:].rstrip())
    except ValueError:
        return None
    return line[start:].rstrip() if isinstance(found, dict) and "run_id" in found else None


@contextmanager
def json_logs(wanted: bool, known: Sequence[str] = ()) -> Iterator[None]:
    """Logs of this process as JSON on stderr while the block runs.

    Args:
        wanted: else nothing changes.
        known: places that messages may show, such as the results folder.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # read as Ray is imported: it joins like lines
    root, stderr, shown = logging.getLogger(), sys.stderr, warnings.showwarning
    before = root.handlers[:], root.level
    _to(stderr, known)
    sys.stderr = LinesAsRecords(stderr)
    warnings.showwarning = _warned
    try:
        yield
    finally:
        sys.stderr, warnings.showwarning = stderr, shown
        root.handlers[:], root.level = before


def are_json() -> bool:
    """Whether this process logs JSON."""
    return any(isinstance(h.formatter, JsonFormatter) for h in logging.getLogger().handlers)


def log_as_worker() -> None:
    """Runs in each of Ray's workers as it starts: JSON on its stderr, which reaches the driver."""
    _to(sys.stderr, ())
    warnings.showwarning = _warned


def worker_environment() -> dict[str, Any]:
    """Ray's runtime environment of a job whose workers log JSON."""
    return {"worker_process_setup_hook": WORKER_HOOK, "env_vars": {RUN_ID: run_id()}}


def _to(stream: TextIO, known: Sequence[str]) -> None:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter(run_id(), known))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for told in (PACKAGE, PRINTED):
        logging.getLogger(told).setLevel(logging.INFO)


def _warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """The text is left out: libraries quote what headers hold."""
    where = os.path.basename(filename)
    logging.getLogger("py.warnings").warning("%s in %s:%d", category.__name__, where, lineno)


def log_line(line: str, fields: Mapping[str, Any] | None = None) -> None:
    """A line for people as a record: what a command would print on stderr."""
    level = logging.INFO
    for word, found in (("error: ", logging.ERROR), ("warning: ", logging.WARNING)):
        if line.startswith(word):
            level, line = found, line.removeprefix(word)
    logging.getLogger(CONSOLE).log(level, "%s", line, extra=dict(fields or {}))
