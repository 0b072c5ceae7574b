"""Files below a source: which may be scans, and what is left out for which reason."""

import json
import os
import posixpath
import re
import stat
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from braintumor_ray.errors import CatalogError, UsageError
from braintumor_ray.storage import (
    is_local,
    local_path,
    modified,
    open_filesystem,
    spelled,
    split_uri,
)

SIDECARS = {
    *(".csv", ".tsv", ".json", ".txt", ".md", ".xml", ".html", ".htm", ".yaml", ".yml"),
    *(".parquet", ".xlsx", ".ini", ".db", ".py", ".ipynb", ".log"),
}
ARCHIVES = {".zip", ".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar"}
# What file servers, desktops and synchronizers put next to the files of their users.
SYSTEM_FOLDERS = {
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "@sharebin", "@synoresource"),
    *("#recycle", "#snapshot", "~snapshot", "$recycle.bin", "recycler", "recycled"),
    *("lost+found", "system volume information", "__macosx", "__pycache__"),
    *("network trash folder", "temporary items"),
}
_PARTIAL = re.compile(r"~$|^~\$|\.(tmp|part|partial|crdownload|filepart|swp)$", re.IGNORECASE)
_PACKED_TAR = re.compile(r"\.tar\.(gz|bz2|xz|zst)$", re.IGNORECASE)

HIDDEN = "hidden"
SYSTEM = "thumbnails and bins"
SIDECAR = "tables and texts"
ARCHIVE = "archives to unpack"
PARTIAL = "backups and partial files"
NO_FILE = "pipes, sockets and devices"
LINKED_TWICE = "links to a folder that is listed already"
EMPTY_NAME = "keys with an empty part ('//')"
UNREADABLE_FOLDER = "folders that cannot be read"
LISTERS = 16  # prefixes of a store that are listed at a time
PREFIXES, MOST_LEVELS = 64, 4  # so many are enough; so deep they are looked for
_LEFT_OUT = b"left_out"  # key in a catalog's metadata


@dataclass(frozen=True)
class FoundFile:
    """A file as its store lists it; `size` and `mtime` are None for one that is missing.

    Also for one that is there and `unsized`: its store does not report them, and never changes it.
    """

    path: str  # below the root, with /
    uri: str
    size: int | None
    mtime: datetime | None
    unsized: bool = False


Entry = FoundFile | tuple[str, str]  # a file, or the path and why it is left out


@dataclass(frozen=True)
class Listing:
    """What is below a root.

    Attributes:
        files: those that may be scans, sorted by path.
        left_out: how many of the other entries there are, by the reason.
        archives: paths of the archives among them, which may hold scans.
    """

    files: list[FoundFile]
    left_out: Counter[str] = field(default_factory=Counter)
    archives: list[str] = field(default_factory=list)

    def sort_out(self, entries: Iterable["Entry"]) -> Iterator[FoundFile]:
        """The entries that may be scans; the others are counted."""
        for entry in entries:
            path = entry[0] if isinstance(entry, tuple) else entry.path
            reason = why_left_out(path)
            if isinstance(entry, tuple):
                reason = entry[1] if reason not in (SYSTEM, HIDDEN) else reason
            if reason is None and isinstance(entry, FoundFile):
                yield entry
                continue
            self.left_out[str(reason)] += 1
            if reason == ARCHIVE:
                self.archives.append(path)

    def require_some(self, root: str, files: int) -> None:
        """Refuse a source without files.

        Raises:
            CatalogError: there are none; names what was left out.
        """
        if not files:
            about = self.describe()
            raise CatalogError(
                f"'{root}' holds no files that could be scans" + (f" ({about})" if about else "")
            )

    def describe(self) -> str:
        """What was left out, as one line with the names of the first archives; may be empty."""
        parts = [f"{reason} {count}" for reason, count in sorted(self.left_out.items())]
        named = [posixpath.basename(path) for path in self.archives[:3]]
        text = ", ".join(parts) + (f" ({', '.join(named)})" if named else "")
        return f"left out: {text}" if parts else ""


def with_left_out(catalog: pa.Table, found: Listing) -> pa.Table:
    """The catalog, which remembers in its metadata what was left out when it was made."""
    note = json.dumps({"counts": found.left_out, "archives": found.archives[:3]}, sort_keys=True)
    metadata = catalog.schema.metadata or {}
    return catalog.replace_schema_metadata({**metadata, _LEFT_OUT: note.encode()})


def left_out_of(schema: pa.Schema) -> Listing:
    """What was left out when a catalog was made; its list of files is empty."""
    note = json.loads((schema.metadata or {}).get(_LEFT_OUT, b'{"counts": {}, "archives": []}'))
    return Listing([], Counter(note["counts"]), note["archives"])


def root_of(source: str | Path) -> str:
    """A source as text, without a slash at its end.

    Raises:
        UsageError: it is empty (a variable that is not set), which is not the root of this machine.
    """
    text = spelled(str(source))
    if not text.strip():
        raise UsageError("the source is empty; give a folder, a CSV, a catalog or a URI")
    return text.rstrip("/") or "/"


def list_files(root: str) -> Listing:
    """Every entry below a root: as a file that may be a scan, or counted as left out.

    Hidden files, sidecars (tables, texts, pages), archives and what belongs to a file server are
    left out; the rest is judged by content when it is decoded, whatever it is called. Links are
    followed; a folder is listed once. A link that leads nowhere is a file without a size.

    Raises:
        CatalogError: the root is not there, cannot be listed, or holds nothing.
    """
    found = Listing([])
    found.files.extend(files_below(root, found))
    found.files.sort(key=lambda file: file.path)
    found.archives.sort()
    found.require_some(root, len(found.files))
    return found


def files_below(root: str, found: Listing) -> Iterator[FoundFile]:
    """The files of `list_files` as they are found, in no order.

    Args:
        root: folder or URI.
        found: where the other entries are counted.

    Raises:
        CatalogError: as `list_files`, but not for a root that holds nothing.
    """
    try:
        yield from found.sort_out(_local_entries(root) if is_local(root) else _stored_entries(root))
    except FileNotFoundError as error:
        raise CatalogError(
            f"'{root}' does not exist; give a folder, a CSV, a catalog or a URI"
        ) from error
    except OSError as error:
        raise CatalogError(
            f"'{root}' cannot be listed: {error.strerror or error}; give a folder, a CSV, a "
            "catalog or a URI"
        ) from error


def stat_files(root: str, paths: Iterable[str]) -> list[FoundFile]:
    """The named files below a root, in the given order; a missing one has no size.

    So has one of this machine that cannot be looked at, such as one of too long a name.
    """
    names, base = list(paths), base_of(root)
    uris = [uri_of(root, base, name) for name in names]
    if is_local(root):
        return [_local_file(name, uri) for name, uri in zip(names, uris, strict=True)]
    filesystem, _ = open_filesystem(root)
    infos = filesystem.get_file_info([open_filesystem(uri)[1] for uri in uris])
    return [
        FoundFile(name, uri, info.size if info.is_file else None, info.mtime)
        for name, uri, info in zip(names, uris, infos, strict=True)
    ]


def base_of(root: str) -> str:
    """A root as `uri_of` takes it: absolute, or as its store's file system names it."""
    if is_local(root):
        return spelled(os.path.abspath(local_path(root)))
    return str(open_filesystem(root)[1])


def uri_of(root: str, base: str, path: str) -> str:
    """Where a file is, as `storage.read_bytes` takes it."""
    uri = split_uri(root)
    if uri is None or is_local(root):
        return posixpath.join(base, path)
    return f"{uri.scheme}://{base}/{path}"


def why_left_out(path: str) -> str | None:
    """Why an entry cannot be a scan, by its path below the root; None: it may be one."""
    parts = path.split("/")
    if any(part.lower() in SYSTEM_FOLDERS for part in parts):
        return SYSTEM
    if any(part.startswith((".", "__MACOSX")) for part in parts):
        return HIDDEN
    name = parts[-1]
    ending = posixpath.splitext(name)[1].lower()
    if ending in ARCHIVES or _PACKED_TAR.search(name):
        return ARCHIVE
    if ending in SIDECARS:
        return SIDECAR
    return PARTIAL if _PARTIAL.search(name) else None


def _local_file(path: str, uri: str) -> FoundFile:
    try:
        status = os.stat(local_path(uri))
    except (OSError, ValueError):  # no path of any file has a NUL, in Python's words a ValueError
        return FoundFile(path, uri, None, None)
    size = status.st_size if stat.S_ISREG(status.st_mode) else None
    return FoundFile(path, uri, size, modified(status))


def _stored_entries(root: str) -> Iterator[Entry]:
    from pyarrow.fs import FileType

    filesystem, base = open_filesystem(root)
    for info in _stored_infos(filesystem, base):
        # Not a relative path as of folders: a key may hold '..', which means itself.
        path = info.path.removeprefix(base).removeprefix("/")
        if info.type == FileType.Directory:
            continue
        if info.type != FileType.File:
            yield path, NO_FILE
        elif "" in path.split("/"):
            yield path, EMPTY_NAME  # pyarrow lists it and refuses to open it
        else:
            yield FoundFile(path, uri_of(root, base, path), info.size, info.mtime)


def _stored_infos(filesystem: Any, base: str) -> Iterator[Any]:  # noqa: ANN401 - no stubs
    """What pyarrow lists below a prefix; several prefixes inside it at a time.

    Folders are listed level by level until there are enough of them; each is then listed with all
    that is below it, so that no list holds the whole archive.
    """
    from pyarrow.fs import FileSelector, FileType

    prefixes, whole = [base], list[str]()
    with ThreadPoolExecutor(LISTERS) as pool:
        for _ in range(MOST_LEVELS):
            lists = pool.map(lambda one: filesystem.get_file_info(FileSelector(one)), prefixes)
            below: list[str] = []
            for prefix, infos in zip(prefixes, lists, strict=True):
                folders = [info.path for info in infos if info.type == FileType.Directory]
                if any(path.rstrip("/") == prefix or "//" in path for path in folders):
                    whole.append(prefix)  # an empty part has its parent's path: no way down
                    continue
                yield from (info for info in infos if info.type != FileType.Directory)
                below += folders
            prefixes = below
            if len(prefixes) >= PREFIXES or not prefixes:
                break
        selectors = (FileSelector(one, recursive=True) for one in [*whole, *prefixes])
        tasks = (pool.submit(filesystem.get_file_info, one) for one in selectors)
        waiting = deque(islice(tasks, LISTERS))
        while waiting:
            yield from waiting.popleft().result()
            waiting.extend(islice(tasks, 1))


def _local_entries(root: str) -> Iterator[Entry]:
    """Folders by their own names first, then through links, so that a loop adds nothing."""
    base = os.path.abspath(local_path(root))
    seen = {_identity(place) for place in _with_parents(base)}
    folders, links = deque([base]), deque[str]()
    while folders or links:
        folder = folders.popleft() if folders else links.popleft()
        try:
            key = _identity(folder)
            if folder != base and key in seen:
                yield _below(base, folder), LINKED_TWICE
                continue
            seen.add(key)
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError:
            if folder == base:
                raise
            yield _below(base, folder), UNREADABLE_FOLDER
            continue
        for entry in entries:
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(entry.path)
            else:
                yield _local_entry(base, entry)


def _local_entry(base: str, entry: os.DirEntry[str]) -> Entry:
    path, uri = _below(base, entry.path), spelled(entry.path)
    try:
        status = entry.stat()
    except OSError:  # a link that leads nowhere or to itself
        return FoundFile(path, uri, None, None)
    if not stat.S_ISREG(status.st_mode):
        return path, NO_FILE
    return FoundFile(path, uri, status.st_size, modified(status))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _with_parents(folder: str) -> Iterator[str]:
    while True:
        yield folder
        parent = os.path.dirname(folder)
        if parent == folder:
            return
        folder = parent


def _below(base: str, path: str) -> str:
    return spelled(path.removeprefix(base).lstrip(os.sep)).replace(os.sep, "/")
