"""NIfTI comes through the one door: slices the right way round, one range, parsed once."""

import gzip

import nibabel
import numpy as np
import pyarrow as pa
import pytest

from braintumor_ray.decode import files, nifti
from braintumor_ray.decode.decode import decode, decode_frames, probe
from braintumor_ray.decode.prepare import PrepareOptions, prepare_file
from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.decode.reading import decode_scans
from braintumor_ray.decode.types import DecodeLimits, DecodeOptions, VolumeOptions
from tests.decode.mutations import slice_like
from tests.decode.volume_files import as_axial_volume, nifti_bytes

STACK = np.stack([slice_like(np.random.default_rng(k), 40, 50) for k in range(6)])
VOXELS = as_axial_volume(STACK)
SQUARE = Preprocessing(32, "area", (0.5,) * 3, (0.25,) * 3)


def slices(data, **volumes):
    options = VolumeOptions(**volumes)
    frames = tuple(range(probe(data, volumes=options).frames))
    return decode_frames(data, DecodeOptions(frames=frames, volumes=options))


def stacked(data, **volumes):
    return np.stack([decoded.gray for decoded in slices(data, **volumes)])


def reason(data, **volumes):
    decoded = decode(data, volumes=VolumeOptions(**volumes))
    assert decoded.status == "quarantined"
    return decoded.reason


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_8_bit_slices_come_back_as_they_were(zipped, kind):
    data = nifti_bytes(VOXELS, zipped=zipped, kind=kind)
    np.testing.assert_array_equal(stacked(data), STACK)


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (-1, -1, 1), (1, -1, -1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_slices_look_the_same_however_the_voxels_are_stored(flips, order):
    canonical = nibabel.Nifti1Image(VOXELS, np.eye(4))
    stored = canonical.as_reoriented(np.array([*zip(np.argsort(order), flips, strict=True)]))
    data = nifti_bytes(np.asarray(stored.dataobj), stored.affine)
    found = probe(data)
    assert (found.frames, found.height, found.width) == STACK.shape
    np.testing.assert_array_equal(stacked(data), STACK)


def test_planes_are_shown_as_radiologists_look_at_them():
    voxels = np.full((20, 24, 28), 30, np.uint8)
    voxels[0, :, :] = 90  # the patient's left side is at the high end: this is the right
    voxels[:, -1, :] = 150  # nose
    voxels[:, :, -1] = 220  # crown
    voxels[8:12, 8:12, 8:12] = np.arange(64).reshape(4, 4, 4)  # more than a handful of levels
    data = nifti_bytes(voxels[::-1].copy(), np.diag([-1.0, 1, 1, 1]))  # left to right, stored so
    axial, coronal, sagittal = (
        slices(data, plane=plane)[10].gray for plane in ("axial", "coronal", "sagittal")
    )
    assert axial.shape == (24, 20)
    assert coronal.shape == (28, 20)
    assert sagittal.shape == (28, 24)
    assert (axial[0] == 150).all()  # nose up
    assert (coronal[0] == 220).all()  # head up
    assert (sagittal[0] == 220).all()
    assert (sagittal[1:, 0] == 150).all()  # nose on the left
    assert (axial[1:, -1] == 90).all()  # RAS starts on the left: it is seen on the right
    assert (coronal[1:, -1] == 90).all()


def test_the_first_axial_slice_is_the_lowest():
    rising = as_axial_volume(np.stack([np.minimum(STACK[0], 250) // (6 - k) for k in range(6)]))
    means = stacked(nifti_bytes(rising)).mean(axis=(1, 2))
    assert (np.diff(means) > 0).all()


def test_the_whole_volume_has_one_robust_range():
    voxels = VOXELS.astype(np.float32) * np.linspace(0.2, 1, 6, dtype=np.float32) * 37 - 500
    voxels[0, 0, 0] = 1e6  # a hot voxel
    found = stacked(nifti_bytes(voxels))
    assert found.max() == 255
    assert found[-1].mean() > 3 * found[0].mean()  # slices are not stretched one by one
    assert np.corrcoef(found[-1].ravel(), STACK[-1].ravel())[0, 1] > 0.99


def test_scaling_in_the_header_is_applied():
    negative = nifti_bytes(VOXELS.astype(np.int16), scl_slope=-2.0, scl_inter=10.0)
    plain = stacked(nifti_bytes(VOXELS.astype(np.int16)))
    assert np.abs(stacked(negative).astype(int) - (255 - plain)).max() <= 1


def test_blank_slices_are_skipped():
    voxels = VOXELS.copy()
    voxels[:, :, [0, 5]] = 0
    statuses = [(d.status, d.reason) for d in slices(nifti_bytes(voxels))]
    assert statuses == [("skipped", "blank slice"), *[("ok", None)] * 4, ("skipped", "blank slice")]


def test_of_a_4d_file_the_wanted_volume_is_read():
    other = VOXELS[::-1]
    data = nifti_bytes(np.stack([VOXELS, other], axis=3))
    np.testing.assert_array_equal(stacked(data), STACK)
    np.testing.assert_array_equal(stacked(data, volume=1), STACK[:, :, ::-1])
    assert reason(data, volume=2) == "volume 2 is out of range: the file has 2"
    assert probe(data, volumes=VolumeOptions(volume=2)).reason is not None


def test_flat_and_single_volumes_are_volumes_too():
    np.testing.assert_array_equal(stacked(nifti_bytes(VOXELS[:, :, 0])), STACK[:1])
    np.testing.assert_array_equal(stacked(nifti_bytes(VOXELS[..., None, None])), STACK)


def without_orientation(data):
    rows = slice(280, 328)  # srow_x, srow_y, srow_z
    return data[: rows.start] + np.full(12, np.nan, "<f4").tobytes() + data[rows.stop :]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (nifti_bytes(VOXELS)[:-50], "truncated or damaged NIfTI: the voxels cannot be read"),
        (nifti_bytes(VOXELS, zipped=False)[:-9], "truncated or damaged NIfTI"),
        (nifti_bytes(VOXELS, zipped=False)[:350], "truncated or damaged NIfTI"),
        (nifti_bytes(VOXELS.astype(np.complex64)), "NIfTI with color or complex voxels"),
        (nifti_bytes(np.zeros((4, 4, 4, 2, 3), np.uint8)), "NIfTI with more than four dimensions"),
        (bytes(344) + b"ni1\0" + bytes(100), "header without its voxels (a .hdr/.img pair)"),
        (without_orientation(nifti_bytes(VOXELS, zipped=False)), "its affine gives no"),
        (nifti_bytes(np.full((9, 9, 9), np.nan, np.float32)), "no finite pixel values"),
    ],
)
def test_what_cannot_be_read_says_why(data, words):
    assert words in reason(data)


def test_a_volume_is_limited_by_its_header():
    few = DecodeLimits(max_pixels=40 * 50)
    assert (
        decode(nifti_bytes(VOXELS), limits=few).reason
        == "50 x 40 x 6 voxels is over the limit of 8000"
    )
    assert (
        "over the limit of 1999"
        in decode(nifti_bytes(VOXELS), limits=DecodeLimits(max_pixels=1999)).reason
    )


def test_a_frame_beyond_the_volume_costs_only_itself():
    first, beyond = decode_frames(nifti_bytes(VOXELS), DecodeOptions(frames=(0, 6)))
    assert first.status == "ok"
    assert beyond.reason == "frame 6 is out of range: the volume has 6"


def test_the_header_alone_gives_size_and_frames():
    data = nifti_bytes(VOXELS.astype(np.int16), zipped=False)
    found = probe(data[:600], volumes=VolumeOptions("coronal"))
    assert (found.frames, found.height, found.width) == (40, 6, 50)
    assert (found.mode, found.tags) == ("int16", {"plane": "coronal"})


def test_a_volume_is_parsed_once_for_all_its_frames(monkeypatch):
    parsed = []
    load = nifti._load
    monkeypatch.setattr(nifti, "_load", lambda *given: parsed.append(1) or load(*given))
    options = PrepareOptions(frames=tuple(range(6)), preprocessing=SQUARE)
    assert [scan.status for scan in prepare_file(nifti_bytes(VOXELS), options)] == ["ok"] * 6
    assert len(parsed) == 1


def test_a_volume_is_opened_once_per_block(monkeypatch, tmp_path):
    path = tmp_path / "volume.nii.gz"
    path.write_bytes(nifti_bytes(VOXELS))
    opened = []
    read_file = files.read_file
    monkeypatch.setattr(
        files, "read_file", lambda uri, limits: opened.append(uri) or read_file(uri, limits)
    )
    rows = pa.table(
        {
            "uri": [str(path)] * 6 + [f"{path}#plane=sagittal&volume=0"] * 3,
            "frame": [*range(6), 10, 11, 12],
            "volume_plane": ["axial"] * 6 + ["sagittal"] * 3,
            "volume_index": [0] * 9,
        }
    )
    scans = list(decode_scans(rows, SQUARE))
    assert opened == [str(path)] * 2  # once for each plane
    assert [(scan.status, scan.height, scan.width) for scan in scans] == [
        *[("ok", 40, 50)] * 6,
        *[("ok", 6, 40)] * 3,
    ]


@pytest.mark.parametrize(
    "options", [VolumeOptions("coronal"), VolumeOptions(volume=3), VolumeOptions("sagittal", 12)]
)
def test_rows_without_volume_columns_tell_them_by_their_uris(options):
    rows = pa.table({"uri": [f"s3://bucket/a#b.nii{options.mark}"] * 2, "frame": [0, 1]})
    found = files.with_volumes(rows)
    assert found.select(rows.column_names).equals(rows)
    assert found["volume_plane"].to_pylist() == [options.plane] * 2
    assert found["volume_index"].to_pylist() == [options.volume] * 2
    expected = [files.FileFrames("s3://bucket/a#b.nii", (0, 1), options)]
    assert files.files_of(rows) == files.files_of(found) == expected


def test_columns_count_and_not_what_an_uri_looks_like():
    name = "odd#plane=coronal&volume=0"
    rows = pa.table({"uri": [name], "frame": [2], "volume_plane": [None], "volume_index": [None]})
    assert files.files_of(rows) == [files.FileFrames(name, (2,), VolumeOptions())]
    assert VolumeOptions().mark == ""


def test_a_gzip_bomb_is_not_inflated():
    header = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)).to_bytes()[:352]
    bomb = gzip.compress(header + bytes(8 * 2**20), 9)
    limits = DecodeLimits(max_bytes=2**20)
    assert "goes on far behind its voxels" in decode(bomb, limits=limits).reason
    assert decode(bomb).status == "skipped"  # eight voxels, all alike


def test_a_damaged_gzip_stream_never_gives_other_voxels():
    series = nifti_bytes(np.stack([VOXELS, VOXELS[::-1]], axis=3))
    rng = np.random.default_rng(2)
    for data in (nifti_bytes(VOXELS), series):
        last = len(data) - 1
        for at in [*rng.integers(400, last, 40), *range(last - 7, last + 1)]:  # and the trailer
            flipped = bytearray(data)
            flipped[at] ^= 1 << rng.integers(8)
            for found, expected in zip(slices(bytes(flipped)), STACK, strict=True):
                if found.status == "ok":  # a bit that changes nothing, such as padding
                    assert gzip.decompress(flipped) == gzip.decompress(data)
                    np.testing.assert_array_equal(found.gray, expected)
                else:
                    assert found.status == "quarantined"


@pytest.mark.parametrize("cut", [1, 4, 8])
def test_a_gzip_stream_without_its_whole_trailer_is_truncated(cut):
    assert "truncated or damaged NIfTI" in reason(nifti_bytes(VOXELS)[:-cut])


def test_a_gzip_stream_may_have_several_members_and_padding():
    raw = nifti_bytes(VOXELS, zipped=False)
    members = gzip.compress(raw[:3000]) + gzip.compress(raw[3000:]) + bytes(512)
    np.testing.assert_array_equal(stacked(members), STACK)


@pytest.mark.real
@pytest.mark.parametrize("name", ["someones_anatomy.nii.gz", "anatomical.nii"])
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_the_real_volumes_are_readable_with_contrast(real_data, name, plane):
    found = slices((real_data / "nifti" / name).read_bytes(), plane=plane)
    assert {decoded.status for decoded in found} <= {"ok", "skipped"}
    assert found[len(found) // 2].gray.std() > 30
