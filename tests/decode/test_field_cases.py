"""Files as people have them: kinds that public bug reports tell of, each built here.

Every test is one kind with several members; `PICTURE` is what a viewer shows.
"""

import gzip
import io
import struct

import cv2
import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from braintumor_ray.decode.decode import decode, decode_frames, probe, sniff
from braintumor_ray.decode.types import DecodeOptions, VolumeOptions
from tests.decode.dicom_elements import with_element
from tests.decode.mutations import encode, slice_like
from tests.decode.volume_files import (
    as_axial_volume,
    dicom_bytes,
    mr_dataset,
    nifti_bytes,
    saved,
    without_preamble,
)

H, W = 64, 48
PICTURE = slice_like(np.random.default_rng(3), H, W)
Y, X = np.mgrid[-1 : 1 : H * 1j, -1 : 1 : W * 1j]
HEAD = (X / 0.7) ** 2 + (Y / 0.85) ** 2 < 1
TWELVE = PICTURE.astype(np.uint16) * 16
WINDOW = {"WindowCenter": 2040, "WindowWidth": 4080}  # shows TWELVE as PICTURE
STACK = np.stack([np.roll(TWELVE, k, 1) for k in range(3)])


def pixels(data, frame=0):
    decoded = decode(data, frame=frame)
    assert decoded.reason is None
    return decoded.gray


def outcome(data, frame=0):
    decoded = decode(data, frame=frame)
    return decoded.status, decoded.reason


def shows_picture(data, frame=0, expected=PICTURE):
    found = pixels(data, frame)
    return found.shape == expected.shape and np.abs(found.astype(int) - expected).max() <= 1


def like_picture(found, expected=PICTURE):
    """The same picture in another range."""
    return np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99


def changed(data, old, new):
    assert data.count(old) == 1
    assert len(old) == len(new)
    return data.replace(old, new)


def twelve(pixels=TWELVE, syntax=ExplicitVRLittleEndian, **tags):
    return dicom_bytes(pixels, syntax, **{"BitsStored": 12, "HighBit": 11, **WINDOW, **tags})


# ---- 1. steps for monochrome done to color ------------------------------------------------------


def color(samples, photometric="RGB", **tags):
    dataset = mr_dataset(samples[..., 0], photometric)
    dataset.SamplesPerPixel, dataset.PlanarConfiguration = 3, 0
    dataset.PixelData = samples.tobytes()
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    return saved(dataset)


@pytest.mark.parametrize(
    "tags",
    [
        {"WindowCenter": 600, "WindowWidth": 1200},  # fo-dicom, cornerstone: the source's window
        {"RescaleSlope": 3, "RescaleIntercept": -1024},
        {"PixelPaddingValue": 0},
        {"WindowCenter": 40, "WindowWidth": 80, "RescaleSlope": -1, "RescaleIntercept": 0},
    ],
)
def test_windows_and_rescaling_are_not_for_color(tags):
    rgb = np.repeat(PICTURE[..., None], 3, axis=2)
    np.testing.assert_array_equal(pixels(color(rgb, **tags)), PICTURE)
    ybr = np.dstack([PICTURE, np.full_like(PICTURE, 128), np.full_like(PICTURE, 128)])
    assert shows_picture(color(ybr, "YBR_FULL", **tags))
    assert shows_picture(color(rgb.astype(np.uint16) * 257, **tags))


def palette(indices, entries, descriptor, **tags):
    """A palette color object whose table is gray."""
    dataset = mr_dataset(indices, "PALETTE COLOR")
    for name in ("Red", "Green", "Blue"):
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", descriptor)
        dataset[f"{name}PaletteColorLookupTableDescriptor"].VR = "US"
        setattr(dataset, f"{name}PaletteColorLookupTableData", entries.tobytes())
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    return saved(dataset)


LEVELS = np.arange(256)


@pytest.mark.parametrize(
    ("entries", "descriptor"),
    [
        ((LEVELS * 257).astype("<u2"), [256, 0, 16]),
        (LEVELS.astype("u1"), [256, 0, 8]),  # dicom-microscopy-viewer 246: bytes in words
        (LEVELS.astype("<u2"), [256, 0, 8]),  # a byte in each word
        ((LEVELS * 257).astype("<u2"), [256, 0, 8]),  # cornerstoneWADOImageLoader 138
        (LEVELS.astype("<u2"), [256, 0, 16]),  # vtk-dicom 114: low bytes only
        (LEVELS.astype("u1"), [256, 0, 16]),
    ],
)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_color_table_counts_by_the_depth_of_its_entries(entries, descriptor, kind):
    assert shows_picture(palette(PICTURE.astype(kind), entries, descriptor, **WINDOW))


def test_a_color_table_may_begin_late_and_be_long():
    late = palette(PICTURE + np.uint16(300), (LEVELS * 257).astype("<u2"), [256, 300, 16])
    assert shows_picture(late)
    long = (np.arange(2**16) // 257 * 257).astype("<u2")  # OHIF 2366: 0 stands for 65536 entries
    assert shows_picture(palette(PICTURE.astype(np.uint16) * 257, long, [0, 0, 16]))


SEGMENTS = {  # a first entry, then linear ones: opcode, length, last entry
    (256, 8): struct.pack("6B", 0, 1, 0, 1, 255, 255),
    (256, 16): struct.pack("<6H", 0, 1, 0, 1, 255, 65535),
    (4096, 8): struct.pack("3B", 0, 1, 0)
    + b"".join(struct.pack("3B", 1, 255, min(255, 16 * k)) for k in range(1, 17))
    + struct.pack("3B", 1, 15, 255),  # more entries than their depth counts
    (65536, 16): struct.pack("<6H", 0, 1, 0, 1, 65535, 65535),
}


@pytest.mark.parametrize(("count", "bits"), SEGMENTS)
def test_a_color_table_in_segments(count, bits):
    indices = (PICTURE * np.uint16(257) // (65536 // count)) if count > 256 else PICTURE
    dataset = mr_dataset(indices.astype(np.uint8 if count == 256 else np.uint16), "PALETTE COLOR")
    for name in ("Red", "Green", "Blue"):
        described = f"{name}PaletteColorLookupTableDescriptor"
        dataset.add_new(described, "US", [count % 2**16, 0, bits])
        content = SEGMENTS[count, bits]
        dataset.add_new(f"Segmented{name}PaletteColorLookupTableData", "OW", content)
    assert shows_picture(saved(dataset))


def test_a_color_table_that_is_missing_is_named():
    dataset = mr_dataset(PICTURE, "PALETTE COLOR")
    assert outcome(saved(dataset)) == (
        "quarantined",
        "DICOM in palette colors without a usable table",
    )


# ---- 2. one bad tag throws away the others ------------------------------------------------------


@pytest.mark.parametrize(
    "orientation",
    [
        b"1,5\\0,5\\0\\0\\1,25\\0",  # fo-dicom 1296
        b" 1.5\\.5\\ 0\\0 \\1.25\\0 \0",
        b"1.5,0.5,0.0,0,1.25,0.0 ",  # pydicom 173: a comma for the backslash
        b"1.5e0\\+0.5\\0\\-0\\1.250\\0",
    ],
)
def test_decimal_commas_and_padding_are_read(orientation):
    data = with_element(twelve(STACK), 0x00200037, b"DS", orientation)
    found = probe(data)
    assert (found.frames, found.tags["patient"], found.tags["study"]) == (3, "P1", "1.2.3")
    assert found.tags["plane"] == "axial"
    assert "unread" not in found.tags
    assert all(shows_picture(data, k, np.roll(PICTURE, k, 1)) for k in range(3))


@pytest.mark.parametrize(
    ("tag", "vr", "value", "keyword"),
    [
        (0x00200037, b"DS", b"a\\b\\c\\d\\e\\f ", "ImageOrientationPatient"),
        (0x00281050, b"DS", b"about 40", "WindowCenter"),
        (0x00281053, b"DS", b"n/a ", "RescaleSlope"),
        (0x00280120, b"US", b"abc ", None),  # two numbers: the first counts
        (0x00280101, b"US", b"x", "BitsStored"),
        (0x00280102, b"LO", b"eleven", "HighBit"),
        (0x00280103, b"US", b"\x07\0", "PixelRepresentation"),
        (0x00280004, b"CS", b"GRAYISH ", "PhotometricInterpretation"),
        (0x52009230, b"LO", b"no item ", "PerFrameFunctionalGroupsSequence"),
        (0x00201208, b"IS", b"4.1 ", None),  # pydicom 1643: a float in an IS
        (0x00180081, b"DS", b"Amadeus ", None),  # dcmstack 63: anonymized with a word
    ],
)
def test_a_tag_that_cannot_be_parsed_costs_only_itself(tag, vr, value, keyword):
    data = with_element(dicom_bytes((STACK // 16).astype(np.uint8)), tag, vr, value)
    found = probe(data)
    assert (found.reason, found.frames) == (None, 3)
    assert (found.tags["patient"], found.tags["study"]) == ("P1", "1.2.3")
    assert found.tags.get("unread") == keyword
    assert shows_picture(data)


@pytest.mark.parametrize(
    ("text", "unread"),
    [
        (b"", None),
        (b"0 ", True),
        (b"3,0 ", None),
        (b" 3", None),
        (b"3.00", None),
        (b"three ", True),
    ],
)
def test_frames_are_not_lost_with_their_number(text, unread):
    data = with_element(dicom_bytes(STACK), 0x00280008, b"IS", text)
    found = probe(data)
    assert found.frames == 3
    assert ("NumberOfFrames" in found.tags.get("unread", "")) == bool(unread)
    assert [d.status for d in decode_frames(data, DecodeOptions(frames=(0, 1, 2)))] == ["ok"] * 3


@pytest.mark.parametrize("number", [None, "many"])
def test_frames_of_compressed_data_are_counted(number):
    data = dicom_bytes(STACK, RLELossless)
    number = b"" if number is None else number.encode()
    data = with_element(data, 0x00280008, b"IS", number)
    assert probe(data).frames == 3
    assert outcome(data, 2)[0] == "ok"


@pytest.mark.parametrize("lost", ["Rows", "Columns"])
def test_an_image_without_its_size_keeps_its_ids(lost):
    dataset = mr_dataset(PICTURE)
    delattr(dataset, lost)
    found = probe(saved(dataset))
    assert found.reason == "damaged DICOM: no usable number of rows and columns"
    assert found.tags["patient"] == "P1"


def test_the_catalog_counts_files_whose_tags_cannot_be_parsed(tmp_path):
    from typer.testing import CliRunner

    from braintumor_ray.cli import app

    bad = with_element(dicom_bytes(PICTURE), 0x00281050, b"DS", b"about 40")
    for name, data in (("a", bad), ("b", bad), ("c", twelve())):
        (tmp_path / f"{name}.dcm").write_bytes(data)
    output = tmp_path.parent / f"{tmp_path.name}.parquet"
    done = CliRunner().invoke(app, ["catalog", str(tmp_path), "-o", str(output), "--clear-ids"])
    assert done.exit_code == 0, done.output
    assert "warning: 2 files have attributes that could not be parsed" in done.stderr
    assert "WindowCenter 2" in done.stderr


@pytest.mark.parametrize(
    "tags",
    [
        {"RescaleSlope": "", "RescaleIntercept": ""},
        {"RescaleSlope": "0", "RescaleIntercept": "0"},
        {"RescaleSlope": " 1 ", "RescaleIntercept": "0 "},
        {"RescaleSlope": "1"},
        {"RescaleIntercept": "0.0"},
    ],
)
def test_numbers_that_are_empty_zero_or_padded(tags):
    assert shows_picture(twelve(**tags))


def test_a_window_with_a_decimal_comma():
    data = changed(twelve(WindowCenter="2040.0", WindowWidth="4080.0"), b"2040.0", b"2040,0")
    assert shows_picture(changed(data, b"4080.0", b"4080,0"))


# ---- 3. padding ---------------------------------------------------------------------------------


def padded(value, *, stored=16, signed=False, vr="US", limit=None, fill=None, **tags):
    kind = np.int16 if signed else np.uint16
    samples = (TWELVE // (4 if stored == 12 else 1)).astype(kind)
    samples = samples.view(np.uint16).copy()
    samples[~HEAD] = (value if fill is None else fill) % 2**16
    dataset = mr_dataset(samples.view(kind))
    dataset.BitsStored, dataset.HighBit = stored, stored - 1
    dataset.add_new(0x00280120, vr, value)
    if limit is not None:
        dataset.add_new(0x00280121, vr, limit)
    for keyword, content in tags.items():
        setattr(dataset, keyword, content)
    return saved(dataset)


PADDED = [
    padded(65535),
    padded(0),
    padded(-2000, signed=True, vr="SS"),
    padded(32767, signed=True, vr="SS"),
    padded(63536, signed=True),  # dicom-rs 460: -2000, read without its sign
    padded(-1, vr="SS"),  # 65535
    padded(65535, stored=12),  # outside of the bits in use
    padded(-32768, stored=12, signed=True, vr="SS"),
    padded(60000, limit=65535, fill=62000),
    padded(65535, limit=60000, fill=61000),
    padded(-32768, signed=True, vr="SS", limit=-1000, fill=-1024),
]


@pytest.mark.parametrize("data", PADDED)
def test_padding_is_black_and_has_no_say_in_the_range(data):
    found = pixels(data)
    assert not found[~HEAD].any()
    inside = found[HEAD].astype(float)
    assert np.corrcoef(inside, PICTURE[HEAD])[0, 1] > 0.99
    assert inside.std() > 40


@pytest.mark.parametrize("data", PADDED)
def test_padding_is_black_where_bright_is_stored_low(data):
    inverted = changed(data, b"MONOCHROME2 ", b"MONOCHROME1 ")
    found = pixels(inverted)
    assert not found[~HEAD].any()
    assert np.corrcoef(found[HEAD], PICTURE[HEAD])[0, 1] < -0.99


def test_padding_is_black_under_a_window_too():
    assert shows_picture(padded(65535, **WINDOW), expected=np.where(HEAD, PICTURE, 0))
    floating = float_pixels(np.where(HEAD, PICTURE, -1e6), FloatPixelPaddingValue=-1e6)
    found = pixels(floating)
    assert not found[~HEAD].any()
    assert np.corrcoef(found[HEAD], PICTURE[HEAD])[0, 1] > 0.99


def test_a_saturated_pixel_is_no_padding():
    bright = np.minimum(TWELVE * 2, 4095)
    data = twelve(bright, PixelPaddingValue=65535)
    assert (pixels(data)[bright == 4095] == 255).all()


def test_an_image_of_padding_alone_is_blank():
    data = dicom_bytes(np.full((64, 48), 9000, np.uint16), PixelPaddingValue=9000)
    assert outcome(data) == ("skipped", "blank slice")


# ---- 4. bits that are not where they are expected -----------------------------------------------


def float_pixels(values, keyword="FloatPixelData", **tags):
    dataset = mr_dataset(PICTURE)
    for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(dataset, name)
    kind = {"FloatPixelData": "<f4", "DoubleFloatPixelData": "<f8"}[keyword]
    dataset.BitsAllocated = 8 * int(kind[2])
    setattr(dataset, keyword, values.astype(kind).tobytes())
    for name, value in tags.items():
        setattr(dataset, name, value)
    return saved(dataset)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_samples_in_the_upper_bits_of_their_words(syntax):
    assert shows_picture(twelve(TWELVE << 4, syntax, HighBit=15))


def test_samples_in_the_upper_bits_of_big_endian_words():
    dataset = mr_dataset(TWELVE)
    dataset.PixelData = (TWELVE << 4).astype(">u2").tobytes()
    dataset.BitsStored, dataset.HighBit = 12, 15
    dataset.WindowCenter, dataset.WindowWidth = 2040, 4080
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    dataset = Dataset(dataset)
    dataset.file_meta = mr_dataset(TWELVE).file_meta
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    assert shows_picture(saved(dataset))


@pytest.mark.parametrize(
    ("samples", "tags"),
    [
        ((TWELVE << 2) | 3, {"HighBit": 13}),  # the bits below may hold anything
        (TWELVE | 0xF000, {}),  # cornerstoneWADOImageLoader 528, vtk-dicom 134: bits above
        (TWELVE | (HEAD.astype(np.uint16) << 15), {}),  # an overlay in the unused bit
        (TWELVE, {"HighBit": 15}),  # HighBit alone is wrong: nothing lies up there
        (TWELVE, {"HighBit": 7}),
    ],
)
def test_only_the_bits_in_use_count(samples, tags):
    assert like_picture(pixels(twelve(samples.view(np.uint16), **tags)))


def test_signed_samples_in_the_upper_bits():
    values = (TWELVE.astype(np.int16) - 2048) << 4
    tags = {"HighBit": 15, "PixelRepresentation": 1, "RescaleIntercept": 2048, "RescaleSlope": 1}
    assert shows_picture(twelve(values, **tags))


@pytest.mark.parametrize("keyword", ["FloatPixelData", "DoubleFloatPixelData"])
@pytest.mark.parametrize("scale", [1 / 255, 1e-6, 1e4])
def test_floating_pixels(keyword, scale):
    data = float_pixels(PICTURE * scale, keyword)
    assert like_picture(pixels(data))
    assert probe(data).mode.endswith("-bit float")
    windowed = float_pixels(
        PICTURE * scale,
        keyword,
        WindowCenter=127.5 * scale,
        WindowWidth=255 * scale,
        VOILUTFunction="LINEAR_EXACT",
    )
    assert shows_picture(windowed)


def test_floating_pixels_that_are_no_numbers_are_dark():
    values = PICTURE / 255
    values[~HEAD] = np.nan
    found = pixels(float_pixels(values))
    assert not found[~HEAD].any()


@pytest.mark.parametrize(
    "lost",
    [
        ["BitsStored", "HighBit"],
        ["BitsAllocated"],
        ["SamplesPerPixel"],
        ["PhotometricInterpretation"],
        ["PixelRepresentation", "HighBit"],
        ["Modality", "SOPClassUID", "ImageOrientationPatient"],
    ],
)
@pytest.mark.parametrize("emptied", [False, True])
def test_attributes_that_are_taken_for_granted(lost, emptied):
    dataset = mr_dataset(TWELVE)
    dataset.BitsStored, dataset.HighBit = 12, 11
    dataset.WindowCenter, dataset.WindowWidth = 2040, 4080
    for keyword in lost:
        if emptied:
            dataset[keyword].value = None
        else:
            delattr(dataset, keyword)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=False)
    assert shows_picture(buffer.getvalue())


@pytest.mark.parametrize(
    ("syntax", "plugin"),
    [(RLELossless, None), (JPEGLSLossless, "jpeg_ls"), (JPEG2000Lossless, "openjpeg")],
)
def test_compressed_data_without_their_transfer_syntax(syntax, plugin):
    if plugin:
        pytest.importorskip(plugin, reason="the encoder that this test needs")
    data = dicom_bytes(PICTURE, syntax)
    start = data.index(b"\x02\0\x10\0UI")
    end = start + 8 + struct.unpack_from("<H", data, start + 6)[0]
    length = struct.unpack_from("<I", data, 140)[0] - (end - start)
    bare = data[:140] + struct.pack("<I", length) + data[144:start] + data[end:]
    assert shows_picture(bare)


LONG_TYPE = [
    "ORIGINAL",
    "PRIMARY",
    "M",
    "NORM",
    "DIS2D",
    "FIL",
    "MFSPLIT",
    "MOCO",
    "DIFFUSION",
    "TRACEW",
]


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]
)
@pytest.mark.parametrize(
    "first",
    [
        {"ImageType": LONG_TYPE},
        {"SpecificCharacterSet": "ISO_IR 100", "ImageType": LONG_TYPE},
        {"SpecificCharacterSet": ["", *["ISO 2022 IR 100", "ISO 2022 IR 87"] * 4]},
        {"ImageType": ["DERIVED", "SECONDARY", *["MPR"] * 60]},
    ],
)
def test_bare_files_with_long_first_elements(first, syntax):
    dataset = mr_dataset(PICTURE)
    for keyword, value in first.items():
        setattr(dataset, keyword, value)
    data = without_preamble(dataset, syntax)
    assert sniff(data) == "dicom"
    assert shows_picture(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x08\x00\x08\x00" + bytes(600),
        b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100" + b"and then a text",
        b"\x08\x00\x08\x00\x10\x00\x00\x00" + b"text" * 100,
        np.random.default_rng(0).bytes(4000),
        b"\x02\x00\x10\x00" * 200,
    ],
)
def test_other_files_are_still_not_taken_for_dicom(data):
    assert sniff(data) is None


# ---- 5. NIfTI with one bad affine, or none; pairs ----------------------------------------------

VOLUME = as_axial_volume(np.stack([PICTURE] * 5))


def nifti(**fields):
    """A file whose qform and sform both say that it is stored as a viewer shows it."""
    image = nibabel.Nifti1Image(VOLUME, np.eye(4))
    image.set_qform(np.eye(4), 1)
    image.set_sform(np.eye(4), 1)
    data = bytearray(image.to_bytes())
    for name, value in fields.items():
        offset = nibabel.Nifti1Header.template_dtype.fields[name][1]
        packed = np.asarray(value, nibabel.Nifti1Header.template_dtype[name].base).tobytes()
        data[offset : offset + len(packed)] = packed
    return bytes(data)


ZERO, NAN = [0.0] * 4, [float("nan")] * 4
NO_SFORM = {"srow_x": ZERO, "srow_y": ZERO, "srow_z": ZERO}


@pytest.mark.parametrize(
    "fields",
    [
        NO_SFORM,  # nibabel 182
        {"srow_x": NAN, "srow_y": NAN, "srow_z": NAN},
        {"srow_z": [1, 0, 0, 0]},  # two axes the same way
        {"qform_code": 1, "quatern_b": 5.0, "quatern_c": 5.0},
        {"quatern_b": float("nan")},
        {"pixdim": [0.0] * 8, **NO_SFORM},  # lengths have no say in the direction
        {"sform_code": 0},
        {"scl_slope": float("nan"), "scl_inter": float("inf")},
        {"scl_slope": 0.0, "scl_inter": 40.0},
        {"dim": [3, W, H, 5, 0, 0, 0, 0]},
        {"dim": [4, W, H, 5, 0, 0, 0, 0]},
        {"sizeof_hdr": 0},
        {"bitpix": 0},
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_one_bad_field_of_a_volume_costs_nothing(fields, zipped):
    data = nifti(**fields)
    data = gzip.compress(data) if zipped else data
    found = probe(data)
    assert (found.frames, found.height, found.width) == (5, H, W)
    assert shows_picture(data, 2)


@pytest.mark.parametrize("excess", [1e-7, 3.8e-7, 1e-5, 1e-3])  # fmriprep 845, SCT 3703
def test_a_quaternion_a_rounding_error_too_long(excess):
    turned = {"quatern_b": 0.0, "quatern_c": 0.0, "quatern_d": 1.0 + excess, "sform_code": 0}
    data = nifti(**turned)  # by 180 degrees about the axis from the feet
    assert shows_picture(data, 2, PICTURE[::-1, ::-1])


def test_a_volume_of_which_no_affine_can_be_used_is_refused():
    bad = nifti(**NO_SFORM, quatern_b=9.0)
    assert outcome(bad) == ("quarantined", "damaged NIfTI: its affine gives no orientation")


@pytest.mark.parametrize("offset", [0.0, 348.0, 16.0, -5.0, float("nan")])
def test_header_bytes_are_never_voxels(offset):
    assert shows_picture(nifti(vox_offset=offset))


def test_an_offset_of_zero_ends_after_the_extensions():
    image = nibabel.Nifti1Image(VOLUME, np.eye(4))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"a" * 100))
    data = bytearray(image.to_bytes())
    data[108:112] = struct.pack("<f", 0)
    assert shows_picture(bytes(data))


@pytest.mark.parametrize("kind", [nibabel.AnalyzeImage, nibabel.Nifti1Pair, nibabel.Nifti2Pair])
def test_a_pair_says_what_to_do(kind):
    image = kind(VOLUME.astype(np.int16), np.eye(4))
    files = kind.make_file_map({name: io.BytesIO() for name in ("header", "image")})
    image.to_file_map(files)
    header = files["header"].fileobj.getvalue()
    words = "header without its voxels (a .hdr/.img pair); convert it to .nii"
    assert words in outcome(header)[1]
    assert words in probe(header).reason
    assert outcome(files["image"].fileobj.getvalue())[0] == "quarantined"


# ---- 6. structure by its markers, not by searching bytes ---------------------------------------

JPEG = encode(PICTURE, "JPEG", quality=95)
OTHER = encode(np.flipud(PICTURE), "JPEG", quality=80)
PROGRESSIVE = encode(PICTURE, "JPEG", quality=95, progressive=True)


def in_segment(marker, content, data=JPEG):
    """A JPEG with one more segment at its beginning."""
    return (
        data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content + data[2:]
    )


@pytest.mark.parametrize(
    "data",
    [
        JPEG + b"trailer \xff\xda more",
        JPEG + OTHER,
        JPEG + OTHER[: len(OTHER) // 2],
        PROGRESSIVE + OTHER[: len(OTHER) // 2],
        JPEG + bytes(3000) + b"\xff\xd8\xff\xda",
        in_segment(0xE1, b"Exif\0\0" + OTHER),  # a thumbnail, whole
        in_segment(0xE1, b"Exif\0\0" + OTHER[:500]),  # and one that is cut
        in_segment(0xFE, b"a comment \xff\xd9 with a marker"),
        in_segment(0xEE, b"\xff\xda" * 50),
        JPEG[:-2] + b"\xff\xff\xff" + JPEG[-2:],  # fill bytes before the end marker
    ],
)
def test_a_whole_jpeg_is_whole_whatever_is_around_it(data):
    assert decode(data).reason is None
    np.testing.assert_array_equal(
        pixels(data), pixels(PROGRESSIVE if data[:200] == PROGRESSIVE[:200] else JPEG)
    )


def test_an_mpo_gives_its_first_picture():
    buffer = io.BytesIO()
    second = Image.fromarray(np.flipud(PICTURE))
    Image.fromarray(PICTURE).save(buffer, "MPO", save_all=True, append_images=[second], quality=95)
    data = buffer.getvalue()
    assert probe(data).frames == 1
    assert np.abs(pixels(data).astype(int) - PICTURE).mean() < 2
    np.testing.assert_array_equal(pixels(data[:-200]), pixels(data))  # the second one is cut


@pytest.mark.parametrize(
    "data",
    [
        JPEG[: len(JPEG) * 3 // 5] + OTHER,
        in_segment(0xE1, b"Exif\0\0" + OTHER, JPEG[: len(JPEG) // 2]),
        JPEG[: len(JPEG) // 2] + b"\xff\xd9" + OTHER,
        JPEG[:-2] + b" trailer",
        PROGRESSIVE[: len(PROGRESSIVE) // 2] + OTHER,
    ],
)
def test_a_cut_jpeg_is_cut_whatever_is_around_it(data):
    status, reason = outcome(data)
    assert status == "quarantined"
    assert reason.startswith(("truncated JPEG", "damaged JPEG"))


# ---- 7. samples of pictures; pictures that show nothing ----------------------------------------


def tiff(samples, bits, sample_format, photometric=1, orientation=1, order="<"):
    """One strip, tag by tag: Pillow writes few of these."""
    samples = samples.astype(samples.dtype.newbyteorder(order))
    height, width = samples.shape[:2]
    count = samples.shape[2] if samples.ndim == 3 else 1
    data = samples.tobytes()
    data += b"\0" * (len(data) % 2)
    start = 8 + len(data)
    tags = [(256, width), (257, height), (258, [bits] * count), (259, 1), (262, photometric)]
    tags += [(273, 8), (274, orientation), (277, count), (278, height), (279, len(data))]
    tags += [(339, [sample_format] * count)]
    end = start + 2 + 12 * len(tags) + 4
    directory, behind = struct.pack(order + "H", len(tags)), b""
    for tag, value in tags:
        values = value if isinstance(value, list) else [value]
        kind = 4 if tag in (273, 279) else 3
        packed = struct.pack(f"{order}{len(values)}{'HI'[kind - 3]}", *values)
        if len(packed) > 4:
            behind, packed = behind + packed, struct.pack(order + "I", end + len(behind))
        directory += struct.pack(order + "HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    magic = {"<": b"II*\0", ">": b"MM\0*"}[order]
    return magic + struct.pack(order + "I", start) + data + directory + bytes(4) + behind


def of_kind(kind):
    """PICTURE in the whole range of a kind of sample."""
    if np.dtype(kind).kind == "f":
        return (PICTURE / 255).astype(kind)
    info = np.iinfo(kind)
    step = (info.max - info.min) // 255
    return np.array([[info.min + int(v) * step for v in row] for row in PICTURE], kind)


KINDS = [("u1", 1), ("u2", 1), ("u4", 1), ("u8", 1), ("i1", 2), ("i2", 2), ("i4", 2), ("i8", 2)]
KINDS += [("f2", 3), ("f4", 3), ("f8", 3), ("u1", 4), ("u2", 4), ("u4", 4)]


@pytest.mark.parametrize(("kind", "sample_format"), KINDS)
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_kind_of_tiff_sample_is_seen_as_what_it_is(kind, sample_format, order):
    bits = 8 * int(kind[1])
    data = tiff(of_kind(kind), bits, sample_format, order=order)
    if bits == 64 and int(cv2.__version__.split(".")[0]) < 5 and kind != "f8":
        assert "is not readable here" in outcome(data)[1]
        return
    assert like_picture(pixels(data))
    inverted = tiff(of_kind(kind), bits, sample_format, photometric=0, order=order)
    assert like_picture(255 - pixels(inverted))
    turned = tiff(of_kind(kind), bits, sample_format, orientation=6, order=order)
    assert like_picture(np.rot90(pixels(turned)))
    assert (probe(turned).height, probe(turned).width) == (W, H)


def test_wide_colors_of_a_tiff():
    rgb = np.repeat(of_kind("f4")[..., None], 3, axis=2)
    assert like_picture(pixels(tiff(rgb, 32, 3, photometric=2)))


@pytest.mark.parametrize(("kind", "sample_format"), [("c8", 6), ("u4", 5), ("V3", 1)])
def test_a_tiff_of_another_kind_is_not_called_damaged(kind, sample_format):
    samples = np.zeros((H, W), kind)
    status, reason = outcome(tiff(samples, 8 * samples.itemsize, sample_format))
    assert status == "quarantined"
    assert "is not readable here" in reason


def test_a_tiff_in_an_unknown_compression_is_not_called_damaged():
    data = tiff(PICTURE, 8, 1)
    field = struct.pack("<HHIHH", 259, 3, 1, 1, 0)
    data = changed(data, field, struct.pack("<HHIHH", 259, 3, 1, 34712, 0))  # JPEG 2000
    assert outcome(data)[1] == "TIFF in a compression that is not readable here"


def test_pages_of_several_kinds():
    first = Image.fromarray(of_kind("f4"))
    buffer = io.BytesIO()
    first.save(buffer, "TIFF", save_all=True, append_images=[Image.fromarray(PICTURE)])
    assert probe(buffer.getvalue()).frames == 2
    field = struct.pack("<HHIHH", 339, 3, 1, 3, 0)
    assert buffer.getvalue().count(field) == 1
    odd = buffer.getvalue().replace(field, struct.pack("<HHIHH", 339, 3, 1, 4, 0))
    assert probe(odd).frames == 2
    np.testing.assert_array_equal(pixels(odd, 1), PICTURE)
    assert outcome(odd, 2) == ("quarantined", "frame 2 is out of range: the file has 2")


def bmp(pixels, masks=(0xFF0000, 0xFF00, 0xFF, 0xFF000000), size=108):
    """A 32-bit BMP with alpha."""
    body = pixels[::-1][..., [2, 1, 0, 3]].tobytes()
    header = struct.pack("<IiiHHIIiiII", size, W, H, 1, 32, 3, len(body), 2835, 2835, 0, 0)
    header += struct.pack("<IIII", *masks) + b"BGRs" + bytes(size - 60)
    return b"BM" + struct.pack("<IHHI", 14 + size + len(body), 0, 0, 14 + size) + header + body


@pytest.mark.parametrize("size", [108, 124])
def test_a_bmp_whose_alpha_is_not_in_use(size):
    opaque = np.dstack([PICTURE] * 3 + [np.full_like(PICTURE, 255)])
    unused = np.dstack([PICTURE] * 3 + [np.zeros_like(PICTURE)])
    half = np.dstack([PICTURE] * 3 + [np.where(HEAD, 255, 0).astype(np.uint8)])
    np.testing.assert_array_equal(pixels(bmp(opaque, size=size)), PICTURE)
    np.testing.assert_array_equal(pixels(bmp(unused, size=size)), PICTURE)
    np.testing.assert_array_equal(pixels(bmp(half, size=size)), np.where(HEAD, PICTURE, 0))


def test_a_tiff_whose_alpha_is_not_in_use():
    rgba = np.dstack([PICTURE] * 3 + [np.zeros_like(PICTURE)])
    np.testing.assert_array_equal(pixels(encode(rgba, "TIFF")), PICTURE)


RNG = np.random.default_rng(5)
NOTHING = {
    "one gray": (np.full((H, W), 77, np.uint8), "blank slice"),
    "white": (np.full((H, W), 255, np.uint8), "blank slice"),
    "black": (np.zeros((H, W), np.uint8), "blank slice"),
    "scaled to [0, 1]": (PICTURE // 120, "blank slice: only a handful of gray levels"),
    "scaled to [0, 2]": (PICTURE // 60, "blank slice: only a handful of gray levels"),
    "noise": (RNG.integers(100, 102, (H, W)).astype(np.uint8), "blank slice: only a handful"),
    "a mask": (HEAD * np.uint8(255), "blank slice: only a handful of gray levels"),
    "labels": (HEAD * np.uint8(1) + (PICTURE > 120) * np.uint8(3), "blank slice: only a handful"),
}


@pytest.mark.parametrize("name", NOTHING)
@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "DICOM", "NIfTI", "RGB PNG"])
def test_pictures_that_show_nothing_are_skipped(name, kind):
    gray, reason = NOTHING[name]
    data = {
        "DICOM": lambda: dicom_bytes(gray),
        "NIfTI": lambda: nifti_bytes(as_axial_volume(gray[None])),
        "RGB PNG": lambda: encode(np.dstack([gray] * 3), "PNG"),
    }.get(kind, lambda: encode(gray, kind))()
    status, found = outcome(data)
    assert status == "skipped"
    assert found.startswith(reason)


def test_a_jpeg_of_almost_nothing_is_skipped():
    assert outcome(encode(PICTURE // 120, "JPEG"))[0] == "skipped"
    assert outcome(encode(np.full((H, W), 255, np.uint8), "JPEG"))[0] == "skipped"


@pytest.mark.parametrize("bits", [4, 5, 6])
def test_a_scan_in_few_bits_is_still_one(bits):
    step = 2 ** (8 - bits)
    gray = PICTURE // step * step
    assert len(np.unique(gray)) > 8
    assert outcome(encode(gray, "PNG")) == ("ok", None)


# ---- 14. Siemens mosaics ------------------------------------------------------------------------


def mosaic(count, grid, *, named=True, private=True):
    tiles = [np.roll(PICTURE, 2 * k, 1) for k in range(count)]
    tiles += [np.zeros_like(PICTURE)] * (grid**2 - count)
    whole = np.block([[tiles[r * grid + c] for c in range(grid)] for r in range(grid)])
    dataset = mr_dataset(whole.astype(np.uint16) * 16)
    dataset.WindowCenter, dataset.WindowWidth = 2040, 4080
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", *(["MOSAIC"] if named else [])]
    if private:
        block = dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True)
        block.add_new(0x0A, "US", count)
    return dataset


@pytest.mark.parametrize(("count", "grid"), [(4, 2), (7, 3), (9, 3), (5, 3), (26, 6)])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_mosaic_is_cut_into_its_slices(count, grid, syntax):
    dataset = mosaic(count, grid)
    explicit = syntax == ExplicitVRLittleEndian
    data = saved(dataset) if explicit else without_preamble(dataset, syntax)
    found = probe(data)
    assert (found.frames, found.height, found.width) == (count, H, W)
    for k in range(count):
        assert shows_picture(data, k, np.roll(PICTURE, 2 * k, 1))
    assert outcome(data, count)[0] == "quarantined"


def csa_header(count):
    """A CSA2 image header with one tag (nibabel.nicom.csareader)."""
    name = b"NumberOfImagesInMosaic".ljust(64, b"\0")
    text = str(count).encode().ljust(12, b"\0")
    tag = name + struct.pack("<i4siii", 1, b"US\0\0", 6, 6, 77)
    tag += struct.pack("<4i", len(text), len(text), 77, len(text)) + text
    tag += struct.pack("<4i", 0, 0, 77, 0) * 5
    return b"SV10\4\3\2\1" + struct.pack("<II", 1, 77) + tag


def test_a_mosaic_is_cut_by_its_csa_header():
    dataset = mosaic(7, 3, private=False)
    block = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    block.add_new(0x10, "OB", csa_header(7))
    data = saved(dataset)
    assert probe(data).frames == 7
    assert shows_picture(data, 6, np.roll(PICTURE, 12, 1))


def test_a_mosaic_that_cannot_be_cut_for_sure_is_skipped():
    data = saved(mosaic(7, 3, private=False))  # dcm2niix 275, 550: private tags were removed
    reason = "Siemens mosaic whose number of slices is not known: not cut"
    assert outcome(data) == ("skipped", reason)
    assert probe(data).frames == 1
    odd = mosaic(7, 3)
    odd[0x0019, 0x100A].value = 20  # 5 x 5 do not fit
    assert outcome(saved(odd))[1] == reason


def test_frames_that_are_called_a_mosaic_are_frames():
    dataset = mr_dataset(STACK)  # dcm2niix 553: XA scanners keep the word
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    assert probe(saved(dataset)).frames == 3
    assert outcome(saved(dataset), 2)[0] == "ok"


def test_volumes_are_still_cut_as_asked():
    found = probe(nifti(), volumes=VolumeOptions("coronal"))
    assert (found.frames, found.height, found.width) == (H, 5, W)
