"""Which generations are compacted together.

Neighbors only, from the newest backwards, as long as the next one is small against what has been
collected. So a row is written again about as often as the archive doubles, not every time.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from braintumor_ray.archive.options import CompactOptions
from braintumor_ray.archive.sorting import RowFile
from braintumor_ray.predict.results import (
    ResultsFolder,
    first_generation,
    is_compacted,
    row_files,
    superseded_rows,
)

FILES_AT_ONCE = 32  # of a segment: bounds what a compaction reads again, and loses by a crash

Manifests = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Segment:
    """Neighboring manifests that one compacted manifest will replace.

    Attributes:
        manifests: oldest first.
        sources: their files of rows.
        nbytes: of these files.
        name: of its folders, the same for the same rows and options.
    """

    manifests: Manifests
    sources: list[RowFile]
    nbytes: int
    name: str

    @property
    def first(self) -> int:
        """The oldest generation."""
        return first_generation(self.manifests[0])

    @property
    def last(self) -> int:
        """The newest generation."""
        return int(self.manifests[-1]["generation"])


def find_segments(folder: ResultsFolder, options: CompactOptions) -> list[Segment]:
    """What is worth compacting, oldest first; where superseded rows are dropped, all that has some.

    Args:
        folder: the results.
        options: of the compaction.
    """
    target_bytes, drop_superseded = options.target_mb * 1e6, options.drop_superseded
    manifests = folder.manifests()
    gone = superseded_rows(manifests)
    sizes = [_size_of(folder, manifest) for manifest in manifests]
    start = _start(manifests, sizes, target_bytes)
    if drop_superseded:
        old = [i for i, m in enumerate(manifests) if _has_superseded(m, gone)]
        start = min([start, *old])
    groups: list[list[int]] = []
    for index in range(start, len(manifests)):
        if not groups or sum(sizes[i] for i in groups[-1]) > FILES_AT_ONCE * target_bytes:
            groups.append([])
        groups[-1].append(index)
    segments = []
    for group in groups:
        chosen, nbytes = [manifests[i] for i in group], sum(sizes[i] for i in group)
        drops = drop_superseded and any(_has_superseded(m, gone) for m in chosen)
        if drops or _is_worth_it(chosen, nbytes, target_bytes):
            sources = [source for m in chosen for source in _sources(m, gone)]
            name = _name(chosen, sources, options)
            segments.append(Segment(chosen, sources, nbytes, name))
    return segments


def _start(manifests: Manifests, sizes: Sequence[int], target_bytes: float) -> int:
    """The oldest manifest that is worth writing again with all newer ones."""
    start, total = len(manifests), 0
    for index in range(len(manifests) - 1, -1, -1):
        if is_compacted(manifests[index]) and sizes[index] > max(2 * total, target_bytes):
            break
        start, total = index, total + sizes[index]
    return start


def _is_worth_it(manifests: Manifests, nbytes: int, target_bytes: float) -> bool:
    if len(manifests) == 1 and is_compacted(manifests[0]):
        return False
    files = sum(len(row_files(manifest)) for manifest in manifests)
    return len(manifests) > 1 or files > 2 * math.ceil(nbytes / target_bytes)


def _has_superseded(manifest: dict[str, Any], gone: dict[int, Any]) -> bool:
    return bool(manifest.get("superseded_files")) or len(gone[int(manifest["generation"])]) > 0


def _sources(manifest: dict[str, Any], gone: dict[int, Any]) -> list[RowFile]:
    old = set(manifest.get("superseded_files", ()))
    ids = gone[int(manifest["generation"])]
    return [RowFile(path, ids, path in old) for path in row_files(manifest)]


def _size_of(folder: ResultsFolder, manifest: dict[str, Any]) -> int:
    if all(file.get("bytes") is not None for file in manifest["files"]):
        return sum(int(file["bytes"]) for file in manifest["files"])
    parents = {path.rsplit("/", 1)[0] for path in row_files(manifest)}
    sizes = {f"{p}/{name}": size for p in parents for name, size in folder.sizes(p).items()}
    return sum(sizes.get(path) or 0 for path in row_files(manifest))


def _name(manifests: Manifests, sources: Sequence[RowFile], options: CompactOptions) -> str:
    dividing = [options.target_mb, options.memory_mb, options.drop_superseded]
    digest = hashlib.sha256(json.dumps(dividing).encode())
    for manifest in manifests:
        digest.update(json.dumps([manifest["catalogs"], manifest["supersedes"]]).encode())
    for source in sources:
        digest.update(source.path.encode() + source.gone.tobytes())
    span = f"{first_generation(manifests[0]):06d}-{int(manifests[-1]['generation']):06d}"
    return f"{span}-{digest.hexdigest()[:12]}"
