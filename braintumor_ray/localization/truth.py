"""Where the tumors are, as annotators drew them: mask images, boxes, YOLO files, VIA outlines.

Truth is looked up by a scan's path in the catalog and given as a mask of any size.
"""

import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from braintumor_ray.catalog.reviewed import boxes_by_path, read_reviewed
from braintumor_ray.localization.formats import box_outlines, of_boxes, via_outlines, yolo_outlines
from braintumor_ray.localization.outlines import Outlines, TruthError, resized_mask
from braintumor_ray.storage import open_filesystem, read_bytes
from braintumor_ray.types import Mask

Kind = Literal["masks", "boxes", "yolo", "via"]
IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
MATLAB = ".mat"  # Cheng's files hold the mask next to the scan
LOSSY = (".jpg", ".jpeg")
MASK_ENDINGS = ("_mask", "_seg", "-mask", "-seg")
NOT_YOLO = {"classes.txt", "readme.txt", "train.txt", "val.txt", "test.txt"}


@dataclass(frozen=True)
class TruthIndex:
    """Tumor truth of many scans, looked up by path.

    Attributes:
        location: where it was loaded from.
        kind: 'masks', 'boxes', 'yolo' or 'via'.
        entries: by path or file name as the truth names it (masks and YOLO: without suffix):
            outlines, or the location of a mask image.
        scans: the entry of each scan of a catalog, by its path (see `of`); None: of any scan, whose
            entry is the one that agrees with its path.
    """

    location: str
    kind: Kind
    entries: Mapping[str, Outlines | str]
    scans: Mapping[str, str] | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def find(self, path: str) -> str | None:
        """The entry that belongs to a scan, None where there is none.

        Names agree where one is the end of the other, compared by whole folders:
        `yes/y1.jpg` belongs to `y1.jpg`, `b/1.jpg` does not belong to `a/1.jpg`.

        Args:
            path: the scan's path in the catalog, below its root, with /.

        Raises:
            TruthError: several entries agree with the path.
        """
        if self.scans is not None:
            return self.scans.get(path)
        wanted = self._key(path)
        if wanted in self.entries:
            return wanted
        names = self._by_name.get(posixpath.basename(wanted), [])
        found = [name for name in names if _same_end(name, wanted)]
        if len(found) > 1:
            raise TruthError(
                f"'{path}' may be '{found[0]}' or '{found[1]}' of '{self.location}'; "
                "name the truth's files by their paths, or give a folder further down"
            )
        return found[0] if found else None

    def match(self, paths: Iterable[str]) -> dict[str, str]:
        """Entries of a whole catalog, by scan path; scans without one are left out.

        An entry that names a scan by its whole path is that scan's: no other's path agrees with it.

        Raises:
            TruthError: two scans share an entry, or one scan has several.
        """
        if self.scans is not None:
            return {path: self.scans[path] for path in paths if path in self.scans}
        keys = {path: self._key(path) for path in paths}
        taken = self.entries.keys() & {*keys.values()}
        free = replace(self, entries={k: v for k, v in self.entries.items() if k not in taken})
        matched: dict[str, str] = {}
        owner: dict[str, str] = {}
        for path, whole in keys.items():
            key = whole if whole in taken else free.find(path)
            if key is None:
                continue
            other = owner.setdefault(key, path)
            if other != path:
                raise TruthError(
                    f"'{other}' and '{path}' both answer to '{key}' of '{self.location}'; "
                    "name the truth's files by their paths"
                )
            matched[path] = key
        return matched

    def of(self, paths: Iterable[str]) -> "TruthIndex":
        """The same truth of the scans of a whole catalog, and of no others.

        Which scan an entry is of depends on all of them: ask it of a catalog, not of a split.

        Raises:
            TruthError: as `match`.
        """
        return replace(self, scans=self.match(paths))

    def under(self, other: "TruthIndex") -> "TruthIndex":
        """Truth of a catalog's scans in which other truth of them, where there is some, counts."""
        theirs = other.scans or {}
        entries = {path: other.entries[key] for path, key in theirs.items()}
        return replace(
            self,
            entries={**self.entries, **entries},
            scans={**(self.scans or {}), **{path: path for path in theirs}},
        )

    def mask(
        self,
        path: str,
        shape: tuple[int, int],
        scan_shape: tuple[int, int] | None = None,
        frame: int = 0,
    ) -> Mask | None:
        """Where the tumor is, at a wanted size.

        Args:
            path: the scan's path in the catalog.
            shape: wanted (height, width); the network's input is (S, S), the scan squashed.
            scan_shape: (height, width) of the decoded scan; needed for VIA outlines.
            frame: of a multi-frame file; this truth describes frame 0 only.

        Returns:
            bool of the wanted shape, all False where the truth states that there is no tumor;
            None where it does not know this scan.

        Raises:
            TruthError: the mask image cannot be read, has another aspect than the scan, or
                several entries agree with the path.
        """
        key = self.find(path) if frame == 0 else None
        if key is None:
            return None
        entry = self.entries[key]
        if isinstance(entry, Outlines):
            return entry.mask(shape, scan_shape)
        return resized_mask(_read_mask(entry, scan_shape), shape)

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = defaultdict(list)
        for key in self.entries:
            names[posixpath.basename(key)].append(key)
        return names

    def _key(self, path: str) -> str:
        return posixpath.splitext(path)[0] if self.kind in ("masks", "yolo") else path


def load_truth(location: str | Path) -> TruthIndex:
    """Read tumor truth of any kind.

    Args:
        location: a folder of mask images (same relative paths as the scans, any image suffix,
            `_mask` or `_seg` at the end allowed; not zero = tumor), Cheng's folder of .mat files,
            a folder of YOLO .txt files (boxes or polygons in fractions), a .csv with columns path,
            x_min, y_min, x_max, y_max (fractions, several rows per path allowed), VIA's .json, or
            the .jsonl of `review`.
            A local path or a URI.

    Raises:
        TruthError: nothing there, an unknown kind, or a line that is not valid.
    """
    text = str(location).rstrip("/")
    suffix = posixpath.splitext(text)[1].lower()
    if suffix == ".csv":
        return TruthIndex(text, "boxes", box_outlines(_text(text), text))
    if suffix == ".json":
        return TruthIndex(text, "via", via_outlines(_text(text), text))
    if suffix == ".jsonl":
        return reviewed_truth(text)
    return _folder(text)


def reviewed_truth(location: str) -> TruthIndex:
    """Boxes that reviewers drew.

    Raises:
        CatalogError: the file cannot be read.
        TruthError: there is no box, or one is not valid.
    """
    boxes = boxes_by_path(read_reviewed(location))
    drawn = {path: of_boxes(found, f"'{path}' of '{location}'") for path, found in boxes.items()}
    if not drawn:
        raise TruthError(f"'{location}' has no boxes; draw some with 'braintumor-ray review'")
    return TruthIndex(location, "boxes", drawn)


def _folder(location: str) -> TruthIndex:
    files = _list(location)
    texts = [f for f in files if f.lower().endswith(".txt")]
    labels = [f for f in texts if posixpath.basename(f).lower() not in NOT_YOLO]
    images = [f for f in files if f.lower().endswith((*IMAGES, MATLAB))]
    if images and labels:
        raise TruthError(
            f"'{location}' holds images ({images[0]}) and .txt files ({labels[0]}); give the "
            "folder of masks, or the folder of YOLO labels"
        )
    if labels:
        where = {posixpath.splitext(file)[0]: f"{location}/{file}" for file in labels}
        outlines = {key: yolo_outlines(_text(path), path) for key, path in where.items()}
        return TruthIndex(location, "yolo", outlines)
    if images:
        return TruthIndex(location, "masks", _mask_files(location, images))
    raise TruthError(
        f"'{location}' holds neither mask images ({', '.join(IMAGES)}) nor YOLO .txt files; "
        "truth is a folder of one of them, a .csv of boxes or VIA's .json"
    )


def _list(location: str) -> list[str]:
    from pyarrow.fs import FileSelector, FileType

    filesystem, base = open_filesystem(location)
    try:
        infos = filesystem.get_file_info(FileSelector(base, recursive=True))
    except OSError as error:
        raise TruthError(
            f"truth '{location}' cannot be listed: {error}; give a folder of masks or YOLO .txt "
            "files, a .csv of boxes or VIA's .json"
        ) from error
    files = (posixpath.relpath(i.path, base) for i in infos if i.type == FileType.File)
    return sorted(f for f in files if not any(part.startswith(".") for part in f.split("/")))


def _mask_files(location: str, files: list[str]) -> dict[str, Outlines | str]:
    found: dict[str, Outlines | str] = {}
    for file in files:
        key = posixpath.splitext(file)[0]
        ending = next((e for e in MASK_ENDINGS if key.lower().endswith(e)), "")
        key = key[: len(key) - len(ending)]
        if key in found:
            raise TruthError(f"'{location}' holds two masks for '{key}'; keep one")
        found[key] = f"{location}/{file}"
    return found


def _read_mask(location: str, scan_shape: tuple[int, int] | None) -> Mask:
    try:
        content = read_bytes(location)
    except OSError as error:
        raise TruthError(f"mask '{location}' cannot be read: {error}") from error
    read = _matlab_pixels if location.lower().endswith(MATLAB) else _image_pixels
    pixels = read(content, location)
    if scan_shape is not None and not _same_aspect(pixels.shape[:2], scan_shape):
        raise TruthError(
            f"mask '{location}' is {pixels.shape[1]}x{pixels.shape[0]} px, its scan "
            f"{scan_shape[1]}x{scan_shape[0]}: another aspect; is it another scan's?"
        )
    floor = 127 if location.lower().endswith(LOSSY) else 0  # JPEG leaves noise about the edge
    return np.asarray(pixels > floor)


def _image_pixels(content: bytes, location: str) -> npt.NDArray[Any]:
    # An empty buffer is an error of its own to OpenCV; damage gives None.
    data = np.frombuffer(content, np.uint8)
    pixels = cv2.imdecode(data, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH) if data.size else None
    if pixels is None:
        raise TruthError(f"mask '{location}' is not an image that can be read; write it as PNG")
    # The brightest channel: as gray, pure red or blue would be too dark for a mask.
    return np.asarray(pixels if pixels.ndim == 2 else pixels.max(axis=2))


def _matlab_pixels(content: bytes, location: str) -> npt.NDArray[Any]:
    from braintumor_ray.decode.matlab import tumor_mask
    from braintumor_ray.decode.types import Unreadable

    try:
        return tumor_mask(content)
    except Unreadable as error:
        raise TruthError(f"mask '{location}' cannot be read: {error}") from error


def _same_aspect(mask: tuple[int, ...], scan: tuple[int, int]) -> bool:
    """Whether one size is the other, scaled and rounded to whole pixels."""
    height = mask[1] * scan[0] / scan[1]
    return abs(height - mask[0]) <= 1 + 0.01 * mask[0]


def _text(location: str) -> str:
    try:
        return read_bytes(location).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TruthError(f"truth '{location}' cannot be read: {error}") from error


def _same_end(first: str, second: str) -> bool:
    shorter, longer = sorted((first, second), key=len)
    return longer == shorter or longer.endswith(f"/{shorter}")
