"""Folders and locations, the same on a disk and on a store."""

import os

import pyarrow as pa
import pytest

from braintumor_ray.storage import Folder, absolute, write_table


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
