"""DICOM to uint8 gray by pydicom: modality LUT, then the tagged window or a robust range.

Compressed pixel data are decoded by pydicom's plugins; what is installed decides which transfer
syntaxes are readable. Overlays are not drawn.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import (
    apply_color_lut,
    apply_modality_lut,
    apply_voi,
    apply_windowing,
)
from pydicom.pixels.utils import get_expected_length

from braintumor_ray.decode.dicom_header import (
    PIXEL_KEYWORDS,
    frame_count,
    functional_group,
    header_tags,
    is_directory,
    mode_of,
    read_dicom,
    text_of,
    why_no_image,
    why_skipped,
)
from braintumor_ray.decode.intensity import Range, is_blank, robust_range, to_gray
from braintumor_ray.decode.types import (
    DEFAULT_LIMITS,
    Decoded,
    DecodeLimits,
    FrameDecoder,
    Gray,
    Probe,
    Unreadable,
    VolumeOptions,
)

Samples = npt.NDArray[np.generic]
_RANGE_FRAMES = 16  # of a multi-frame object, spread evenly: all frames share one range
_RANGE_VALUES = 250_000  # from each of them
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def open_dicom(
    data: bytes, name: str, limits: DecodeLimits, volumes: VolumeOptions
) -> FrameDecoder:
    """Parse a DICOM file once; what is returned decodes its frames.

    Args:
        data: the whole file, with or without preamble.
        name: ``dicom``.
        limits: `max_pixels` is checked on the header, before pixels are allocated.
        volumes: not used: a DICOM file has frames of its own.

    Raises:
        Unreadable: no pixel data, fewer than the header says, or too large.
    """
    dataset, _ = read_dicom(data, limits)
    missing = None if is_directory(dataset) else why_no_image(dataset)
    if missing:
        raise Unreadable(missing)
    mode, skipped = mode_of(dataset), why_skipped(dataset)
    if skipped:
        return lambda frame: Decoded(None, skipped, name, mode, "skipped")
    limits.check_pixels(int(dataset.Columns), int(dataset.Rows))
    _check_length(dataset)
    frames = _Frames(dataset)

    def decode_frame(frame: int) -> Decoded:
        gray = frames.gray(frame)
        if is_blank(gray):
            return Decoded(None, "blank slice", name, mode, "skipped")
        return Decoded(gray, format=name, mode=mode)

    return decode_frame


def probe_dicom(data: bytes, name: str, volumes: VolumeOptions) -> Probe:
    """Read a DICOM header; an object without pixels has a reason, and tags all the same."""
    dataset, pixels_follow = read_dicom(data, DEFAULT_LIMITS, pixels=False)
    tags = header_tags(dataset)
    if is_directory(dataset):
        return Probe(name, frames=1, tags=tags)
    if not pixels_follow:
        return Probe(name, reason=why_no_image(dataset), tags=tags)
    size = int(dataset.Columns), int(dataset.Rows)
    return Probe(name, mode_of(dataset), *size, frames=frame_count(dataset), tags=tags)


class _Frames:
    """The frames of a parsed object as gray images."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._count = frame_count(dataset)
        self._photometric = text_of(dataset, "PhotometricInterpretation")
        self._range: Range | None = None
        self._latest: tuple[int, Samples] | None = None

    def gray(self, frame: int) -> Gray:
        """uint8 (H, W) of one frame.

        Raises:
            Unreadable: there is no such frame, or its pixel data cannot be decoded.
        """
        if not 0 <= frame < self._count:
            raise Unreadable(f"frame {frame} is out of range: the file has {self._count}")
        stored = self._stored(frame)
        item = functional_group(self._dataset, frame, "PixelValueTransformationSequence")
        if self._is_eight_bit(item):
            whole = Range(0.0, 2.0 ** int(self._dataset.BitsStored) - 1)
        else:
            whole = None
        values = apply_modality_lut(stored, item)
        voi = functional_group(self._dataset, frame, "FrameVOILUTSequence")
        gray = tagged_window(values, voi)
        if gray is None:
            gray = to_gray(stored, whole) if whole else to_gray(values, self._shared_range())
        return 255 - gray if self._photometric == "MONOCHROME1" else gray

    def _is_eight_bit(self, item: Dataset) -> bool:
        """Whether the stored values are gray levels as they are."""
        dataset = self._dataset
        small = int(dataset.BitsStored) <= 8 and not dataset.get("PixelRepresentation")
        return (
            small and "ModalityLUTSequence" not in item and float(item.get("RescaleSlope") or 1) > 0
        )

    def _shared_range(self) -> Range:
        if self._range is None:
            chosen = np.linspace(0, self._count - 1, min(self._count, _RANGE_FRAMES)).astype(int)
            parts = [self._sample(int(frame)) for frame in np.unique(chosen)]
            self._range = robust_range(np.concatenate(parts))
        return self._range

    def _sample(self, frame: int) -> npt.NDArray[np.float32]:
        try:
            stored = self._stored(frame)
        except Unreadable:
            return np.empty(0, np.float32)  # it costs only itself
        kept = stored.ravel()
        padding = self._dataset.get("PixelPaddingValue")
        if padding is not None:  # PS3.3, C.7.5.1.1.2: no part of the image
            kept = kept[kept != int(padding)]
        kept = kept[:: max(1, kept.size // _RANGE_VALUES)]
        item = functional_group(self._dataset, frame, "PixelValueTransformationSequence")
        return np.asarray(apply_modality_lut(kept, item), dtype=np.float32)

    def _stored(self, frame: int) -> Samples:
        """Stored values (H, W); color as its luma."""
        if self._latest is None or self._latest[0] != frame:
            self._latest = (frame, self._luma(_decoded(self._dataset, frame)))
        return self._latest[1]

    def _luma(self, samples: Samples) -> Samples:
        if self._photometric == "PALETTE COLOR":
            samples = apply_color_lut(samples, self._dataset)
        if samples.ndim == 2:
            return samples
        luma = samples[..., :3].astype(np.float32) @ _LUMA
        return np.rint(luma).astype(samples.dtype)


def _decoded(dataset: Dataset, frame: int) -> Samples:
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise Unreadable("DICOM in a transfer syntax that is not readable here") from error
    if not decoder.is_available:
        raise Unreadable("compressed DICOM that no installed plugin decodes")
    try:
        return decoder.as_array(dataset, index=frame)[0]
    except (RuntimeError, ValueError, AttributeError) as error:  # what pydicom raises on damage
        raise Unreadable("damaged DICOM: the pixel data cannot be decoded") from error


def _check_length(dataset: Dataset) -> None:
    keyword = next(key for key in PIXEL_KEYWORDS if key in dataset)
    element = dataset[keyword]
    if dataset.file_meta.TransferSyntaxUID.is_compressed and not element.is_undefined_length:
        raise Unreadable("damaged DICOM: compressed pixel data of fixed length")
    if not element.is_undefined_length and len(element.value) < get_expected_length(dataset):
        raise Unreadable("truncated DICOM: fewer pixel data than its header says")


def tagged_window(values: npt.NDArray[Any], item: Dataset) -> Gray | None:
    """Apply the first tagged window, else the first VOI lookup table.

    Args:
        values: (H, W), after the modality LUT.
        item: the dataset, or the frame's VOI functional group.

    Returns:
        uint8 (H, W); None where nothing usable is tagged, or where it would show nothing at all.
    """
    gray = _windowed(values, item)
    if gray is None:
        gray = _looked_up(values, item)
    if gray is None or (gray.min() == gray.max() and values.min() != values.max()):
        return None
    return gray


def _windowed(values: npt.NDArray[Any], item: Dataset) -> Gray | None:
    center, width = (_first_number(item.get(key)) for key in ("WindowCenter", "WindowWidth"))
    function = str(item.get("VOILUTFunction") or "LINEAR").upper()
    least = 1 if function == "LINEAR" else np.finfo(float).tiny
    if center is None or width is None or width < least:
        return None
    # pydicom spreads a window over the range of the dataset's samples: here 0..255.
    window = Dataset()
    window.PhotometricInterpretation = "MONOCHROME2"
    window.BitsStored, window.PixelRepresentation = 8, 0
    window.WindowCenter, window.WindowWidth = center, width
    known = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
    window.VOILUTFunction = function if function in known else "LINEAR"
    shown = apply_windowing(values.astype(np.float64), window)
    return np.rint(shown.clip(0, 255)).astype(np.uint8)


def _looked_up(values: npt.NDArray[Any], item: Dataset) -> Gray | None:
    if not item.get("VOILUTSequence") or values.dtype.kind not in "iuf":
        return None
    bits = int(item.VOILUTSequence[0].LUTDescriptor[2])
    shown = apply_voi(np.rint(values).astype(np.int64), item)
    return np.rint(shown * (255 / (2**bits - 1))).clip(0, 255).astype(np.uint8)


def _first_number(value: Any) -> float | None:  # noqa: ANN401 - whatever a tag holds
    if value is None or isinstance(value, str):
        return None
    try:
        first = next(iter(value)) if hasattr(value, "__iter__") else value
        number = float(first)
    except (TypeError, ValueError, StopIteration):
        return None  # an empty or garbled window: as good as none
    return number if np.isfinite(number) else None
