"""Compressed pixels of DICOM are held against its header: decoders fill whatever it asks for."""

import io

import jpeg_ls
import numpy as np
import pytest
from openjpeg.utils import encode_array
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSLossless,
    MRImageStorage,
)

from braintumor_ray.decode.decode import decode, probe
from braintumor_ray.decode.jpeg import stated

Y, X = np.mgrid[0:48, 0:64]
PICTURE = ((np.hypot(Y - 24, X - 32) < 22) * (40 + 3 * X)).astype(np.uint8)


def jpeg(picture):
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=98)
    return stream.getvalue()


KINDS = {
    "JPEG": (JPEGBaseline8Bit, jpeg),
    "JPEG-LS": (JPEGLSLossless, lambda picture: bytes(jpeg_ls.encode_array(picture))),
    "JPEG 2000": (JPEG2000Lossless, lambda p: encode_array(p, photometric_interpretation=2)),
}


def dicom(syntax, frames, rows=48, columns=64, **tags):
    scan = Dataset()
    scan.file_meta = FileMetaDataset()
    scan.file_meta.TransferSyntaxUID = syntax
    scan.file_meta.MediaStorageSOPClassUID = scan.SOPClassUID = MRImageStorage
    scan.file_meta.MediaStorageSOPInstanceUID = scan.SOPInstanceUID = "1.2.3"
    scan.Modality, scan.PhotometricInterpretation = "MR", "MONOCHROME2"
    scan.Rows, scan.Columns, scan.SamplesPerPixel = rows, columns, 1
    scan.BitsAllocated, scan.BitsStored, scan.HighBit, scan.PixelRepresentation = 8, 8, 7, 0
    scan.NumberOfFrames = len(frames)
    scan.PixelData = encapsulate(frames)
    scan["PixelData"].VR, scan["PixelData"].is_undefined_length = "OB", True
    for keyword, value in tags.items():
        setattr(scan, keyword, value)
    stream = io.BytesIO()
    scan.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_a_codestream_states_what_it_is(kind):
    syntax, encode = KINDS[kind]
    assert stated(encode(PICTURE))[:4] == (64, 48, 1, 8)
    shown = decode(dicom(syntax, [encode(PICTURE)]))
    assert shown.status == "ok"
    assert np.abs(shown.gray.astype(int) - PICTURE).max() <= 6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "columns"), [(64, 48), (96, 32), (24, 32), (96, 64)])
def test_pixels_of_another_size_than_the_header_says_are_refused(kind, rows, columns):
    syntax, encode = KINDS[kind]
    found = decode(dicom(syntax, [encode(PICTURE)], rows, columns))
    assert found.status == "quarantined"
    assert "another size" in found.reason


def test_each_frame_is_held_against_the_header():
    frames = [jpeg(PICTURE), jpeg(PICTURE.T.copy())]
    content = dicom(JPEGBaseline8Bit, frames)
    assert decode(content, frame=0).status == "ok"
    assert "another size" in decode(content, frame=1).reason


@pytest.mark.parametrize("ending", [b"", b"\xff\xd9"])
def test_a_jpeg_that_was_cut_is_refused_in_a_dicom_as_it_is_alone(ending):
    whole = jpeg(np.random.default_rng(0).integers(0, 255, (48, 64), np.uint8))
    cut = whole[: len(whole) * 2 // 3] + ending
    assert decode(cut).status == "quarantined"
    found = decode(dicom(JPEGBaseline8Bit, [cut]))
    assert found.status == "quarantined", "gray fill instead of the lower third"


COLORED = {
    "JPEG": jpeg,
    "JPEG-LS": lambda colors: bytes(jpeg_ls.encode_array(colors, interleave_mode=2)),
    "JPEG 2000": lambda colors: encode_array(colors, photometric_interpretation=1),
}
COLORS = np.repeat(PICTURE[..., None], 3, axis=2)
IN_COLOR = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB"}


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("kind", COLORED)
def test_compressed_colors_lie_as_their_codec_has_them(kind, planar):
    tags = IN_COLOR | {"PlanarConfiguration": planar}
    shown = decode(dicom(KINDS[kind][0], [COLORED[kind](COLORS)], **tags))
    assert np.abs(shown.gray.astype(int) - PICTURE).max() <= 6


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_of_other_colors_than_the_header_says_are_refused(kind):
    syntax, encode = KINDS[kind]
    for frame, tags in ((COLORED[kind](COLORS), {}), (encode(PICTURE), IN_COLOR)):
        found = decode(dicom(syntax, [frame], **tags))
        assert found.status == "quarantined", "a third of the colors, as if they were gray"
        assert "other colors" in found.reason


@pytest.mark.parametrize("kind", ["JPEG-LS", "JPEG 2000"])
def test_pixels_of_more_bits_than_the_header_says_are_refused(kind):
    syntax, encode = KINDS[kind]
    found = decode(dicom(syntax, [encode(PICTURE.astype(np.uint16) * 16)]))
    assert found.status == "quarantined", "half of the words, as if they were bytes"
    assert "more bits" in found.reason


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL_422", "YBR_ICT", "YBR_PARTIAL_420"])
def test_colors_of_a_jpeg_are_its_own_whatever_the_header_calls_them(photometric):
    tags = IN_COLOR | {"PhotometricInterpretation": photometric}
    shown = decode(dicom(JPEGBaseline8Bit, [jpeg(COLORS)], **tags))
    assert np.abs(shown.gray.astype(int) - PICTURE).max() <= 6


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"])
def test_colors_that_a_jpeg_2000_transforms_itself_are_red_green_and_blue(photometric):
    stream = encode_array(COLORS, photometric_interpretation=1, use_mct=True)
    tags = IN_COLOR | {"PhotometricInterpretation": photometric}
    shown = decode(dicom(JPEG2000Lossless, [stream], **tags))
    assert np.abs(shown.gray.astype(int) - PICTURE).max() <= 1


@pytest.mark.parametrize(("photometric", "inverted"), [("MONOCHROME2", 0), ("MONOCHROME1", 255)])
def test_gray_stays_gray_where_a_jpeg_2000_names_a_transform_of_colors(photometric, inverted):
    stream = bytearray(KINDS["JPEG 2000"][1](PICTURE))
    stream[stream.index(b"\xff\x52") + 8] = 1  # of COD: OpenJPEG skips it, GDCM dies of RGB
    assert not stated(bytes(stream)).transformed
    found = decode(dicom(JPEG2000Lossless, [bytes(stream)], PhotometricInterpretation=photometric))
    assert np.array_equal(found.gray, np.abs(inverted - PICTURE.astype(int)))


def test_ycbcr_that_a_jpeg_2000_holds_as_it_is_is_what_the_header_calls_it():
    from pydicom.pixels import convert_color_space

    stream = encode_array(convert_color_space(COLORS, "RGB", "YBR_FULL"), use_mct=False)
    tags = IN_COLOR | {"PhotometricInterpretation": "YBR_FULL"}
    shown = decode(dicom(JPEG2000Lossless, [stream], **tags))
    assert np.abs(shown.gray.astype(int) - PICTURE).max() <= 2


def test_a_jpeg_of_12_bits_is_not_called_damaged():
    found = jpeg(PICTURE)
    at = found.index(b"\xff\xc0")
    deep = found[:at] + b"\xff\xc1" + found[at + 2 : at + 4] + b"\x0c" + found[at + 5 :]
    assert decode(deep).reason == "JPEG of a kind that is not readable here"
    within = dicom(JPEGExtended12Bit, [deep], BitsAllocated=16, BitsStored=12, HighBit=11)
    assert decode(within).reason == "compressed DICOM that no installed plugin decodes"


@pytest.mark.parametrize("marker", [0xC5, 0xC7, 0xCB, 0xCF], ids=hex)
def test_a_jpeg_whose_frames_libjpeg_does_not_know_is_not_called_damaged(marker):
    found = jpeg(PICTURE).replace(b"\xff\xc0", bytes((0xFF, marker)), 1)
    assert decode(found).reason == "JPEG of a kind that is not readable here"


def test_a_file_of_jpeg_ls_is_not_called_damaged():
    found = bytes(jpeg_ls.encode_array(PICTURE))
    assert decode(found).reason == "JPEG of a kind that is not readable here"
    assert probe(found).reason == "JPEG of a kind that is not readable here"
