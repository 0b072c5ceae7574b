"""What the catalog reads of a file: its head, and more only where the format needs it."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from braintumor_ray.catalog import build
from braintumor_ray.catalog.build import HEAD_BYTES, load_catalog
from braintumor_ray.catalog.identity import IdentityHash
from braintumor_ray.catalog.listing import list_files
from braintumor_ray.catalog.options import CatalogOptions
from braintumor_ray.decode.decode import probe
from braintumor_ray.decode.types import DecodeLimits, VolumeOptions
from tests.builders import disc_scan, write_archive
from tests.decode.volume_files import mr_dataset, saved

POISON = b"POISON"
MiB = 2**20


def deadly_probe(data, volumes):
    """As the worker of the catalog, but one content kills its process."""
    if POISON in data:
        os._exit(7)
    return probe(data, volumes=volumes)


@pytest.fixture
def read(monkeypatch):
    """Bytes read per file name."""
    counts, plain = {}, build.open_filesystem

    class Counting:
        def __init__(self, filesystem):
            self._filesystem = filesystem

        def open_input_file(self, path):
            stream = self._filesystem.open_input_file(path)
            return Stream(stream, os.path.basename(path))

    class Stream:
        def __init__(self, stream, name):
            self._stream, self._name = stream, name

        def read(self, size=-1):
            data = self._stream.read(size) if size >= 0 else self._stream.read()
            counts[self._name] = counts.get(self._name, 0) + len(data)
            return data

        def seek(self, position):
            return self._stream.seek(position)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self._stream.close()

    def counting(location):
        filesystem, path = plain(location)
        return Counting(filesystem), path

    monkeypatch.setattr(build, "open_filesystem", counting)
    return counts


def sparse(path, head, size):
    """A file that is large and takes no disk."""
    path.write_bytes(head)
    os.truncate(path, size)


def noise(count, size=200):
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 255, (size, size), np.uint8)) for _ in range(count)]


def test_a_file_of_no_known_format_is_judged_by_its_first_bytes(tmp_path, read):
    sparse(tmp_path / "raw_volume", b"hello", 600 * MiB)
    sparse(tmp_path / "archive", b"PK\x03\x04", 600 * MiB)
    assert load_catalog(tmp_path)["format"].to_pylist() == [None, None]
    assert max(read.values()) <= HEAD_BYTES


def test_a_file_over_the_limit_is_not_read_for_its_header(tmp_path, read):
    sparse(tmp_path / "huge.tif", b"II*\0" + (9 * MiB).to_bytes(4, "little"), 10 * MiB)
    sparse(tmp_path / "huge.png", b"\x89PNG\r\n\x1a\n" + b"\0\xff\xff\xfftEXt", 10 * MiB)
    limits = DecodeLimits(max_bytes=3 * MiB)
    with build.HeaderReader(VolumeOptions(), limits) as reader:
        found = [reader.probe_file(file) for file in list_files(str(tmp_path)).files]
    assert [probed.format for probed in found] == ["png", "tiff"]
    assert all("over the limit of 3145728" in probed.reason for probed in found)
    assert read["huge.tif"] <= HEAD_BYTES
    assert read["huge.png"] <= HEAD_BYTES + 4 * MiB


def test_every_page_of_a_large_tiff_is_a_scan(tmp_path, read):
    first, *others = noise(4)
    first.save(tmp_path / "stack.tif", save_all=True, append_images=others)
    table = load_catalog(tmp_path)
    assert table["frame"].to_pylist() == [0, 1, 2, 3]
    assert set(table["height"].to_pylist()) == {200}


def test_a_long_header_is_read_to_its_end_and_not_much_further(tmp_path, read):
    from pydicom.dataelem import DataElement

    dataset = mr_dataset(np.zeros((1600, 1700), np.uint16))
    dataset[0x00091001] = DataElement(0x00091001, "OB", bytes(200_000))
    (tmp_path / "long.dcm").write_bytes(saved(dataset))
    (row,) = load_catalog(tmp_path, CatalogOptions(identity=IdentityHash(b"key"))).to_pylist()
    assert (row["format"], row["height"]) == ("dicom", 1600)
    assert os.path.getsize(tmp_path / "long.dcm") > 5 * MiB
    assert read["long.dcm"] <= 2 * MiB


def test_a_jpeg_behind_a_long_preamble_has_its_size(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(disc_scan(1, (60, 50))).save(buffer, "JPEG")
    plain = buffer.getvalue()
    segment = b"\xff\xe2" + (65_000).to_bytes(2, "big") + bytes(64_998)
    (tmp_path / "profile.jpg").write_bytes(plain[:2] + 3 * segment + plain[2:])
    (row,) = load_catalog(tmp_path).to_pylist()
    assert (row["format"], row["height"], row["width"]) == ("jpeg", 60, 50)


def test_a_header_that_kills_its_reader_costs_one_file(tmp_path, monkeypatch):
    write_archive(tmp_path, 3)
    for name in ("a", "b"):
        first, second = noise(2, 400)
        first.save(tmp_path / f"{name}.tif", save_all=True, append_images=[second])
    with open(tmp_path / "a.tif", "ab") as stream:
        stream.write(POISON)
    monkeypatch.setattr(build, "PROBE_WORKER", "tests.catalog.test_headers:deadly_probe")
    rows = load_catalog(tmp_path).to_pylist()
    heights = [(row["path"], row["height"]) for row in rows if row["path"].endswith(".tif")]
    assert heights == [("a.tif", None), ("b.tif", 400), ("b.tif", 400)]
    assert sum(row["format"] == "png" for row in rows) == 3


def test_no_process_is_started_where_heads_are_enough(tmp_path, monkeypatch):
    write_archive(tmp_path, 3)
    monkeypatch.setattr(build, "PROBE_WORKER", "no.such:worker")
    assert load_catalog(tmp_path).num_rows == 3
