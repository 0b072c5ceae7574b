"""Palette color to gray, by the depth of the table's entries (PS3.3, C.7.6.3.1.5 and .6).

The depth of the stored values, which are indices, says nothing of how bright an entry is. What
the descriptor says of the entries' depth is checked against the table itself: files with 16-bit
words under a descriptor of 8, and the other way round, are common.
"""

from struct import unpack_from
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.pixels.processing import _expand_segmented_lut

from braintumor_ray.decode.dicom_tables import Descriptor, descriptor_of, entries_of, looked_up
from braintumor_ray.decode.dicom_tags import Tags
from braintumor_ray.decode.types import Gray, Unreadable

_COLORS = ("Red", "Green", "Blue")
_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601
_MISSING = "DICOM in palette colors without a usable table"


def palette_gray(indices: npt.NDArray[Any], tags: Tags) -> Gray:
    """The luma of each pixel's entry, uint8 (H, W).

    Args:
        indices: stored values (H, W), integers.
        tags: the object.

    Raises:
        Unreadable: the table is missing or cannot be parsed.
    """
    about = descriptor_of(tags, "RedPaletteColorLookupTableDescriptor")
    if about is None:
        raise Unreadable(_MISSING)
    tables = [_entries(tags, f"{color}PaletteColorLookupTableData", about) for color in _COLORS]
    sizes = {table.size for table in tables}
    if len(sizes) > 1 or 0 in sizes:
        raise Unreadable(_MISSING)
    full = 2.0 ** _depth(tables, about.bits) - 1
    luma = sum(
        weight * table.astype(np.float64) for weight, table in zip(_WEIGHTS, tables, strict=True)
    )
    gray = np.rint(np.asarray(luma) * (255 / full)).clip(0, 255).astype(np.uint8)
    return np.asarray(looked_up(indices, about, gray), np.uint8)


def _entries(tags: Tags, keyword: str, about: Descriptor) -> npt.NDArray[np.uint16]:
    """The entries of one color; none where they are missing or cannot be parsed."""
    segments = tags.value(f"Segmented{keyword}")
    if keyword in tags or not isinstance(segments, bytes):
        return entries_of(tags, keyword, about.size)
    size, code = (2, "H") if about.bits > 8 else (1, "B")
    form = f"{tags.order}{len(segments) // size}{code}"
    try:
        entries = _expand_segmented_lut(unpack_from(form, segments), form)
    except (ValueError, IndexError):
        entries = []
    return np.array(entries[: about.size], np.uint16)


def _depth(tables: list[npt.NDArray[np.uint16]], bits: int) -> int:
    """Bits of an entry: 16 where any needs them, 8 where none does, else the descriptor's."""
    greatest = max(int(table.max()) for table in tables)
    if greatest < 2**8:
        return 8
    return max(bits, greatest.bit_length()) if bits in range(9, 17) else 16
