"""A zip of scans is answered file by file, and a hostile one costs a problem."""

import io
import struct
import zipfile

import pytest

from braintumor_ray.serving import archives
from braintumor_ray.serving.archives import Unpack, is_zip
from tests.publishing.scans import ORIENTATIONS, scan_dataset
from tests.serving.fakes import encoded, make_client

BATCH = "/v1/predict/batch"
LIMITS = Unpack(max_files=8, max_bytes=100_000, max_total=300_000)


def zipped(files, **options):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return stream.getvalue()


def dicom(number):
    stream = io.BytesIO()
    scan_dataset(number, ORIENTATIONS["axial"]).save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def results(client, files):
    response = client.post(BATCH, content=zipped(files))
    assert response.status_code == 200, response.text
    return response.json()


def test_a_dicom_series_is_answered_slice_by_slice_without_what_systems_add(client):
    clutter = [("s/", b""), ("DICOMDIR", b"x"), ("__MACOSX/s/._0", b"x"), ("s/.DS_Store", b"x")]
    found = results(client, [*clutter, *((f"s/{n}.dcm", dicom(n)) for n in range(3))])
    assert [entry["name"] for entry in found["results"]] == ["s/0.dcm", "s/1.dcm", "s/2.dcm"]
    assert {entry["result"]["scan"]["format"] for entry in found["results"]} == {"dicom"}
    hashes = [entry["result"]["scan"]["pixel_sha256"] for entry in found["results"]]
    alone = [client.post("/v1/predict", content=dicom(n)).json()["scan"] for n in range(3)]
    assert hashes == [scan["pixel_sha256"] for scan in alone]
    assert found["skipped"] == 4


def test_broken_files_of_a_zip_get_their_own_errors(client):
    files = [("note.txt", b"no scan"), ("a.png", encoded()), ("cut.png", encoded()[:200]),
             ("inner.zip", zipped([("b.png", encoded())])), ("empty", b"")]  # fmt: skip
    entries = results(client, files)["results"]
    assert [e.get("error", {}).get("status") for e in entries] == [415, None, 400, 415, 400]
    assert "inside the zip is not opened" in entries[3]["error"]["detail"]


def test_a_form_may_hold_zips_between_its_files(client):
    packed = zipped([("x.png", encoded(seed=2)), ("y.png", encoded(seed=3))])
    broken = packed[:50]
    form = [("files", ("first.png", encoded())), ("files", ("some.zip", packed)),
            ("files", ("cut.zip", broken)), ("files", ("last.png", encoded(seed=4)))]  # fmt: skip
    entries = client.post(BATCH, files=form).json()["results"]
    names = ["first.png", "some.zip/x.png", "some.zip/y.png", "cut.zip", "last.png"]
    assert [entry["name"] for entry in entries] == names
    assert [entry["index"] for entry in entries] == list(range(5))
    assert ["error" in entry for entry in entries] == [False, False, False, True, False]


@pytest.mark.parametrize(
    "name",
    ["../a", "/etc/a", "C:\\a", "..\\a", "a/../../b", "\\\\host\\a", "a\nb", "n" * 2000],
)
def test_names_that_leave_their_folder_are_refused_and_the_others_answered(client, name):
    first, second = results(client, [(name, encoded()), ("good.png", encoded())])["results"]
    assert "rename the file" in first["error"]["detail"]
    assert "result" in second


@pytest.mark.parametrize(
    ("files", "status", "cause"),
    [
        ([(f"{n}.png", b"x") for n in range(5)], 413, "holds 5 files"),
        ([(f"{n}.bin", bytes(4000)) for n in range(4)], 413, "inflates to 16000 bytes"),
        ([("folder/", b"")], 400, "holds no file"),
        ([], 400, "holds no file"),
    ],
)
def test_a_zip_over_the_limits_is_refused_as_a_whole(decoders, files, status, cause):
    limits = {"max_batch_files": 4, "max_batch_bytes": 10_000, "max_bytes": 5000}
    with make_client(decoders, **limits) as client:
        response = client.post(BATCH, content=zipped(files))
    assert response.status_code == status
    assert cause in response.json()["detail"]


def test_the_limits_are_of_the_whole_request(decoders):
    packed = zipped([("a.png", encoded()), ("b.png", encoded())])
    form = [("files", ("a.zip", packed)), ("files", ("b.zip", packed))]
    with make_client(decoders, max_batch_files=3) as client:
        entries = client.post(BATCH, files=form).json()["results"]
    assert ["error" in entry for entry in entries] == [False, False, True]
    assert "1 are left" in entries[2]["error"]["detail"]


def test_a_bomb_is_refused_by_what_it_declares(client):
    bomb = zipped([(f"{n}", bytes(60 * 2**20)) for n in range(3)])  # 180 MiB in 180 KiB
    assert len(bomb) < 200_000
    response = client.post(BATCH, content=bomb)
    assert response.status_code == 413
    assert "188743680 bytes" in response.json()["detail"]


def test_a_bomb_that_lies_about_its_size_is_inflated_no_further_than_it_declares(monkeypatch):
    bomb = bytearray(zipped([("a", bytes(90_000_000))]))
    real = struct.pack("<I", 90_000_000)
    for _ in range(2):  # in the member's header and in the directory
        at = bomb.index(real)
        bomb[at : at + 4] = struct.pack("<I", 1000)
    inflated = []

    class Counted(zipfile.ZipExtFile):
        def _read1(self, n):
            inflated.append(n)
            return super()._read1(n)

    monkeypatch.setattr(zipfile, "ZipExtFile", Counted)
    (member,) = LIMITS(bytes(bomb)).members
    assert member.kind == "unreadable"
    assert inflated
    assert max(inflated) <= 1000


def test_a_large_member_alone_is_its_own_error_and_is_not_inflated(decoders):
    files = [("large", bytes(6000)), ("good.png", encoded(size=(48, 48)))]
    with make_client(decoders, max_bytes=5000) as client:
        first, second = results(client, files)["results"]
    assert first["error"]["status"] == 413
    assert "result" in second


def patched(content, at, value):
    """A zip whose first member has 16 bits changed, in both of its headers."""
    changed = bytearray(content)
    for start in (content.index(b"PK\3\4") + at, content.index(b"PK\1\2") + at + 2):
        struct.pack_into("<H", changed, start, value)
    return bytes(changed)


@pytest.mark.parametrize(
    ("at", "value", "cause"), [(6, 1, "encrypted"), (8, 14, "method not read")]
)
def test_members_that_cannot_be_read_say_why(at, value, cause):
    content = patched(zipped([("a.png", b"x" * 99)]), at, value)
    (member,) = LIMITS(content).members
    assert cause in member.detail
    assert member.data is None


def test_overlapping_members_count_once_each():
    content = zipped([("a.png", bytes(90_000))])
    start, end = content.index(b"PK\1\2"), content.index(b"PK\5\6")
    entry = content[start:end]
    count = 7  # each is the same 90 kB
    tail = bytearray(content[end:])
    struct.pack_into("<HHI", tail, 8, count, count, len(entry) * count)
    found = LIMITS(content[:start] + entry * count + bytes(tail))
    assert found.kind == "too-large"
    assert "630000 bytes" in found.detail


def test_a_damaged_zip_is_a_problem_wherever_it_is_cut_or_changed(client):
    good = zipped([(f"{n}.png", encoded(seed=n)) for n in range(3)])
    step = max(1, len(good) // 60)
    for at in range(4, len(good), step):
        flipped = good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :]
        for content in (good[:at], flipped):
            response = client.post(BATCH, content=content)
            assert response.status_code in (200, 400, 413), (at, response.text)
            assert "Traceback" not in response.text


def test_a_directory_of_200_000_entries_costs_the_decoder_not_the_service(client):
    content = zipped([("a", b"")])
    start, end = content.index(b"PK\1\2"), content.index(b"PK\5\6")
    count, tail = 200_000, bytearray(content[end:])
    struct.pack_into("<I", tail, 12, (end - start) * count)
    hostile = content[:start] + content[start:end] * count + bytes(tail)
    assert client.post(BATCH, content=hostile).status_code in (400, 413)
    assert client.post("/v1/predict", content=encoded()).status_code == 200


def test_inflating_counts_in_the_memory_of_bodies(decoders):
    content = zipped([("a", bytes(90_000))])
    with make_client(decoders, max_inflight_bytes=50_000) as client:
        response = client.post(BATCH, content=content)
        assert response.status_code == 503
        assert "memory" in response.json()["detail"]
        assert client.post("/v1/predict", content=encoded(size=(48, 48))).status_code == 200


def test_a_zip_sent_alone_to_predict_is_told_where_to_go(client):
    response = client.post("/v1/predict", content=zipped([("a.png", encoded())]))
    assert response.status_code == 415
    assert BATCH in response.json()["detail"]


def test_a_dicom_file_whose_preamble_begins_like_a_zip_is_dicom():
    assert not is_zip(b"PK\3\4" + dicom(0)[4:])
    assert is_zip(zipped([("a", b"x")]))
    assert len(bytes(10**6)) / len(zipped([("a", bytes(10**6))])) <= archives.MOST_RATIO
