"""A zip of scans, opened in the decoding process: nothing in it is trusted, or written to disk.

Only what is declared is ever inflated, and what is declared is limited first, so that a small body
cannot become a large one (a zip bomb). Archives in archives stay closed.
"""

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from braintumor_ray.decode.sniff import sniff

MOST_RATIO = 1032  # deflate makes of a byte at most so many
_MOST_NAME = 1024
_READ = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others inflate without a bound on memory
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError)


@dataclass(frozen=True, eq=False)
class Member:
    """One file of an archive: its content, or why it is not given.

    Attributes:
        name: its path in the archive, a label for the client alone.
        data: uint8 (n,), the content; an array reaches the parent process without a copy.
        kind: kind of problem (`problems.KINDS`) where there is no content.
        detail: value, cause and way out of that problem.
    """

    name: str
    data: Any = None
    kind: str | None = None
    detail: str = ""


@dataclass(frozen=True, eq=False)
class Unpacked:
    """The members of an archive, in its order; or the problem that it has as a whole."""

    members: tuple[Member, ...] = ()
    skipped: int = 0
    kind: str | None = None
    detail: str = ""


@dataclass(frozen=True)
class Unpack:
    """The work of opening a zip, for `upload.work`.

    Attributes:
        max_files: most members, besides folders and what systems add.
        max_bytes: largest member.
        max_total: most bytes of all members together.
    """

    max_files: int
    max_bytes: int
    max_total: int

    def __call__(self, data: bytes | None) -> Unpacked:
        """The members of an archive; never raises for a bad one."""
        try:
            with zipfile.ZipFile(io.BytesIO(data or b"")) as archive:
                return self._unpacked(archive)
        except _BROKEN:
            return Unpacked(kind="unreadable", detail="the zip is damaged or cut off; zip it again")

    def _unpacked(self, archive: zipfile.ZipFile) -> Unpacked:
        infos = [info for info in archive.infolist() if not _is_clutter(info)]
        skipped = len(archive.infolist()) - len(infos)
        problem = self._too_large(infos)
        if problem:
            return Unpacked(kind="too-large", detail=problem)
        if not infos:
            return Unpacked(kind="bad-request", detail="the zip holds no file; add scans to it")
        return Unpacked(tuple(self._member(archive, info) for info in infos), skipped)

    def _too_large(self, infos: list[zipfile.ZipInfo]) -> str | None:
        if len(infos) > self.max_files:
            return (
                f"the zip holds {len(infos)} files, {self.max_files} are left of those allowed in "
                "one request; send fewer at a time"
            )
        total = sum(info.file_size for info in infos if info.file_size <= self.max_bytes)
        if total > self.max_total:
            return (
                f"the zip inflates to {total} bytes, {self.max_total} are left of those allowed in "
                "one request; send fewer files at a time"
            )
        return None

    def _member(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
        name = info.filename[:_MOST_NAME]
        kind, detail = self._refusal(info)
        if detail:
            return Member(name, kind=kind, detail=detail)
        try:
            with archive.open(info) as stream:
                # With a size, no more is inflated than that; without, all that the body yields.
                content = stream.read(info.file_size)
        except _BROKEN:
            detail = "this file is damaged inside the zip; zip it again"
            return Member(name, kind="unreadable", detail=detail)
        if is_zip(content):
            detail = "a zip inside the zip is not opened; send its files"
            return Member(name, kind="not-an-image", detail=detail)
        return Member(name, np.frombuffer(content, np.uint8))

    def _refusal(self, info: zipfile.ZipInfo) -> tuple[str, str]:
        """Kind and detail of what keeps a member from being read; empty where nothing does."""
        if not _is_plain(info.filename):
            # Names are never opened here, but a client may store its answers by them.
            return "bad-request", "the name leaves its folder or is no plain name; rename the file"
        if info.file_size > self.max_bytes:
            detail = f"{info.file_size} bytes, the limit for one file is {self.max_bytes}"
            return "too-large", f"{detail}; send a smaller"
        if info.flag_bits & 1:
            return "unreadable", "the file is encrypted; zip it without a password"
        if info.compress_type not in _READ:
            return "unreadable", "compressed by a method not read here; zip it with deflate"
        return "", ""


def is_zip(data: Any) -> bool:  # noqa: ANN401 - a buffer
    """Whether a file is a zip archive by its content (a DICOM preamble may begin like one)."""
    head = bytes(data[:4])
    return head in (b"PK\3\4", b"PK\5\6") and sniff(bytes(data[:4096])) is None


def _is_clutter(info: zipfile.ZipInfo) -> bool:
    """Folders, what operating systems add, and the index of a DICOM medium."""
    parts = PureWindowsPath(info.filename).parts  # parted by either slash
    hidden = any(part.startswith(".") and part != ".." for part in parts)
    return info.is_dir() or hidden or "__MACOSX" in parts or parts[-1:] == ("DICOMDIR",)


def _is_plain(name: str) -> bool:
    """Whether a name stays in its folder on every system."""
    windows = PureWindowsPath(name)
    if windows.drive or windows.root or PurePosixPath(name).is_absolute():
        return False
    return ".." not in windows.parts and name.isprintable() and len(name) <= _MOST_NAME
