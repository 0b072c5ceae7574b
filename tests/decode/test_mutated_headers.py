"""Headers with fields removed, emptied and retyped: no crash, one result per frame, right pixels.

The pixels are right where pydicom or nibabel alone can read the file, too: as a viewer shows them.
200 examples; BRAINTUMOR_MUTATIONS=2000 asks for as many.
"""

import os

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.pixels.processing import apply_modality_lut
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from braintumor_ray.decode.decode import decode, decode_frames, probe
from braintumor_ray.decode.intensity import Range, robust_range, to_gray
from braintumor_ray.decode.types import DecodeOptions
from tests.decode.dicom_elements import Element, elements, joined
from tests.decode.mutations import slice_like
from tests.decode.volume_files import as_axial_volume, dicom_bytes, nifti_bytes

EXAMPLES = int(os.environ.get("BRAINTUMOR_MUTATIONS", "200"))
many = settings(max_examples=EXAMPLES // 2, deadline=None, suppress_health_check=list(HealthCheck))
STACK = np.stack([slice_like(np.random.default_rng(k), 40, 32) for k in range(3)])
TWELVE = STACK.astype(np.uint16) * 16
BITS = {"BitsStored": 12, "HighBit": 11}
WINDOW = {"WindowCenter": 2040, "WindowWidth": 4080}
RESCALED = {"RescaleSlope": "0.5", "RescaleIntercept": "-100"}
DICOM = [
    dicom_bytes(STACK[0]),
    dicom_bytes(TWELVE[0], **BITS, **WINDOW, **RESCALED, SpecificCharacterSet="ISO_IR 100"),
    dicom_bytes(TWELVE, **BITS, **WINDOW),
    dicom_bytes(TWELVE[0].astype(np.int16) - 900, **RESCALED, PatientName="Quorra^Zoe"),
    dicom_bytes(TWELVE, RLELossless, **BITS),
]
NIFTI = [
    nifti_bytes(as_axial_volume(STACK), zipped=False),
    nifti_bytes(
        as_axial_volume(TWELVE).astype(np.int16), zipped=False, scl_slope=2.0, scl_inter=-5
    ),
    nifti_bytes(as_axial_volume(STACK).astype(np.float32), np.diag([-2.0, 2, 3, 1])),
    nifti_bytes(as_axial_volume(STACK), zipped=False, kind=nibabel.Nifti2Image),
]
VRS = [b"LO", b"DS", b"IS", b"US", b"SS", b"UL", b"FD", b"UN", b"OB", b"CS", b"SQ", b"PN", b"AT"]
VALUES = [
    b"",
    b" ",
    b"abc ",
    b"1,5\\2 ",
    b"0 ",
    b"-1",
    b"\xff\xff",
    b"\0\0",
    b"99999999999 ",
    b"\x01",
]


def test_the_elements_of_a_file_can_be_put_together_again():
    for data in DICOM:
        assert joined(elements(data)) == data


@st.composite
def mutated_dicom(draw):
    data = draw(st.sampled_from(DICOM))
    found = elements(data)
    for _ in range(draw(st.integers(1, 4))):
        index = draw(st.integers(0, len(found) - 2))  # the pixels stay
        found[index : index + 1] = draw(changes(found[index]))
    return data, joined(found)


def changes(element):
    """An element removed, emptied, of another VR, or of another value."""
    return st.one_of(
        st.just([]),
        st.just([Element(element.tag, element.vr, b"")]),
        st.sampled_from(VRS).map(lambda vr: [Element(element.tag, vr, element.value)]),
        st.sampled_from(VALUES).map(lambda value: [Element(element.tag, element.vr, value)]),
        st.tuples(st.sampled_from(VRS), st.sampled_from(VALUES)).map(
            lambda pair: [Element(element.tag, *pair)]
        ),
    )


@many
@given(mutated_dicom())
def test_a_mutated_dicom_header_costs_only_what_it_says(pair):
    intact, data = pair
    results = all_frames(data)
    check_intact(intact)
    shown = by_pydicom(data)
    if shown is not None and results[0].status != "skipped":
        assert results[0].reason is None
        assert within_one_level(results[0].gray, shown)


def all_frames(data):
    frames = max(probe(data).frames, 1)
    results = decode_frames(data, DecodeOptions(frames=tuple(range(min(frames, 50)))))
    assert len(results) == min(frames, 50)
    for result in results:
        assert (result.gray is None) == bool(result.reason)
        assert (result.gray is not None) == (result.status == "ok")
        assert "Quorra" not in (result.reason or "")
    return results


EXPECTED = {data: decode(data).gray for data in (*DICOM, *NIFTI)}


def check_intact(data):
    """A file next to the mutated one is read as before: nothing is left behind in the libraries."""
    np.testing.assert_array_equal(decode(data).gray, EXPECTED[data])


def within_one_level(found, expected):
    return found.shape == expected.shape and np.abs(found.astype(int) - expected).max() <= 1


def by_pydicom(data):
    """The first frame as a viewer on pydicom shows it; None where pydicom cannot read it."""
    try:
        dataset = pydicom.dcmread(pydicom.filebase.DicomBytesIO(data), force=True)
        pixels = np.reshape(dataset.pixel_array, (-1, dataset.Rows, dataset.Columns))
        assert dataset.get("RescaleSlope") != 0, "pydicom shows nothing then"
        values = np.stack([apply_modality_lut(frame, dataset) for frame in pixels])
        window = dataset.get("WindowCenter"), dataset.get("WindowWidth")
        center, width = (None if value is None else float(value) for value in window)
        photometric, eight_bit = dataset.PhotometricInterpretation, dataset.BitsStored <= 8
    except Exception:  # whatever it is: pydicom cannot read the file
        return None
    if center is not None and width is not None and width >= 1:
        gray = windowed(values[0], center, width)
        if not np.ptp(gray):
            return None  # a window that shows nothing: a viewer's user would choose another
    elif eight_bit and pixels.dtype.kind == "u" and float(dataset.get("RescaleSlope") or 1) > 0:
        gray = to_gray(pixels[0], Range(0, 2.0**dataset.BitsStored - 1))
    else:
        gray = to_gray(values[0], robust_range(values))
    return 255 - gray if photometric == "MONOCHROME1" else gray


def windowed(values, center, width):
    """PS3.3, C.11.2.1.2.1."""
    if width == 1:
        return np.where(values > center - 0.5, 255, 0)
    shown = ((values - (center - 0.5)) / (width - 1) + 0.5) * 255
    return np.rint(shown.clip(0, 255)).astype(int)


FIELDS = {
    kind: [name for name in kind.template_dtype.names if name != "magic"]
    for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header)
}
NUMBERS = [0, 1, -1, 2, 3, 7, 8, 16, 348, 352, 4096, 32767, -32768]
REALS = [0.0, 1.0, -1.0, 0.5, 1 + 1e-6, 1e30, -1e-30, float("nan"), float("inf")]


@st.composite
def mutated_nifti(draw):
    data = draw(st.sampled_from(NIFTI))
    plain = bytearray(data if data[:2] != b"\x1f\x8b" else unzipped(data))
    second = plain[4:7] == b"n+2"
    kind = nibabel.Nifti2Header if second else nibabel.Nifti1Header
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(FIELDS[kind]))
        field, start = kind.template_dtype.fields[name][:2]
        base, count = field.base, max(1, field.itemsize // field.base.itemsize)
        at = start + draw(st.integers(0, count - 1)) * base.itemsize
        plain[at : at + base.itemsize] = draw(value_of(base))
    return data, bytes(plain)


def value_of(base):
    if base.kind == "f":
        return st.sampled_from(REALS).map(lambda value: np.asarray(value, base).tobytes())
    if base.kind in "iu":
        return st.sampled_from(NUMBERS).map(lambda value: np.asarray(value).astype(base).tobytes())
    return st.binary(min_size=base.itemsize, max_size=base.itemsize)


def unzipped(data):
    import gzip

    return gzip.decompress(data)


@many
@given(mutated_nifti())
def test_a_mutated_nifti_header_costs_only_what_it_says(pair):
    intact, data = pair
    results = all_frames(data)
    check_intact(intact)
    shown = by_nibabel(data)
    if shown is None or results[0].status == "skipped":
        return
    if "not readable here" in (results[0].reason or ""):
        return  # color, or more dimensions than four: nibabel can read what no scan is
    assert results[0].reason is None
    assert within_one_level(results[0].gray, shown)


def by_nibabel(data):
    """The first axial slice as a viewer on nibabel shows it; None where nibabel cannot read it."""
    kind = nibabel.Nifti2Image if data[4:7] == b"n+2" else nibabel.Nifti1Image
    try:
        with np.errstate(all="ignore"):
            stored = kind.from_bytes(data)
            assert stored.dataobj.offset >= stored.header.single_vox_offset, "in the header"
            image = nibabel.as_closest_canonical(stored)
            voxels = np.asarray(image.dataobj)
            volume = voxels.reshape(*voxels.shape[:3], -1)[..., 0]
            between = Range(0, 255) if volume.dtype == np.uint8 else robust_range(volume)
            return to_gray(volume[:, :, 0].T[::-1, ::-1], between)
    except Exception:  # as above
        return None


def test_the_references_show_the_intact_files():
    for data in DICOM:
        assert within_one_level(EXPECTED[data], by_pydicom(data))
    for data in NIFTI:
        plain = data if data[:2] != b"\x1f\x8b" else unzipped(data)
        assert within_one_level(EXPECTED[data], by_nibabel(plain))


@pytest.mark.parametrize("cut", range(132, 500, 40))
def test_a_header_that_is_cut_has_a_reason(cut):
    data = dicom_bytes(STACK[0], ExplicitVRLittleEndian)[:cut]
    assert probe(data).reason
    assert decode(data).status == "quarantined"
