"""Cheng's MAT-files, written here in their layout, give scans, labels, patients and truth."""

import io
import sys

import numpy as np
import pytest

from braintumor_ray.decode.decode import decode, decode_frames, probe, sniff
from braintumor_ray.decode.matlab import tumor_mask
from braintumor_ray.decode.types import DecodeLimits, DecodeOptions, Unreadable
from braintumor_ray.localization.truth import TruthError, load_truth
from tests.decode.mutations import encode, slice_like

h5py = pytest.importorskip("h5py", reason="reads MATLAB 7.3 files; the extra 'matlab'")

GRAY = slice_like(np.random.default_rng(2), 96, 80)
IMAGE = GRAY.astype(np.int16) * 11
MASK = GRAY > 130
BLOCK = b"MATLAB 7.3 MAT-file, Platform: PCWIN64, Created on: Thu Apr 02 2015 HDF5 schema 1.00 ."


def mat(block=True, compression=None, **fields):
    """A file of the set; a field of None is left out."""
    content = {
        "image": IMAGE.T,
        "label": np.array([[2.0]]),
        "PID": np.array([[ord(letter)] for letter in "MR0402"], np.uint16),
        "tumorBorder": np.array([[1.0, 2, 3, 4]]).T,
        "tumorMask": MASK.T.astype(np.uint8),
        **fields,
    }
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", userblock_size=512 if block else 0) as file:
        for name, value in content.items():
            if value is not None:
                options = {"compression": compression} if np.size(value) > 100 else {}
                file.create_dataset(f"cjdata/{name}", data=value, **options)
    data = buffer.getvalue()
    return BLOCK.ljust(512, b" ") + data[512:] if block else data


def outcome(data, **options):
    decoded = decode(data, **options)
    return decoded.status, decoded.reason


@pytest.mark.parametrize("block", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_file_gives_scan_label_and_patient(block, compression):
    data = mat(block, compression)
    assert sniff(data) == "matlab"
    decoded, found = decode(data), probe(data)
    assert (decoded.status, decoded.format, decoded.mode) == ("ok", "matlab", "int16")
    assert decoded.gray.shape == GRAY.shape == (found.height, found.width)
    assert np.corrcoef(decoded.gray.ravel(), GRAY.ravel())[0, 1] > 0.99
    assert decoded.gray.flags.c_contiguous
    assert found.frames == 1
    assert found.tags == {"modality": "MR", "label": "glioma", "patient": "MR0402"}
    np.testing.assert_array_equal(tumor_mask(data), MASK)


@pytest.mark.parametrize(
    ("value", "label"),
    [(1.0, "meningioma"), (2.0, "glioma"), (3.0, "pituitary"), (4.0, None), (float("nan"), None)],
)
def test_numbers_are_labels_by_the_set_s_own_list(value, label):
    assert probe(mat(label=np.array([[value]]))).tags.get("label") == label


def test_fields_that_are_missing_or_odd_cost_only_themselves():
    assert "label" not in probe(mat(label=None)).tags
    assert "patient" not in probe(mat(PID=None)).tags
    assert "patient" not in probe(mat(PID=np.zeros((0,), np.uint16))).tags
    assert outcome(mat(tumorMask=None))[0] == "ok"
    with pytest.raises(Unreadable, match="without a mask"):
        tumor_mask(mat(tumorMask=None))


def test_a_file_of_the_set_that_holds_no_scan_is_skipped():
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", userblock_size=512) as file:
        file["cvind"] = np.ones((1, 3064))
    data = BLOCK.ljust(512, b" ") + buffer.getvalue()[512:]
    assert outcome(data) == ("skipped", "MAT-file without a scan (no cjdata/image)")
    assert probe(data).frames == 1


def test_what_cannot_be_read_says_why(monkeypatch):
    data = mat()
    assert outcome(data[:3000]) == (
        "quarantined",
        "truncated or damaged MAT-file: HDF5 cannot be read",
    )
    assert "holds no plane of numbers" in outcome(mat(image=np.ones((4, 4, 4))))[1]
    assert outcome(data, frame=1)[1] == "frame 1 is out of range: the file has 1"
    assert "over the limit of 50" in outcome(data, limits=DecodeLimits(max_pixels=50))[1]
    assert outcome(mat(image=np.full((64, 64), 9)))[0] == "skipped"
    monkeypatch.setitem(sys.modules, "h5py", None)
    reason = "MAT-file (MATLAB 7.3): h5py is not installed; pip install 'braintumor-ray[matlab]'"
    assert outcome(data) == ("quarantined", reason)
    assert probe(data).reason == reason


def test_no_part_of_a_file_raises():
    data = mat(compression="gzip")
    for cut in range(512, len(data), len(data) // 30):
        assert decode_frames(data[:cut], DecodeOptions())[0].status != "ok"
        assert probe(data[:cut]).reason


def test_a_damaged_file_never_raises():
    whole, random = mat(), np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole)
        for at in random.integers(512, len(data), 4):
            data[at] = random.integers(256)
        decoded = decode(bytes(data))
        assert (decoded.gray is None) == bool(decoded.reason)


def test_the_folder_is_its_own_truth(tmp_path):
    for number in (1, 2):
        (tmp_path / "brainTumorDataPublic_1-766").mkdir(exist_ok=True)
        (tmp_path / "brainTumorDataPublic_1-766" / f"{number}.mat").write_bytes(mat())
    truth = load_truth(tmp_path)
    path = "brainTumorDataPublic_1-766/2.mat"
    assert truth.match([path]) == {path: path.removesuffix(".mat")}
    np.testing.assert_array_equal(truth.mask(path, GRAY.shape, GRAY.shape), MASK)
    assert truth.mask(path, (24, 20), GRAY.shape).mean() == pytest.approx(MASK.mean(), abs=0.01)


def test_a_mask_that_is_missing_names_its_file(tmp_path):
    (tmp_path / "1.mat").write_bytes(mat(tumorMask=None))
    with pytest.raises(TruthError, match=r"1\.mat' cannot be read: MAT-file without a mask"):
        load_truth(tmp_path).mask("1.mat", (8, 8))


def test_masks_as_pictures_are_still_truth(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(MASK * np.uint8(255), "PNG"))
    np.testing.assert_array_equal(load_truth(tmp_path).mask("a.jpg", MASK.shape), MASK)
