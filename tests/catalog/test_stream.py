"""Catalogs made a part at a time: the rows of the catalog in memory, for less."""

import gzip
import json
import os
import shutil
import tracemalloc
from datetime import datetime, timezone
from urllib.parse import quote_plus

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from braintumor_ray.catalog import listing, stream
from braintumor_ray.catalog.build import HeaderReader, load_catalog
from braintumor_ray.catalog.identity import IdentityHash, compile_patient_pattern
from braintumor_ray.catalog.listing import list_files
from braintumor_ray.catalog.options import CatalogOptions, StreamOptions
from braintumor_ray.catalog.schema import read_catalog
from braintumor_ray.catalog.stream import MADE_WITH, stream_catalog
from braintumor_ray.decode.options import VolumeOptions
from braintumor_ray.errors import CatalogError, UsageError
from braintumor_ray.scoring.decode_stage import changed_files
from tests.builders import write_archive

OPTIONS = CatalogOptions(
    patient_pattern=compile_patient_pattern(r"scan0_00(?P<patient>\d)"),
    identity=IdentityHash(b"secret"),
)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    for name, value in {"RUN": 7, "READ": 2, "BATCH": 5, "ROW_GROUP": 6}.items():
        monkeypatch.setattr(stream, name, value)


@pytest.fixture
def archive(tmp_path):
    """Scans, and names whose order is not that of their folders; some that are left out."""
    folder = tmp_path / "archive"
    paths = write_archive(folder, 24)
    for name in ("a-b/x.png", "a/x.png", "a.png", "é/x.png", "z/bad.png", "a/notes.txt", ".h"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy2(paths[0], folder / name)
    (folder / "z" / "bad.png").write_bytes(b"bad")
    (folder / "z" / "dangling.png").symlink_to("nowhere")
    open(os.fsencode(folder / "z") + b"/\xff.png", "wb").close()
    return folder


@pytest.fixture
def opened(monkeypatch):
    """Paths of the files that are opened."""
    seen, probe = [], HeaderReader.probe_file

    def probe_file(self, file):
        seen.append(file.path)
        return probe(self, file)

    monkeypatch.setattr(HeaderReader, "probe_file", probe_file)
    return seen


def made(source, output, options=OPTIONS, **settings):
    """The catalog as it is read back, without the note that only streamed catalogs have."""
    stream_catalog(str(source), output, options, StreamOptions(**settings))
    table = read_catalog(output)
    metadata = {k: v for k, v in table.schema.metadata.items() if k != MADE_WITH}
    return table.replace_schema_metadata(metadata)


def same(one, other):
    return one.equals(other, check_metadata=True)


def test_rows_order_types_and_notes_are_those_of_the_catalog_in_memory(archive, tmp_path):
    assert same(made(archive, tmp_path / "c.parquet"), load_catalog(archive, OPTIONS))


@pytest.mark.parametrize("prefixes", [1, 3, 64])
def test_a_store_is_listed_by_prefixes_and_each_file_once(archive, monkeypatch, prefixes):
    monkeypatch.setattr(listing, "PREFIXES", prefixes)
    (archive / "a" / "deep" / "er").mkdir(parents=True)
    (archive / "a" / "deep" / "er" / "x.png").write_bytes(b"x")
    os.unlink(os.fsencode(archive / "z") + b"/\xff.png")
    (archive / "z" / "dangling.png").unlink()  # pyarrow does not list it
    store = pafs.LocalFileSystem()
    infos = listing._stored_infos(store, str(archive))
    found = [info.path for info in infos if info.type != pafs.FileType.Directory]
    assert sorted(found) == sorted(str(path) for path in archive.rglob("*") if not path.is_dir())


class Bucket:
    """A store as pyarrow shows it: a prefix with an empty name has the path of its parent."""

    keys = ("b/x/a//b.png", "b/x/a/c.png", "b/x/ok/1.png", "b/x/2.png")

    def get_file_info(self, selector):
        start = f"{selector.base_dir}/"
        below = [key for key in self.keys if key.startswith(start)]
        if selector.recursive:
            return [pafs.FileInfo(key, pafs.FileType.File) for key in below]
        heads = {key.removeprefix(start).partition("/")[:2] for key in below}
        kinds = {"/": pafs.FileType.Directory, "": pafs.FileType.File}
        return [pafs.FileInfo((start + name).rstrip("/"), kinds[end]) for name, end in heads]


def test_a_key_with_an_empty_part_is_listed_once():
    found = listing._stored_infos(Bucket(), "b/x")
    paths = [info.path for info in found if info.type == pafs.FileType.File]
    assert sorted(paths) == sorted(Bucket.keys)


def test_a_volume_has_its_frames(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    import numpy as np

    for name in ("b", "a"):
        (tmp_path / "in").mkdir(exist_ok=True)
        volume = nibabel.Nifti1Image(np.ones((8, 9, 11), np.int16), np.eye(4))
        nibabel.save(volume, tmp_path / "in" / f"{name}.nii.gz")
    first = made(tmp_path / "in", tmp_path / "c.parquet")
    assert first.num_rows == 22
    assert same(first, load_catalog(tmp_path / "in", OPTIONS))
    again = made(tmp_path / "in", tmp_path / "d.parquet", since=str(tmp_path / "c.parquet"))
    assert same(again, first)


def test_what_it_tells_is_what_the_catalog_holds(archive, tmp_path):
    found = stream_catalog(str(archive), tmp_path / "c.parquet", OPTIONS)
    table = load_catalog(archive, OPTIONS)
    assert found.scans == found.opened == table.num_rows
    assert sum(found.labels.values()) == table.num_rows
    assert found.labels["no_tumor"] == 6
    assert found.left_out.left_out == list_files(str(archive)).left_out


def test_only_new_and_changed_files_are_opened(archive, tmp_path, opened):
    last = tmp_path / "last.parquet"
    stream_catalog(str(archive), last, OPTIONS)
    unreadable = {path for path in opened if path.startswith("z/")}
    expected = load_catalog(archive, OPTIONS)
    opened.clear()
    assert same(made(archive, tmp_path / "c.parquet", since=str(last)), expected)
    assert {*opened} == unreadable
    (archive / "a.png").unlink()
    shutil.copy(archive / "a" / "x.png", archive / "a" / "new.png")
    os.utime(archive / "a" / "x.png", (1, 1))
    opened.clear()
    found = made(archive, last, since=str(last))  # the same file
    assert {*opened} == unreadable | {"a/new.png", "a/x.png"}
    assert same(found, load_catalog(archive, OPTIONS))


def test_labels_of_known_files_follow_the_folders_of_today(tmp_path, opened):
    write_archive(tmp_path / "in" / "p1", 4, classes=("one",))
    last = tmp_path / "last.parquet"
    stream_catalog(str(tmp_path / "in"), last, OPTIONS)
    write_archive(tmp_path / "in" / "p2", 4, seed=1, classes=("one", "two"))
    opened.clear()
    found = made(tmp_path / "in", tmp_path / "c.parquet", since=str(last))
    assert len(opened) == 4
    assert same(found, load_catalog(tmp_path / "in", OPTIONS))


@pytest.mark.parametrize("name", ["list.csv", "list.csv.gz", "list.parquet"])
def test_a_listing_takes_the_place_of_looking(archive, tmp_path, monkeypatch, name):
    expected = load_catalog(archive, OPTIONS)
    files = list_files(str(archive)).files
    times = [file.mtime for file in files] + [None] * 3
    listed = pa.table(
        {
            "Path": [file.path for file in files] + ["a/notes.txt", ".h", "folder/"],
            "Size": [file.size for file in files] + [1, 1, 0],
            "MTime": pa.array(times, pa.timestamp("us", "UTC")),
        }
    )
    target = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(listed, target)
    else:
        pa.csv.write_csv(listed, tmp_path / "plain.csv")
        data = (tmp_path / "plain.csv").read_bytes()
        target.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    monkeypatch.setattr(stream, "files_below", None)
    assert same(made(archive, tmp_path / "c.parquet", listing=str(target)), expected)


def test_a_listing_by_find_begins_with_a_dot(archive, tmp_path):
    files = list_files(str(archive)).files
    rows = (f"./{file.path},1,1700000000" for file in files)
    (tmp_path / "list.csv").write_text("\n".join(["path,size,mtime", *rows]))
    found = made(archive, tmp_path / "c.parquet", listing=str(tmp_path / "list.csv"))
    assert found["uri"].equals(load_catalog(archive, OPTIONS)["uri"])


def iso(time_ns, decimals):
    whole = datetime.fromtimestamp(time_ns // 10**9, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{time_ns % 10**9:09d}"[: len(whole) + bool(decimals) + decimals]


TIME_FORMATS = {
    "find -printf %T@": lambda ns: f"{ns // 10**9}.{ns % 10**9:09d}0",
    "seconds": lambda ns: str(ns // 10**9),
    "rounded seconds": lambda ns: f"{ns / 1e9:.0f}",
    "ISO, nanoseconds": lambda ns: iso(ns, 9) + "Z",
    "ISO, microseconds": lambda ns: iso(ns, 6) + "+00:00",
    "ISO, milliseconds": lambda ns: iso(ns, 3),
    "ISO, seconds": lambda ns: iso(ns, 0) + "Z",
}


def changed_at_random(folder):
    """Twelve scans; each file, and the nanosecond at which it was changed."""
    write_archive(folder, 12)
    random = np.random.default_rng(0)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        time_ns = int(random.integers(15 * 10**17, 17 * 10**17))
        os.utime(file, ns=(time_ns, time_ns))
        yield file, time_ns


def test_nanoseconds_of_a_parquet_listing_are_those_of_the_files(tmp_path):
    rows = []
    for file, time_ns in changed_at_random(tmp_path / "in"):
        path, size = str(file.relative_to(tmp_path / "in")), file.stat().st_size
        rows.append({"path": path, "size": size, "mtime": time_ns})
    listed = pa.Table.from_pylist(rows)
    times = listed["mtime"].cast(pa.timestamp("ns", "UTC"))
    target = tmp_path / "list.parquet"
    pq.write_table(listed.set_column(2, "mtime", times), target)
    found = made(tmp_path / "in", tmp_path / "c.parquet", listing=str(target))
    assert found.num_rows == 12
    assert same(found, load_catalog(tmp_path / "in", OPTIONS))
    assert not changed_files(found).any()


@pytest.mark.parametrize("name", TIME_FORMATS)
def test_times_of_a_listing_are_as_exact_as_its_text(tmp_path, name):
    files, lines = [], ["path,size,mtime"]
    for file, time_ns in changed_at_random(tmp_path / "in"):
        files.append(file)
        path, size = file.relative_to(tmp_path / "in"), file.stat().st_size
        lines.append(f"{path},{size},{TIME_FORMATS[name](time_ns)}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    found = made(tmp_path / "in", tmp_path / "c.parquet", listing=str(tmp_path / "list.csv"))
    assert found.num_rows == len(files) == 12
    assert not changed_files(found).any()
    if name in ("find -printf %T@", "ISO, nanoseconds"):
        assert same(found, load_catalog(tmp_path / "in", OPTIONS)), "the ids are the same too"
    for file in files:
        later = file.stat().st_mtime_ns + 1_600_000_000
        os.utime(file, ns=(later, later))
    assert changed_files(found).all()


def test_a_date_without_hyphens_is_a_date_and_no_second_of_1970(archive, tmp_path):
    (tmp_path / "list.csv").write_text("path,size,mtime\na.png,1,20261101\na-b/x.png,1,1000000\n")
    found = made(archive, tmp_path / "c.parquet", listing=str(tmp_path / "list.csv"))
    times = dict(zip(found["path"].to_pylist(), found["mtime"].to_pylist(), strict=True))
    assert times["a.png"] == datetime(2026, 11, 1, tzinfo=timezone.utc)
    assert times["a-b/x.png"] == datetime.fromtimestamp(10**6, timezone.utc)


@pytest.mark.parametrize("kind", ["CSV", "Parquet"])
def test_an_s3_inventory_takes_the_place_of_looking(archive, tmp_path, kind):
    files = [file for file in list_files(str(archive)).files if file.size]
    folder = tmp_path / "inventory"
    (folder / "data").mkdir(parents=True)
    rows = [("bucket", f.path, f.size, f.mtime.isoformat(), "true", "false") for f in files]
    rows += [("bucket", "a/x.png", 5, "2020-01-01T00:00:00.000Z", "false", "false")]
    rows += [("bucket", "gone.png", None, "2020-01-01T00:00:00.000Z", "true", "true")]
    for number, part in enumerate((rows[::2], rows[1::2])):
        path = folder / "data" / f"{number}.{'csv.gz' if kind == 'CSV' else 'parquet'}"
        if kind == "CSV":
            quoted = [(row[0], quote_plus(row[1]), *row[2:]) for row in part]
            lines = (",".join("" if v is None else f'"{v}"' for v in row) for row in quoted)
            path.write_bytes(gzip.compress("\n".join(lines).encode()))
        else:
            names = ["bucket", "key", "size", "last_modified_date", "is_latest", "is_delete_marker"]
            pq.write_table(pa.table(dict(zip(names, zip(*part, strict=True), strict=True))), path)
    schema = "Bucket, Key, Size, LastModifiedDate, IsLatest, IsDeleteMarker"
    keys = [{"key": f"elsewhere/{p.name}"} for p in sorted((folder / "data").iterdir())]
    manifest = folder / "2026-11-01T00-00Z" / "manifest.json"
    manifest.parent.mkdir()
    about = {"destinationBucket": "arn:aws:s3:::b", "fileFormat": kind, "fileSchema": schema}
    manifest.write_text(json.dumps(about | {"files": keys}))
    found = made(archive, tmp_path / "c.parquet", listing=str(manifest))
    expected = load_catalog(archive, OPTIONS)
    kept = expected.filter(pa.compute.greater(expected["size"], 0))
    assert found.replace_schema_metadata(None).equals(kept.replace_schema_metadata(None))


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("path,mtime\na,1\n", "no column size"),
        ("path,size,mtime\na,big,1\n", "size 'big' is not a number"),
        ("path,size,mtime\na,1,yesterday\n", "time 'yesterday'"),
        ("path,size,mtime\na,1,1793500000000\n", "time '1793500000000' is neither"),  # milliseconds
        ("path,size,mtime\na,1,20261101123000\n", "time '20261101123000' is neither"),
        ("path,size,mtime\na,1,20261399\n", "time '20261399' is neither"),
        ("path,size,mtime\n../a,1,1\n", "leaves the source"),
        ("path,size,mtime\na,1,1\na,1,1\n", "the path is listed twice"),
        ("path,size,mtime\n", "no files that could be scans"),
    ],
)
def test_a_bad_listing_is_one_line_and_leaves_nothing(tmp_path, text, cause):
    (tmp_path / "list.csv").write_text(text)
    (tmp_path / "in").mkdir()
    with pytest.raises(CatalogError, match=cause):
        made(tmp_path / "in", tmp_path / "out" / "c.parquet", listing=str(tmp_path / "list.csv"))
    assert not [*(tmp_path / "out").iterdir()] if (tmp_path / "out").exists() else True


def test_an_earlier_catalog_that_does_not_fit_is_refused(archive, tmp_path):
    def refused(since, cause, options=OPTIONS):
        with pytest.raises(CatalogError, match=cause):
            made(archive, tmp_path / "c.parquet", options, since=str(since))
        assert not (tmp_path / "c.parquet").exists()

    last = tmp_path / "last.parquet"
    stream_catalog(str(archive), last, OPTIONS)
    refused(tmp_path / "none.parquet", "cannot be read")
    refused(last, "hashed with another key", CatalogOptions(
        patient_pattern=OPTIONS.patient_pattern, identity=IdentityHash(b"other")))  # fmt: skip
    refused(last, "made with other options", CatalogOptions(identity=IdentityHash(b"secret")))
    table = pq.read_table(last)
    pq.write_table(table.take(list(range(table.num_rows))[::-1]), tmp_path / "turned.parquet")
    refused(tmp_path / "turned.parquet", "not in the order")


def test_other_volumes_are_not_streamed_and_a_table_is_the_listing_itself(archive, tmp_path):
    (tmp_path / "t.csv").write_text("path\nx.png\n")
    for source, options, chosen in (
        (archive, CatalogOptions(volumes=VolumeOptions(plane="coronal")), StreamOptions()),
        (tmp_path / "t.csv", CatalogOptions(), StreamOptions(since="c.parquet")),
        (tmp_path / "t.csv", CatalogOptions(), StreamOptions(listing="list.csv")),
    ):
        with pytest.raises(UsageError, match="--listing and --since"):
            stream_catalog(str(source), tmp_path / "c.parquet", options, chosen)


TABLE = """Path;Diagnosis;frame;patient;age
{root}z/bad.png;no tumor;;p1;40
{root}a/x.png;glioma;;;
{root}é/x.png;;0;p2;n/a
{root}a-b/x.png;"glioma";1;p2;"4""1"
{root}gone.png;glioma;;p3;7
{root}a-b/x.png;glioma;0;p2;5
"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("root", ["", "/of/another/machine/archive/"])
def test_a_table_has_the_rows_of_its_catalog_in_memory(archive, tmp_path, root, encoding):
    table = archive / "t.csv"
    table.write_bytes(TABLE.format(root=root).replace("\n", "\r\n").encode(encoding))
    options = CatalogOptions(label_column="diagnosis", identity=IdentityHash(b"secret"))
    found = made(table, tmp_path / "c.parquet", options).replace_schema_metadata(None)
    assert found.equals(load_catalog(table, options).replace_schema_metadata(None))
    rows = {(r["path"].removeprefix(root), r["frame"]): r for r in found.to_pylist()}
    assert {key: (row["label"], row["age"]) for key, row in rows.items()} == {
        ("a-b/x.png", 0): ("glioma", "5"),
        ("a-b/x.png", 1): ("glioma", '4"1'),
        ("a/x.png", 0): ("glioma", None),
        ("gone.png", 0): ("glioma", "7"),
        ("z/bad.png", 0): ("no tumor", "40"),
        ("é/x.png", 0): (None, None),
    }
    assert [key for key, row in rows.items() if row["size"] is None] == [("gone.png", 0)]


def test_a_table_that_is_damaged_further_down_leaves_nothing(archive, tmp_path):
    table = archive / "t.csv"
    table.write_text("path,label\n" + "a/x.png,glioma\n" * 60 + "a.png,glioma,more\n")
    with pytest.raises(CatalogError, match="has 3 cells, the header 2"):
        stream_catalog(str(table), tmp_path / "c.parquet", CatalogOptions())
    assert not (tmp_path / "c.parquet").exists()


def test_memory_does_not_grow_with_the_rows_of_a_table(tmp_path, monkeypatch):
    for name, value in {"RUN": 2000, "BATCH": 50, "ROW_GROUP": 100}.items():
        monkeypatch.setattr(stream, name, value)
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / f"{0:09d}.png").touch()  # so the paths do not begin elsewhere

    def peak(count):
        target = tmp_path / "t.csv"
        rows = (f"{n % 7}/{n:09d}.png,glioma,{n // 10},{'remark' * 5}" for n in range(count))
        target.write_text("\n".join(["path,label,patient,remark", *rows]))
        return traced(str(target), tmp_path / "c.parquet")

    peak(10)
    few, many = peak(2000), peak(10_000)
    assert many < 1.2 * few + 100 * 10_000  # ids, sorted, in small parts; a row takes 2,700


def traced(source, output, **settings):
    """Peak of Python's memory while a catalog is made."""
    tracemalloc.start()
    options = CatalogOptions(probe_headers=False, identity=IdentityHash(b"secret"))
    stream_catalog(source, output, options, StreamOptions(**settings))
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


def test_memory_does_not_grow_with_the_files(tmp_path, monkeypatch):
    for name, value in {"RUN": 500, "BATCH": 50, "ROW_GROUP": 100}.items():
        monkeypatch.setattr(stream, name, value)
    (tmp_path / "list").mkdir()

    def peak(count):
        target = tmp_path / "list" / f"{count}.csv"
        rows = (f"{n % 7}/{n:09d}.png,1000,{n}" for n in range(count))
        target.write_text("\n".join(["path,size,mtime", *rows]))
        return traced(str(tmp_path), tmp_path / "c.parquet", listing=str(target))

    peak(10)  # what is imported and cached
    few, many = peak(1000), peak(8000)
    assert many < 1.2 * few + 20 * 8000  # 8 bytes of id; a row in memory takes 1,000
