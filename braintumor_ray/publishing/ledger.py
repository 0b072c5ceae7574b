"""What was sent to a server, in the results folder: a killed `publish` goes on where it was.

    RESULTS/published/SERVER/000001.jsonl     a line per scan of generation 1 that the server has

SERVER is a digest of the address. A line has the scan's id and the digest of its row, both of which
are in the results or follow from them; no id of a patient or of a DICOM object.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from types import TracebackType

from braintumor_ray.errors import PublishError
from braintumor_ray.predict.results import ResultsFolder
from braintumor_ray.publishing.rows import Chosen
from braintumor_ray.storage import is_local, local_path, read_bytes, write_atomically

PUBLISHED = "published"
_EVERY = 50  # rows between two writes where a file cannot be appended to: an object store


class Ledger:
    """The scans that one server has; a context manager that writes what is left at its end."""

    def __init__(self, folder: ResultsFolder, server: str) -> None:
        self._folder = folder
        self._name = hashlib.sha256(server.rstrip("/").encode()).hexdigest()[:16]
        self._files = {
            name: self._lines(name)
            for name in folder.names(PUBLISHED, self._name)
            if name.endswith(".jsonl")
        }
        self._sent = {_key(line) for lines in self._files.values() for line in lines}
        self._waiting: dict[str, int] = {}

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in list(self._waiting):
            self._write(name)

    def has(self, row: Chosen) -> bool:
        """Whether the server has the objects of a row."""
        return (row.scan_id, row.digest) in self._sent

    def add(self, rows: Sequence[Chosen]) -> None:
        """Note that the server has them; on a local disk it is there when this returns.

        Args:
            rows: of one generation. A kill leaves all of their lines or none.
        """
        name = f"{rows[0].generation:06d}.jsonl"
        lines = [json.dumps({"scan_id": row.scan_id, "row": row.digest}) for row in rows]
        self._files.setdefault(name, []).extend(lines)
        self._sent.update(map(_key, lines))
        if is_local(self._folder.location):
            self._append(name, "\n".join(lines))
            return
        self._waiting[name] = self._waiting.get(name, 0) + len(lines)
        if self._waiting[name] >= _EVERY:
            self._write(name)

    def _lines(self, name: str) -> list[str]:
        text = read_bytes(self._folder.at(PUBLISHED, self._name, name)).decode()
        return [line for line in text.splitlines() if _is_whole(line)]

    def _append(self, name: str, lines: str) -> None:
        path = local_path(self._folder.at(PUBLISHED, self._name, name))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as stream:
                # The newline comes first, too: a killed writer may have left half a line.
                stream.write(f"\n{lines}\n".encode())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise PublishError(
                f"the ledger '{path}' cannot be written ({error.strerror}); mend it and publish "
                "again: the server keeps what it has"
            ) from error

    def _write(self, name: str) -> None:
        self._waiting.pop(name)
        text = "".join(f"{line}\n" for line in self._files[name])
        write_atomically(self._folder.at(PUBLISHED, self._name, name), text.encode())


def _key(line: str) -> tuple[int, str]:
    found = json.loads(line)
    return int(found["scan_id"]), str(found["row"])


def _is_whole(line: str) -> bool:
    """Whether a line was written to its end; the scan of another one is sent again."""
    try:
        _key(line)
    except (KeyError, TypeError, ValueError):
        return False
    return True
