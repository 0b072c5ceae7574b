"""Files below a source, and what their folders say about them."""

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from braintumor_ray.errors import CatalogError
from braintumor_ray.storage import is_local, open_filesystem

SIDECARS = {
    *(".csv", ".tsv", ".json", ".txt", ".md", ".xml", ".html", ".htm", ".yaml", ".yml"),
    *(".parquet", ".xlsx", ".ini", ".db", ".py", ".ipynb", ".log"),
}
SPLIT_FOLDERS = {
    "training": "train",
    "train": "train",
    "testing": "test",
    "test": "test",
    "validation": "val",
    "valid": "val",
    "val": "val",
}
UNLABELED_FOLDERS = {"pred", "predict", "unlabelled", "unlabeled", "unknown", "images", "scans"}


@dataclass(frozen=True)
class FoundFile:
    """A file as its store lists it; `size` and `mtime` are None for one that is missing."""

    path: str  # below the root, with /
    uri: str
    size: int | None
    mtime: datetime | None


def list_files(root: str) -> list[FoundFile]:
    """Every file below a root that may be a scan, sorted by path.

    Hidden files and sidecars (tables, texts, pages) are left out; the rest is judged by content
    when it is decoded, whatever it is called.

    Raises:
        CatalogError: the root is not there, cannot be listed, or holds nothing.
    """
    from pyarrow.fs import FileSelector, FileType

    filesystem, base = open_filesystem(root)
    try:
        infos = filesystem.get_file_info(FileSelector(base, recursive=True))
    except FileNotFoundError as error:
        raise CatalogError(
            f"'{root}' does not exist; give a folder, a CSV, a catalog or a URI"
        ) from error
    except OSError as error:
        raise CatalogError(f"'{root}' cannot be listed: {error}") from error
    found = [_found(info, base, root) for info in infos if info.type == FileType.File]
    files = sorted((f for f in found if _may_be_scan(f.path)), key=lambda f: f.path)
    if not files:
        raise CatalogError(f"'{root}' holds no files that could be scans")
    return files


def stat_files(root: str, paths: Iterable[str]) -> list[FoundFile]:
    """The named files below a root, in the given order; a missing one has no size."""
    filesystem, base = open_filesystem(root)
    names = list(paths)
    infos = filesystem.get_file_info([posixpath.join(base, name) for name in names])
    return [
        FoundFile(name, uri_of(root, base, name), info.size, info.mtime)
        for name, info in zip(names, infos, strict=True)
    ]


def uri_of(root: str, base: str, path: str) -> str:
    """Where a file is, as `storage.read_bytes` takes it."""
    if is_local(root):
        return posixpath.join(base, path)
    scheme = root.split("://", 1)[0]
    return f"{scheme}://{posixpath.join(base, path)}"


def label_of(path: str) -> str | None:
    """Class by folder: the first one that is not a split; None for flat or unlabeled folders."""
    folders = [part for part in path.split("/")[:-1] if part.lower() not in SPLIT_FOLDERS]
    if not folders or folders[0].lower() in UNLABELED_FOLDERS or folders[0].isdigit():
        return None
    return folders[0]


def official_split_of(path: str) -> str | None:
    """'train', 'val' or 'test' where a folder says so."""
    for part in path.split("/")[:-1]:
        if part.lower() in SPLIT_FOLDERS:
            return SPLIT_FOLDERS[part.lower()]
    return None


def _found(info: Any, base: str, root: str) -> FoundFile:  # noqa: ANN401 - pyarrow has no stubs
    path = posixpath.relpath(info.path, base)
    return FoundFile(path, uri_of(root, base, path), info.size, info.mtime)


def _may_be_scan(path: str) -> bool:
    parts = path.split("/")
    hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
    return not hidden and posixpath.splitext(path)[1].lower() not in SIDECARS
