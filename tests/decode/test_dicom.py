"""DICOM comes through the one door: the same pixels whatever the encoding, or a true reason."""

from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from braintumor_ray.decode.decode import decode, decode_frames, probe, sniff
from braintumor_ray.decode.dicom import tagged_window
from braintumor_ray.decode.dicom_tags import Tags
from braintumor_ray.decode.types import DecodeLimits, DecodeOptions
from tests.decode.mutations import slice_like
from tests.decode.volume_files import AXIAL, dicom_bytes, item, mr_dataset, saved, without_preamble

GRAY = slice_like(np.random.default_rng(0), 80, 60)
STACK = np.stack([slice_like(np.random.default_rng(k), 40, 50) for k in range(4)])


def pixels(data, frame=0):
    decoded = decode(data, frame=frame)
    assert decoded.reason is None
    return decoded.gray


def outcome(data, frame=0):
    decoded = decode(data, frame=frame)
    return decoded.status, decoded.reason


def within_one_level(found, expected):
    return found.shape == expected.shape and np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("syntax", "plugin"),
    [
        (ExplicitVRLittleEndian, None),
        (ImplicitVRLittleEndian, None),
        (DeflatedExplicitVRLittleEndian, None),
        (RLELossless, None),
        (JPEGLSLossless, "jpeg_ls"),
        (JPEG2000Lossless, "openjpeg"),
    ],
)
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 128, "WindowWidth": 256}])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_an_8_bit_scan_comes_back_as_it_was(syntax, plugin, window, photometric):
    if plugin:
        pytest.importorskip(plugin, reason="the encoder that this test needs")
    stored = 255 - GRAY if photometric == "MONOCHROME1" else GRAY
    data = dicom_bytes(stored, syntax, photometric=photometric, **window)
    assert within_one_level(pixels(data), GRAY)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_frames_of_a_multi_frame_object_come_back_one_by_one(syntax):
    data = dicom_bytes(STACK, syntax)
    assert probe(data).frames == 4
    for decoded, expected in zip(
        decode_frames(data, DecodeOptions(frames=(3, 0, 2, 1))), STACK[[3, 0, 2, 1]], strict=True
    ):
        np.testing.assert_array_equal(decoded.gray, expected)
    assert outcome(data, 4) == ("quarantined", "frame 4 is out of range: the file has 4")


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "uint32", "int32"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_samples_that_are_read_as_they_lie_are_those_of_pydicom(kind, syntax):
    """Also below zero, and of every frame; a window shows them, without their bits cut."""
    random = np.random.default_rng(3)
    low = -200 if kind.startswith("int") else 0
    stack = random.integers(low, 201, (3, 40, 50)).astype(kind)
    data = dicom_bytes(stack, syntax, WindowCenter=0.5, WindowWidth=400)
    theirs = dcmread(BytesIO(data)).pixel_array
    np.testing.assert_array_equal(theirs, stack)
    for frame in range(3):
        expected = ((theirs[frame] - 0.0) / 399 + 0.5).clip(0, 1) * 255  # PS3.3, C.11.2.1.2.1
        assert within_one_level(pixels(data, frame), np.rint(expected))


def test_a_scan_stored_in_16_bits_comes_back_through_its_rescaling_and_window():
    stored = GRAY.astype(np.int16) * 4 - 1000
    tags = {"RescaleSlope": 0.5, "RescaleIntercept": 500, "WindowCenter": 255, "WindowWidth": 510}
    assert within_one_level(pixels(dicom_bytes(stored, **tags)), GRAY)


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
def test_the_window_has_the_shape_that_is_tagged(function):
    tags = {"WindowCenter": 100, "WindowWidth": 80, "VOILUTFunction": function}
    x = GRAY.astype(float)
    exact = ((x - 100) / 80 + 0.5).clip(0, 1) * 255  # PS3.3, C.11.2.1.3.2
    sigmoid = 255 / (1 + np.exp(-4 * (x - 100) / 80))  # PS3.3, C.11.2.1.3.1
    expected = {"LINEAR_EXACT": exact, "SIGMOID": sigmoid}[function]
    assert np.abs(pixels(dicom_bytes(GRAY, **tags)) - expected).max() <= 1


def test_of_several_windows_the_first_is_taken():
    two = dicom_bytes(GRAY, WindowCenter=[128, 20], WindowWidth=[256, 10])
    assert within_one_level(pixels(two), GRAY)


@pytest.mark.parametrize(("center", "width"), [(128, 0), (9000, 10), (None, 300)])
def test_a_window_that_shows_nothing_is_as_good_as_none(center, width):
    np.testing.assert_array_equal(
        pixels(dicom_bytes(GRAY, WindowCenter=center, WindowWidth=width)), GRAY
    )


def test_a_lookup_table_is_applied_where_there_is_no_window():
    table = np.arange(256)[::-1].astype(np.uint16)
    lut = item(LUTDescriptor=[256, 0, 8], LUTData=table.tolist())
    dataset = mr_dataset(GRAY)
    dataset.VOILUTSequence = [lut]
    dataset.VOILUTSequence[0]["LUTDescriptor"].VR = "US"
    dataset.VOILUTSequence[0]["LUTData"].VR = "US"
    np.testing.assert_array_equal(pixels(saved(dataset)), 255 - GRAY)


def with_table(stored, keyword, descriptor, entries, syntax=ExplicitVRLittleEndian, **tags):
    """An object with a lookup table, whose entries are in the bytes that they have."""
    dataset = mr_dataset(stored)
    lut = Dataset()
    lut.add_new("LUTDescriptor", "SS" if descriptor[1] < 0 else "US", descriptor)
    big = syntax == ExplicitVRBigEndian
    lut.add_new("LUTData", "OW", entries.astype(entries.dtype.newbyteorder("<>"[big])).tobytes())
    if big:
        dataset.PixelData = stored.astype(stored.dtype.newbyteorder(">")).tobytes()
    setattr(dataset, keyword, [lut])
    for name, value in tags.items():
        setattr(dataset, name, value)
    plain = Dataset(dataset)
    plain.file_meta = dataset.file_meta
    plain.file_meta.TransferSyntaxUID = syntax
    return saved(plain)


LEVELS = np.arange(2**16, dtype=np.uint16)
TWELVE = GRAY.astype(np.uint16) * 16
WIDE = GRAY.astype(np.uint16) * 257
BY_TABLE = [
    (GRAY, [256, 0, 8], LEVELS[:256]),
    (GRAY, [256, 0, 8], LEVELS[:256].astype(np.uint8)),  # bytes in words
    ((GRAY.astype(int) - 128).astype(np.int8), [256, -128, 8], LEVELS[:256]),
    (TWELVE, [4096, 0, 8], LEVELS[:4096] // 16),  # more entries than their depth counts
    (TWELVE, [4096, 0, 8], (LEVELS[:4096] // 16).astype(np.uint8)),
    (TWELVE, [4097, 0, 8], LEVELS[:4096] // 16),  # fewer than it says
    (TWELVE.astype(np.int16) - np.int16(2048), [4096, -2048, 8], LEVELS[:4096] // 16),
    (TWELVE.astype(np.int16) - np.int16(2048), [4096, 63488, 8], LEVELS[:4096] // 16),
    (WIDE, [0, 0, 16], LEVELS),  # 65536 entries
    ((WIDE.astype(int) - 2**15).astype(np.int16), [0, -(2**15), 16], LEVELS),
    (TWELVE + np.uint16(9000), [4000, 9000, 12], LEVELS[:4096] + np.uint16(15)),  # one too many
]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize(("stored", "descriptor", "entries"), BY_TABLE)
def test_a_lookup_table_counts_by_its_entries(stored, descriptor, entries, syntax):
    data = with_table(stored, "VOILUTSequence", descriptor, entries, syntax)
    assert within_one_level(pixels(data), GRAY)
    full = 2 ** descriptor[2]
    window = {"WindowCenter": full / 2, "WindowWidth": full}
    data = with_table(stored, "ModalityLUTSequence", descriptor, entries, syntax, **window)
    assert within_one_level(pixels(data), GRAY)


def test_a_lookup_table_of_rescaled_values_may_begin_below_zero():
    tags = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    data = with_table(TWELVE, "VOILUTSequence", [4096, 64512, 8], LEVELS[:4096] // 16, **tags)
    assert within_one_level(pixels(data), GRAY)


def test_a_lookup_table_in_big_endian_words():
    entries = LEVELS[:4096] // 16
    data = with_table(TWELVE, "VOILUTSequence", [4096, 0, 8], entries, ExplicitVRBigEndian)
    assert within_one_level(pixels(data), GRAY)


@pytest.mark.parametrize(
    ("keyword", "descriptor", "entries"),
    [
        ("VOILUTSequence", [256, 0], LEVELS[:256]),
        ("ModalityLUTSequence", [256, 0], LEVELS[:256]),
        ("VOILUTSequence", [256, 0, 8], LEVELS[:0]),
        ("VOILUTSequence", [256, 0, 0], np.zeros(256, np.uint16)),
    ],
)
def test_a_lookup_table_that_cannot_be_used_is_as_good_as_none(keyword, descriptor, entries):
    data = with_table(GRAY, keyword, descriptor, entries)
    np.testing.assert_array_equal(pixels(data), GRAY)


def test_without_a_window_the_robust_range_fills_the_gray_levels():
    stored = GRAY.astype(np.int16)  # 16 bits are not gray levels, however small the numbers
    stored[0, 0] = 30_000  # a hot pixel
    found = pixels(dicom_bytes(stored // 2))
    assert np.percentile(found, 99.5) >= 250
    assert np.corrcoef(found[1:].ravel(), GRAY[1:].ravel())[0, 1] > 0.99


def test_padding_does_not_count_as_dark():
    stored = GRAY.astype(np.int16) + 100
    stored[:10] = -2000
    found = pixels(dicom_bytes(stored, PixelPaddingValue=-2000))
    assert found[:10].max() == 0
    assert np.median(found[10:][GRAY[10:] == 0]) == 0
    assert np.ptp(found[10:]) > 250


def test_frames_of_one_object_share_their_range():
    stack = np.stack([STACK[0].astype(np.uint16) * 10, STACK[0].astype(np.uint16) * 5])
    bright, dim = (
        decoded.gray for decoded in decode_frames(dicom_bytes(stack), DecodeOptions(frames=(0, 1)))
    )
    assert 0.4 < dim.mean() / bright.mean() < 0.6


def test_functional_groups_speak_for_their_frames():
    dataset = mr_dataset(STACK[:2])
    window = item(WindowCenter=128, WindowWidth=256)
    other = item(WindowCenter=64, WindowWidth=128)
    dataset.SharedFunctionalGroupsSequence = [
        item(PlaneOrientationSequence=[item(ImageOrientationPatient=[0, 1, 0, 0, 0, -1])])
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        item(FrameVOILUTSequence=[w]) for w in (window, other)
    ]
    del dataset.ImageOrientationPatient
    data = saved(dataset)
    assert probe(data).tags["plane"] == "sagittal"
    assert within_one_level(pixels(data, 0), STACK[0])
    doubled = (STACK[1].astype(int) * 2).clip(0, 255)
    assert np.abs(pixels(data, 1).astype(int) - doubled).max() <= 2


def test_color_becomes_its_luma():
    dataset = mr_dataset(GRAY, "RGB")
    dataset.SamplesPerPixel, dataset.PlanarConfiguration = 3, 0
    dataset.PixelData = np.repeat(GRAY[..., None], 3, axis=2).tobytes()
    np.testing.assert_array_equal(pixels(saved(dataset)), GRAY)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_a_file_without_preamble_is_known_by_its_content(syntax):
    dataset = mr_dataset(GRAY)
    data = without_preamble(dataset, syntax)
    assert sniff(data) == "dicom"
    np.testing.assert_array_equal(pixels(data), GRAY)


@pytest.mark.parametrize(
    "data",
    [bytes(600), b"\x08\x00" * 300, b"\x02\x00\x00\x00" + b"text" * 200, b"\x08\x00\x05\x00"],
)
def test_other_files_are_not_taken_for_dicom(data):
    assert sniff(data) != "dicom"


def test_an_object_without_pixels_is_quarantined_and_says_which_kind():
    plan = mr_dataset(GRAY)
    del plan.PixelData
    assert outcome(saved(plan))[1] == "DICOM image without its pixel data (cut off, or header only)"
    plan.SOPClassUID = "1.2.840.10008.5.1.4.1.1.481.5"  # RT Plan
    plan.Modality = "RTPLAN"
    assert outcome(saved(plan)) == ("quarantined", "DICOM without pixel data (not an image)")
    assert probe(saved(plan)).tags["modality"] == "RTPLAN"


def test_pixel_data_that_end_early_are_quarantined():
    data = dicom_bytes(GRAY)
    assert outcome(data[:-100]) == (
        "quarantined",
        "truncated DICOM: fewer pixel data than its header says",
    )


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_no_part_of_a_file_decodes(syntax):
    data = dicom_bytes(GRAY, syntax)
    for cut in range(1, len(data) - 8, len(data) // 40):
        assert outcome(data[:cut])[0] == "quarantined", cut


@pytest.mark.parametrize("modality", ["CT", "NM", "PT", "OT"])
def test_other_modalities_are_skipped(modality):
    assert outcome(dicom_bytes(GRAY, Modality=modality)) == ("skipped", "not MR: another modality")


@pytest.mark.parametrize(
    "tags",
    [
        {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        {"SeriesDescription": "3-plane loc"},
        {"SeriesDescription": "AAHead_Scout"},
        {"SeriesDescription": "", "ProtocolName": "Localizer"},
        {"SeriesDescription": "SURVEY"},
    ],
)
def test_localizers_are_skipped(tags):
    assert outcome(dicom_bytes(GRAY, **tags)) == ("skipped", "localizer")


@pytest.mark.parametrize("words", ["t1_mprage_sag", "ax T2 local", "block FLAIR", "velocity"])
def test_a_sequence_is_no_localizer_for_a_part_of_a_word(words):
    assert outcome(dicom_bytes(GRAY, SeriesDescription=words))[0] == "ok"


def test_blank_slices_are_skipped():
    assert outcome(dicom_bytes(np.zeros((64, 64), np.uint16))) == ("skipped", "blank slice")
    assert outcome(dicom_bytes(np.full((64, 64), 7, np.uint8))) == ("skipped", "blank slice")


def test_a_dicomdir_is_skipped_whatever_it_is_called():
    directory = mr_dataset(GRAY)
    del directory.PixelData
    directory.SOPClassUID = "1.2.840.10008.1.3.10"
    assert outcome(saved(directory)) == ("skipped", "DICOMDIR: lists files, is no scan")


def test_pixels_and_frames_are_limited_by_the_header():
    few = DecodeLimits(max_pixels=1000)
    assert "over the limit of 1000" in decode(dicom_bytes(GRAY), limits=few).reason
    for count in ("0", "-1", "2000000000"):
        data = dicom_bytes(GRAY, NumberOfFrames=count)
        assert (probe(data).reason or "").startswith("damaged DICOM") or probe(data).frames == 1
        assert decode(data, frame=5).status == "quarantined"


@pytest.mark.parametrize(
    "before",  # the element that tells of it
    [b"", b"\2\0\1\0OB\0\0\0\0\2\0" + bytes(2**17), b"\2\0\3\1UR\0\0\4\0\0\0abcd"],
    ids=["nothing", "128 KiB", "an element of another kind"],
)
def test_a_deflated_bomb_is_refused(before):
    import zlib

    data = dicom_bytes(GRAY, DeflatedExplicitVRLittleEndian)
    start = data.index(b"1.2.840.10008.1.2.1.99")
    start = data.index(b"\x02\x00", start)  # what follows of the meta information stays
    meta_end = 144 + int.from_bytes(data[140:144], "little")
    squeeze = zlib.compressobj(9, wbits=-15)
    meta = data[:144] + before + data[144:meta_end]
    bomb = meta + squeeze.compress(bytes(300 * 2**20)) + squeeze.flush()
    assert len(bomb) < 2**20
    reason = "over the limit of 268435456 bytes when inflated"
    assert outcome(bomb) == ("quarantined", reason)
    assert probe(bomb).reason == reason


def test_the_header_gives_what_the_catalog_needs_from_its_first_bytes():
    big = np.zeros((400, 300), np.uint16)
    data = dicom_bytes(
        big, SeriesDescription="t1 post", ImageOrientationPatient=[1, 0, 0, 0, 0, -1]
    )
    found = probe(data[:4096])
    assert (found.height, found.width, found.frames, found.reason) == (400, 300, 1, None)
    assert found.mode == "MONOCHROME2 16-bit"
    assert found.tags == {
        "modality": "MR",
        "plane": "coronal",
        "sequence": "t1 post",
        "patient": "P1",
        "study": "1.2.3",
        "series": "1.2.3.1",
        "sop": "1.2.3.4",
    }
    assert "1.2.3.4" not in repr(found)


def test_a_header_that_goes_on_needs_the_whole_file():
    data = dicom_bytes(GRAY, ImageComments="x" * 5000)
    assert probe(data[:4096]).reason is not None
    assert probe(data).reason is None


@pytest.mark.parametrize(
    ("orientation", "plane"),
    [(AXIAL, "axial"), ([0, 1, 0, 0, 0, -1], "sagittal"), ([0.9, 0.1, 0, 0, 0.2, -0.9], "coronal")],
)
def test_the_plane_is_that_nearest_to_the_orientation(orientation, plane):
    assert probe(dicom_bytes(GRAY, ImageOrientationPatient=orientation)).tags["plane"] == plane


def test_a_description_that_repeats_a_name_is_left_out():
    tags = {"PatientName": "Quorra^Zoe", "SeriesDescription": "t1 for ZOE"}
    assert "sequence" not in probe(dicom_bytes(GRAY, **tags)).tags


def test_nothing_is_said_of_odd_values(recwarn, caplog):
    data = bytearray(
        dicom_bytes(GRAY, SpecificCharacterSet="ISO_IR 100", PatientBirthDate="19431231")
    )
    data = bytes(data).replace(b"ISO_IR 100", b"Quorra_100").replace(b"19431231", b"Quorra31")
    recwarn.clear()
    probe(data)
    decode(data)
    assert not [warning for warning in recwarn if "Quorra" in str(warning.message)]
    assert "Quorra" not in caplog.text


@pytest.mark.real
def test_the_real_volume_is_readable_with_contrast(real_data):
    for path in sorted((real_data / "dicom" / "brain_t1w").glob("*.dcm")):
        found = pixels(path.read_bytes())
        assert found.shape == (384, 274), path.name
        assert np.percentile(found, 99.5) > 230, path.name
        assert found.std() > 25, path.name


@pytest.mark.real
def test_every_encoding_of_the_real_slice_gives_the_same_pixels(real_data):
    folder = real_data / "dicom" / "variants"
    one, *others = (pixels(path.read_bytes()) for path in sorted(folder.glob("MR_small*.dcm")))
    assert len(others) == 3
    for other in others:
        np.testing.assert_array_equal(other, one)


@pytest.mark.real
def test_the_real_variants_end_as_they_should(real_data):
    folder = real_data / "dicom" / "variants"
    emri = (folder / "emri_small.dcm").read_bytes()
    wanted = DecodeOptions(frames=tuple(range(probe(emri).frames)))
    assert [d.status for d in decode_frames(emri, wanted)] == ["ok"] * 10
    ends = {name: outcome((folder / f"{name}.dcm").read_bytes()) for name in (
        "MR_truncated", "rtplan", "JPEG2000", "examples_overlay")}  # fmt: skip
    assert ends == {
        "MR_truncated": ("quarantined", "truncated DICOM: fewer pixel data than its header says"),
        "rtplan": ("quarantined", "DICOM without pixel data (not an image)"),
        "JPEG2000": ("skipped", "not MR: another modality"),
        "examples_overlay": ("ok", None),
    }


@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "i4"])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_a_window_by_look_up_is_the_window_of_each_value(kind, function):
    tags = Tags(Dataset())
    window = tags.dataset
    window.WindowCenter, window.WindowWidth, window.VOILUTFunction = 60.5, 91, function
    least = 0 if kind.startswith("u") else -120
    values = np.random.default_rng(5).integers(least, 121, (40, 50)).astype(kind)
    one_by_one = [[tagged_window(v.reshape(1, 1), tags)[0, 0] for v in row] for row in values]
    np.testing.assert_array_equal(tagged_window(values, tags), one_by_one)


@pytest.mark.parametrize(
    ("kind", "values"),
    [("u2", [0, 1, 300, 65_535]), ("i2", [-32_768, -300, 0, 32_767]), ("i2", [-3, 0, 5, 9])],
)
def test_a_window_by_look_up_reaches_the_ends_of_16_bits(kind, values):
    tags = Tags(Dataset())
    tags.dataset.WindowCenter, tags.dataset.WindowWidth = 200.5, 50_000
    whole = np.array([values], kind)
    np.testing.assert_array_equal(
        tagged_window(whole, tags), tagged_window(whole.astype(float), tags)
    )


def test_numbers_and_codes_read_without_pydicom_are_those_of_pydicom():
    made = mr_dataset(GRAY)
    made.WindowCenter, made.WindowWidth, made.RescaleSlope = [40.5, 60], 80, "1.25 "
    made.PixelPaddingValue, made.ImageType = 7, ["ORIGINAL", "PRIMARY"]
    data = saved(made)
    raw, read = Tags(dcmread(BytesIO(data))), dcmread(BytesIO(data))
    for keyword in ("WindowCenter", "WindowWidth", "RescaleSlope", "PixelPaddingValue", "Rows"):
        assert raw.numbers(keyword) == [*map(float, np.atleast_1d(read[keyword].value))]
    for keyword in ("Modality", "SOPInstanceUID", "PhotometricInterpretation"):
        assert raw.text(keyword) == read[keyword].value
    assert raw.text("ImageType") == "ORIGINAL PRIMARY"
