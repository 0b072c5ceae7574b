"""The attributes of a DICOM object, each parsed on its own.

Files in archives hold numbers with a decimal comma, padded, empty or zero, and elements of
another VR than the standard's. One of them must not cost the others: what cannot be parsed counts
as absent, and its keyword is noted. Values never leave this module in an error: they may name
people.
"""

import math
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as DicomSequence
from pydicom.tag import BaseTag, Tag

_BINARY = {"US": "u2", "SS": "i2", "US or SS": "u2", "UL": "u4", "SL": "i4", "FL": "f4", "FD": "f8"}
_PADDING = " \0\t\r\n"
_STRUCTS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}


class Tags:
    """One dataset (an object, or an item of a sequence) whose attributes are read one by one.

    Attributes:
        dataset: the parsed dataset.
        unread: keywords of what was there and could not be parsed; shared with its items.
    """

    def __init__(self, dataset: Dataset, unread: set[str] | None = None) -> None:
        self.dataset = dataset
        self.unread: set[str] = set() if unread is None else unread

    def __contains__(self, keyword: str) -> bool:
        return _tag(keyword) in self.dataset

    def value(self, keyword: str | int) -> Any:  # noqa: ANN401 - whatever a tag holds
        """The value as pydicom has it; its bytes where pydicom cannot convert it; else None."""
        tag = _tag(keyword)
        if tag not in self.dataset:
            return None
        try:
            return self.dataset[tag].value
        except Exception:  # pydicom raises what its converters happen to raise
            return self._raw(keyword)

    def _unconverted(self, keyword: str | int) -> RawDataElement | None:
        """The element as it lies in the file, where pydicom has not converted it yet.

        Its converters take most of the time that a header takes; a plain number or code needs none.
        """
        tag = _tag(keyword)
        found = self.dataset.get_item(tag) if tag in self.dataset else None
        return found if isinstance(found, RawDataElement) and found.value is not None else None

    def text(self, keyword: str | int) -> str:
        """The value as text, several joined by a space; empty where it is absent."""
        raw = self._unconverted(keyword)
        if raw is not None and raw.VR in ("CS", "UI"):
            code = (raw.value or b"").decode("latin-1")
            if "\\" not in code:
                return code.strip(_PADDING)
        value = self.value(keyword)
        if isinstance(value, bytes):
            value = value.decode("latin-1")
        parts = value if isinstance(value, list | MultiValue) else [value]
        return " ".join(str(part) for part in parts if part is not None).strip(_PADDING)

    def numbers(self, keyword: str) -> list[float]:
        """Every number of an attribute; empty where it is absent or cannot be parsed."""
        raw = self._unconverted(keyword)
        value = None if raw is None else _plain_numbers(raw)
        if value is None:
            value = self.value(keyword)
        if isinstance(value, bytes):
            value = _unpacked(value, keyword, self.order)
        try:
            return list(_numbers(value))
        except (TypeError, ValueError, OverflowError):
            self.unread.add(keyword)
            return []

    def number(
        self, keyword: str, usable: Callable[[float], bool] = lambda number: True
    ) -> float | None:
        """The first number; None where it is absent, or noted as unread because of `usable`."""
        found = self.numbers(keyword)
        if not found:
            return None
        if not usable(found[0]):
            self.unread.add(keyword)
            return None
        return found[0]

    def whole(self, keyword: str, least: int, most: int) -> int | None:
        """As `number`, for whole numbers from `least` to `most`."""
        found = self.number(keyword, lambda n: n == int(n) and least <= n <= most)
        return None if found is None else int(found)

    def items(self, keyword: str) -> list["Tags"]:
        """The items of a sequence."""
        return [Tags(item, self.unread) for item in self._sequence(keyword)]

    def item(self, keyword: str, index: int) -> "Tags | None":
        """One item of a sequence, None where it has none; without looking at the others."""
        items = self._sequence(keyword)
        return Tags(items[index], self.unread) if index < len(items) else None

    def _sequence(self, keyword: str) -> Sequence[Dataset]:
        value = self.value(keyword)
        if value is None or isinstance(value, DicomSequence):
            return value or ()
        self.unread.add(keyword)
        return ()

    def _raw(self, keyword: str | int) -> bytes | None:
        value = self.dataset.get_item(keyword).value
        return value if isinstance(value, bytes) else None

    @property
    def order(self) -> str:
        """The byte order that the dataset was read in, as `struct` has it."""
        return ">" if self.dataset.original_encoding[1] is False else "<"


@cache  # a few dozen keywords; looked up 40 times a file
def _tag(keyword: str | int) -> BaseTag:
    return Tag(keyword)


def _numbers(value: Any) -> Iterable[float]:  # noqa: ANN401 - whatever a tag holds
    """The numbers of a value of any VR.

    Raises:
        ValueError: one of them is no finite number.
        TypeError: it is of a kind that holds no numbers.
    """
    if value is None:
        return
    if isinstance(value, str):
        yield from _numbers_of_text(value)
    elif isinstance(value, Iterable):
        for part in value:
            yield from _numbers(part)
    else:
        yield _finite(float(value))


def _numbers_of_text(text: str) -> Iterable[float]:
    text = text.strip(_PADDING)
    if not text:
        return
    parts = text.split("\\")
    if len(parts) == 1 and (text.count(",") > 1 or ("," in text and "." in text)):
        parts = text.split(",")  # a comma that parts values: seen where a backslash belongs
    for part in parts:
        yield _finite(float(re.sub(r"(?<=\d),(?=\d)", ".", part.strip(_PADDING))))


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number


def _plain_numbers(raw: RawDataElement) -> Any:  # noqa: ANN401
    """Numbers of an element whose VR leaves no doubt, or their text; None: pydicom decides."""
    value, kind = raw.value or b"", _STRUCTS.get(raw.VR or "")
    if raw.VR in ("DS", "IS") and value and b"\\" not in value:
        return value.decode("latin-1")
    if kind is None or not value or len(value) % struct.calcsize(kind):
        return None
    count = len(value) // struct.calcsize(kind)
    return struct.unpack(f"{'<' if raw.is_little_endian else '>'}{count}{kind}", value)


def _unpacked(value: bytes, keyword: str, order: str) -> Any:  # noqa: ANN401
    """Numbers of an element that came without a usable VR, by the dictionary's; else its text."""
    kind = _BINARY.get(dictionary_VR(keyword))
    if kind is None:
        return value.decode("latin-1")
    if len(value) % int(kind[1]):
        return "of another length"  # is no number, and noted as such
    found: npt.NDArray[Any] = np.frombuffer(value, order + kind)
    return found.tolist()
