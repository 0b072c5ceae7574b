"""The file of labels while it is written: lines are added, none is ever changed."""

import csv
import errno
import fcntl
import io
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from braintumor_ray.catalog.reviewed import Event, Key, Reviewed, is_event, read_events
from braintumor_ray.errors import UsageError
from braintumor_ray.storage import is_local, local_path, sync_path, write_atomically

COLUMNS = ("path", "frame", "label", "verdict", "boxes", "note", "reviewer", "time")
_TAIL = 1 << 16


class LabelLog:
    """Appends events to a file of labels and knows the newest state of each scan.

    An event is on the disk when `add` returns. Two servers may write one file: each line is written
    under a lock, and what the other has added is read before.

    Args:
        location: of the .jsonl file; its folder is made.

    Raises:
        UsageError: not a local .jsonl file, or it cannot be written, or its table would replace
            another one.
        CatalogError: the file is there and damaged.
    """

    def __init__(self, location: str) -> None:
        if not is_local(location) or not location.endswith(".jsonl"):
            raise UsageError(
                f"--labels '{location}' is no .jsonl file on this machine: labels are appended "
                "line by line; give a local FILE.jsonl, and copy it where it is wanted"
            )
        self.path = Path(os.path.abspath(local_path(location)))
        self._table = self.path.with_suffix(".csv")
        self._refuse_foreign_table()
        self._lock = threading.Lock()
        self._states: dict[Key, Reviewed] = {}
        self._ids: dict[str, Event] = {}  # the browser sends again what it heard no answer for
        self._count = 0
        self._size = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            sync_path(self.path.parent)  # a new file is in its folder for good
        except OSError as error:
            raise UsageError(
                f"labels '{location}' cannot be written ({error.strerror}); give another --labels"
            ) from error
        with self._held():
            self._catch_up()

    @property
    def count(self) -> int:
        """Events in the file."""
        return self._count

    def state(self, key: Key) -> Reviewed | None:
        """The newest state of a scan, None where nobody has reviewed it."""
        return self._states.get(key)

    def states(self) -> dict[Key, Reviewed]:
        """The newest state of each scan that was reviewed."""
        return dict(self._states)

    def add(self, event: Event) -> tuple[Reviewed, Reviewed | None]:
        """Write an event, unless one with its `id` is in the file already.

        Returns:
            The scan's state, and its state before.

        Raises:
            OSError: the disk is full or broken; nothing is added.
        """
        with self._held():
            self._catch_up()
            key = (event["path"], event["frame"])
            before = self._states.get(key)
            if event["id"] not in self._ids:
                now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
                self._write({**event, "time": now})
            return self._states[key], before

    def refresh(self) -> None:
        """Read what another server has added."""
        if os.fstat(self._file).st_size != self._size:
            with self._held():
                self._catch_up()

    def write_table(self) -> Path:
        """The newest state of each scan as a table next to the file, for people."""
        write_atomically(self._table, table_of(self._states).encode())
        return self._table

    def _refuse_foreign_table(self) -> None:
        """Of a file of that name that is not ours, such as the source's own labels.csv."""
        try:
            with self._table.open("rb") as stream:
                first = stream.readline(_TAIL)
        except OSError:
            return
        if first.strip().removeprefix(b"\xef\xbb\xbf") not in (b"", ",".join(COLUMNS).encode()):
            raise UsageError(
                f"'{self._table}' is another table, and the labels are written there at the end; "
                f"give a --labels of another name than '{self.path.name}'"
            )

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    @contextmanager
    def _held(self) -> Iterator[None]:
        with self._lock:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _write(self, event: Event) -> None:
        line = json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        try:
            _write_whole(self._file, line)
        except OSError:
            os.ftruncate(self._file, self._size)  # no half line for the next one to follow
            raise
        self._size += len(line)
        self._take(event)

    def _catch_up(self) -> None:
        """Read lines that are new; end the last one, or cut it off if its writer died within it."""
        size = os.fstat(self._file).st_size
        if not self._is_at_its_place():  # what is added would be lost with the file that was there
            raise UsageError(f"'{self.path}' is another file now: it was replaced; start again")
        if size < self._size:
            raise UsageError(f"'{self.path}' has become shorter: it was changed; start again")
        if size == self._size:
            return
        end = self._whole_lines(size)
        if is_event(os.pread(self._file, size - end, end)):
            end = size + os.write(self._file, b"\n")
        elif end < size:
            os.ftruncate(self._file, end)
        for event in read_events(str(self.path))[self._count :]:
            self._take(event)
        self._size = end

    def _is_at_its_place(self) -> bool:
        """Whether the path leads to the open file: an editor or a copy puts a new one there."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._file))
        except FileNotFoundError:
            return False

    def _whole_lines(self, size: int) -> int:
        """Where the last whole line ends."""
        end = size
        while end > 0:
            start = max(0, end - _TAIL)
            found = os.pread(self._file, end - start, start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
        return 0

    def _take(self, event: Event) -> None:
        key = (event["path"], event["frame"])
        self._states[key] = self._states.get(key, Reviewed(*key)).changed(event)
        self._ids[event.get("id", "")] = event
        self._count += 1


def table_of(states: Mapping[Key, Reviewed]) -> str:
    """States as CSV that `train --labels` takes as well as the file itself."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(COLUMNS)
    for seen in states.values():
        writer.writerow([_cell(name, getattr(seen, name)) for name in COLUMNS])
    return stream.getvalue()


def _cell(name: str, value: Any) -> Any:  # noqa: ANN401 - of any column
    if name == "boxes":
        return json.dumps(value) if value else ""
    # Spreadsheets take such a text for a formula; paths and labels are read again and stay.
    free = name in ("note", "reviewer") and value.startswith(("=", "+", "-", "@"))
    return f"'{value}" if free else value


def _write_whole(file: int, line: bytes) -> None:
    if os.write(file, line) != len(line):
        raise OSError(errno.ENOSPC, "no space left for the whole line")
    os.fsync(file)
