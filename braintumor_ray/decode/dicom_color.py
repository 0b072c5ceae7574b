"""Palette color to gray, by the depth of the table's entries (PS3.3, C.7.6.3.1.5 and .6).

The depth of the stored values, which are indices, says nothing of how bright an entry is. What
the descriptor says of the entries' depth is checked against the table itself: files with 16-bit
words under a descriptor of 8, and the other way round, are common.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.pixels.processing import apply_color_lut

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
    descriptor = tags.numbers("RedPaletteColorLookupTableDescriptor")
    if len(descriptor) != 3:
        raise Unreadable(_MISSING)
    count, first, bits = int(descriptor[0]) % 2**16 or 2**16, int(descriptor[1]), int(descriptor[2])
    if "RedPaletteColorLookupTableData" not in tags:
        return _segmented(indices, tags, bits)
    tables = [_entries(tags, f"{color}PaletteColorLookupTableData", count) for color in _COLORS]
    full = 2.0 ** _depth(tables, bits) - 1
    luma = sum(
        weight * table.astype(np.float64) for weight, table in zip(_WEIGHTS, tables, strict=True)
    )
    gray = np.rint(np.asarray(luma) * (255 / full)).clip(0, 255).astype(np.uint8)
    if first >= 2**15 and indices.dtype.kind == "i":
        first -= 2**16
    return gray[(indices.astype(np.int64) - first).clip(0, len(gray) - 1)]


def _entries(tags: Tags, keyword: str, count: int) -> npt.NDArray[np.uint16]:
    """The entries of one color, 8 or 16 bits each as their number and the data's length say."""
    value = tags.value(keyword)
    if isinstance(value, bytes):
        words = len(value) >= 2 * count
        order = "<" if tags.dataset.original_encoding[1] is not False else ">"
        kind = np.dtype(f"{order}u2" if words else "u1")
        found = np.frombuffer(value[: len(value) // kind.itemsize * kind.itemsize], kind)
    else:
        found = np.array(tags.numbers(keyword))
    if not found.size:
        raise Unreadable(_MISSING)
    return found[:count].astype(np.uint16)


def _depth(tables: list[npt.NDArray[np.uint16]], bits: int) -> int:
    """Bits of an entry: 16 where any needs them, 8 where none does, else the descriptor's."""
    greatest = max(int(table.max()) for table in tables)
    if greatest < 2**8:
        return 8
    return max(bits, greatest.bit_length()) if bits in range(9, 17) else 16


def _segmented(indices: npt.NDArray[Any], tags: Tags, bits: int) -> Gray:
    try:
        colors = apply_color_lut(indices, tags.dataset)
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise Unreadable(_MISSING) from error
    luma = colors[..., :3].astype(np.float64) @ np.array(_WEIGHTS)
    full = 2.0 ** (16 if bits > 8 else 8) - 1
    return np.rint(luma * (255 / full)).clip(0, 255).astype(np.uint8)
