"""Lookup tables of DICOM objects: modality, VOI, palette colors (PS3.3, C.11.1.1, C.11.2.1.1).

pydicom maps in the type of the values, or in that of the entries: what is wider wraps around. And
it knows words only, where files hold entries of 8 bits in bytes.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from braintumor_ray.decode.dicom_tags import Tags

_SIGN = 2**15


class Descriptor(NamedTuple):
    """The three numbers that describe a table: entries, value of the first of them, their bits."""

    size: int
    first: int
    bits: int


class LookupTable(NamedTuple):
    """A table with its entries, uint16 (n,)."""

    about: Descriptor
    entries: npt.NDArray[np.uint16]


def descriptor_of(tags: Tags, keyword: str) -> Descriptor | None:
    """A descriptor; None where there is none that can be used."""
    numbers = tags.numbers(keyword)
    if len(numbers) != 3:
        return None
    count, first, bits = map(int, numbers)
    return Descriptor(count % 2**16 or 2**16, first, bits)


def entries_of(tags: Tags, keyword: str, count: int) -> npt.NDArray[np.uint16]:
    """The entries of a table, 8 or 16 bits each as their number and the data's length say.

    Returns:
        uint16 (n,); none where they cannot be parsed.
    """
    value = tags.value(keyword)
    if isinstance(value, bytes):
        words = len(value) > count + count % 2
        kind = np.dtype(f"{tags.order}u2" if words else "u1")
        found = np.frombuffer(value[: len(value) // kind.itemsize * kind.itemsize], kind)
    else:
        found = np.array(tags.numbers(keyword))
    return found[:count].astype(np.uint16)


def table_of(sequence: list[Tags]) -> LookupTable | None:
    """The table of the first item of a Modality or VOI LUT Sequence; None: it cannot be used."""
    about = descriptor_of(sequence[0], "LUTDescriptor")
    if about is None:
        return None
    entries = entries_of(sequence[0], "LUTData", about.size)
    return LookupTable(about, entries) if entries.size else None


def looked_up(
    values: npt.NDArray[Any], about: Descriptor, entries: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """The entry of each value; the first for those below it and for no numbers, the last above."""
    kind = values.dtype.kind
    beyond = about.first + about.size > 2**16  # no value without sign is there
    signed = about.first >= _SIGN and (kind == "i" or (kind == "f" and beyond))
    first = about.first - 2**16 if signed else about.first
    places = np.nan_to_num(np.rint(values.astype(np.float64)) - first, copy=False)
    found: npt.NDArray[Any] = entries[places.clip(0, len(entries) - 1).astype(np.intp)]
    return found
