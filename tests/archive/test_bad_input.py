"""Another's lease, servers and databases that do not answer, full disks: one line, nothing left."""

import socket
import sqlite3
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from typer.testing import CliRunner

from braintumor_ray.archive import register as register_module
from braintumor_ray.archive.register import register
from braintumor_ray.cli import app
from braintumor_ray.lease import lease_on
from braintumor_ray.predict.results import results_folder
from tests.archive.nights import current, make_nights
from tests.builders import write_archive

pytest.importorskip("pyiceberg")


@pytest.fixture
def nights(tmp_path):
    return make_nights(tmp_path / "results", nights=2)


def line_of(*arguments):
    """The one line of a command that fails."""
    found = CliRunner().invoke(app, [*map(str, arguments)])
    assert found.exit_code in (1, 2), found.output
    lines = [line for line in found.stderr.splitlines() if not line.startswith("cataloging: ")]
    assert [line[:7] for line in lines] == ["error: "]
    assert found.stdout == ""
    return lines[0]


def test_a_folder_under_anothers_lease_is_not_registered(nights, tmp_path):
    uri = f"sqlite:///{tmp_path}/c.db"
    with lease_on(str(nights)):
        assert "is being written by" in line_of("register", nights, "--catalog", uri)
    assert register(str(nights), uri).snapshots == 2


@pytest.mark.parametrize("name", ["a#b", "a?b", "a#", "a?", "#/b", "a%20b", "a;b", "a b"])
@pytest.mark.parametrize("place", ["results", "warehouse"])
def test_a_name_that_iceberg_would_cut_is_refused_before_anything_is_written(tmp_path, name, place):
    root = tmp_path / "i" / (name if place == "results" else "results")
    make_nights(root, nights=1, rows=4)
    before, uri = sorted(tmp_path.rglob("*")), f"sqlite:///{tmp_path}/c.db"
    arguments = ["register", root, "--catalog", uri]
    arguments += ["--warehouse", tmp_path / "i" / name] if place == "warehouse" else []
    if set("#?") & set(name):
        assert "'#' and '?' end the path" in line_of(*arguments)
        assert sorted(tmp_path.rglob("*")) == before
    else:
        assert CliRunner().invoke(app, [*map(str, arguments)]).exit_code == 0
        made = [path for path in (tmp_path / "i").iterdir() if path != root]
        assert made in ([], [tmp_path / "i" / name])


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "a\rb"])
def test_a_results_folder_whose_name_ray_would_shorten_is_refused(tmp_path, bundle_path, name):
    write_archive(tmp_path / "scans", 1)
    target = tmp_path / name
    line = line_of("score", tmp_path / "scans", "--bundle", bundle_path, "--output", target)
    assert f"{str(target)!r} has a line break or tab" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scans"]


@pytest.mark.parametrize("state", ["refuses", "is silent"])
def test_a_rest_catalog_that_does_not_answer_is_given_up(nights, state, monkeypatch):
    monkeypatch.setattr(register_module, "REQUEST_TIMEOUT_S", 0.3)
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        if state == "is silent":
            server.listen(1)
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        line = line_of("register", nights, "--catalog", uri)
    assert f"catalog '{uri}'" in line
    assert ("timed out" if state == "is silent" else "refused") in line
    assert "run 'register' again" in line


@pytest.mark.parametrize("warehouse", ["lake", "s3://bucket/lake", "name #1"])
def test_a_rest_catalog_is_asked_for_the_warehouse_as_it_is_named(nights, warehouse):
    asked = []

    class Catalog(BaseHTTPRequestHandler):
        def log_message(self, *_):
            return

        def do_GET(self):
            asked.append(parse_qs(urlsplit(self.path).query))
            self.send_error(404)

    with ThreadingHTTPServer(("127.0.0.1", 0), Catalog) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_address[1]}"
        assert "404" in line_of("register", nights, "--catalog", uri, "--warehouse", warehouse)
        server.shutdown()
    assert asked[0] == {"warehouse": [warehouse]}


def test_a_locked_database_is_named(nights, tmp_path):
    path = tmp_path / "c.db"
    register(str(nights), f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        line = line_of("register", nights, "--catalog", f"sqlite:///{path}?timeout=0.2")
    assert "database is locked" in line


@pytest.fixture
def full_disk(monkeypatch):
    """Every Parquet and Arrow file fails after its first bytes, and so does every CSV."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    def full(*arguments, **_):
        for path in arguments:
            if hasattr(path, "write_bytes"):
                path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    monkeypatch.setattr(pyarrow.csv, "write_csv", full)
    return lambda: monkeypatch.setattr(pa.ipc, "new_file", full)


@pytest.mark.parametrize("name", ["a.parquet", "a.csv"])
def test_an_answer_that_does_not_fit_leaves_the_old_file(nights, tmp_path, full_disk, name):
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / name
    target.write_text("of before")
    line = line_of("query", nights, "SELECT uri FROM scans", "--output", target)
    assert f"--output '{target}'" in line
    assert "No space left" in line
    assert "free space" in line
    assert [p.name for p in target.parent.iterdir()] == [name]
    assert target.read_text() == "of before"


@pytest.mark.parametrize("where", ["output", "TMPDIR"])
def test_a_catalog_that_does_not_fit_leaves_nothing(tmp_path, full_disk, where):
    write_archive(tmp_path / "scans", 3)
    if where == "TMPDIR":
        full_disk()
    target = tmp_path / "out" / "c.parquet"
    line = line_of("catalog", tmp_path / "scans", "--output", target)
    assert f"'{target}'" in line
    assert "No space left" in line
    assert "TMPDIR" in line
    assert not list(tmp_path.rglob("*.tmp")) + list(tmp_path.rglob("c.parquet"))


def test_no_space_anywhere_else_is_one_line_too(monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "/somewhere")

    monkeypatch.setattr("braintumor_ray.archive.query.query", full)
    line = line_of("query", "results", "SELECT 1")
    assert "'/somewhere'" in line
    assert "run the same command again" in line


def test_a_table_that_cannot_be_written_is_not_half_registered(nights, tmp_path, monkeypatch):
    from pyiceberg.io.pyarrow import PyArrowFileIO

    def full(*_):
        raise OSError(28, "No space left on device")

    before, uri = current(nights), f"sqlite:///{tmp_path}/c.db"
    with monkeypatch.context() as patch:
        patch.setattr(PyArrowFileIO, "new_output", full)
        assert "No space left" in line_of("register", nights, "--catalog", uri)
    assert register(str(nights), uri).snapshots == len(results_folder(nights).manifests())
    assert current(nights) == before
