"""Folders and locations, the same on a disk and on a store."""

import os
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

from braintumor_ray import storage
from braintumor_ray.predict.results import ResultsFolder
from braintumor_ray.storage import (
    Folder,
    absolute,
    without_password,
    write_atomically,
    write_table,
)


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    return Folder(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")


def test_what_is_written_is_listed_and_read_again(folder):
    folder.write_json({"größe": 1}, "inner", "b.json")
    folder.write_json([], "inner", "a.json")
    assert folder.names("inner") == ["a.json", "b.json"]
    assert folder.sizes("inner")["a.json"] == len(b"[]\n")
    assert folder.read_json("inner", "b.json") == {"größe": 1}


def test_a_deleted_file_is_gone(folder):
    folder.write_json({}, "a.json")
    folder.delete_file("a.json")
    assert folder.names() == []
    with pytest.raises(FileNotFoundError):
        folder.read_json("a.json")


def test_a_folder_that_does_not_exist_is_empty(folder):
    assert folder.names("nowhere") == []


def test_some_columns_of_a_table_are_read(folder):
    write_table(folder.at("t.parquet"), pa.table({"a": [1], "b": [2]}))
    assert folder.read_table("t.parquet", columns=["b"]).to_pydict() == {"b": [2]}


def test_only_paths_are_made_absolute():
    assert absolute("bundle") == os.path.join(os.getcwd(), "bundle")
    for uri in ("s3://bucket/bundle", "file:///bundle"):
        assert absolute(uri) == uri


def test_writers_with_one_pid_do_not_meet(tmp_path):
    """As in two containers on one share, where both are process 1."""
    target = tmp_path / "note.json"
    contents = [bytes([number]) * 4096 for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: write_atomically(target, content), contents))
    assert target.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [target]


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "note.json", b"x")
    assert not list(tmp_path.iterdir())


class TestALossOfPower:
    """Not to be had in a test: what counts is in which order files reach the disk."""

    @pytest.fixture
    def order(self, monkeypatch):
        reached, real = [], storage.write_atomically
        monkeypatch.setattr(storage, "sync_path", lambda path: reached.append(path.name))

        def write(location, data):
            reached.append(os.path.basename(location))
            real(location, data)

        monkeypatch.setattr(storage, "write_atomically", write)
        return reached

    def test_rows_and_catalogs_are_on_the_disk_before_the_manifest_that_lists_them(
        self, tmp_path, order
    ):
        manifest = {
            "generation": 3,
            "files": [{"path": "rows/000003/a.parquet"}, {"path": "rows/000003/b.parquet"}],
            "catalogs": ["catalogs/000003/c.parquet"],
        }
        folder = ResultsFolder(str(tmp_path))
        folder.settle(manifest)
        folder.write_manifest(manifest)
        assert order[:3] == ["a.parquet", "b.parquet", "c.parquet"]
        assert set(order[3:-1]) == {"000003"}, "their names in the folders, too"
        assert order[-1] == "000003.json"

    def test_a_file_that_is_not_there_ends_the_run(self, tmp_path):
        manifest = {"generation": 1, "files": [{"path": "rows/000001/a.parquet"}], "catalogs": []}
        with pytest.raises(FileNotFoundError):
            ResultsFolder(str(tmp_path)).settle(manifest)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:secret@host/db", "postgresql://***@host/db"),
        ("postgresql://me:se@cret@host/db", "postgresql://***@host/db"),
        ("postgresql://me:se/cret@host:5432/db", "postgresql://***@host:5432/db"),
        ('no host "cret@host" is known', 'no host "***@host" is known'),
        ("http://me:se@cret@host/api?x=1 (refused)", "http://***@host/api?x=1 (refused)"),
        ("https://host:8080/api", "https://host:8080/api"),
        ("sqlite:////srv/me@home/catalog.db", "sqlite:////srv/me@home/catalog.db"),
        ("file:///srv/me@home/runs", "file:///srv/me@home/runs"),
    ],
)
def test_a_password_is_not_shown_however_it_is_written(text, shown):
    assert without_password(text) == shown
