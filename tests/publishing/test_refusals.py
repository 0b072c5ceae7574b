"""What `publish` refuses is one line with its cause, by the command itself."""

import pytest
from typer.testing import CliRunner

from braintumor_ray.cli import app
from tests.builders import write_archive
from tests.publishing.certificates import certificates, server_context
from tests.publishing.dicomweb import Store, serving
from tests.publishing.scans import ORIENTATIONS, scan_dataset, scored, write


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("BRAINTUMOR_DICOMWEB_TOKEN", raising=False)


@pytest.fixture
def archive(tmp_path):
    write(tmp_path / "archive", "a.dcm", scan_dataset(0, ORIENTATIONS["axial"]))
    return tmp_path / "archive"


@pytest.fixture
def results(tmp_path, archive):
    return scored(tmp_path / "results", archive)


def line_of(results, archive, url):
    """The one line that the command prints; its exit code is 1."""
    command = ["publish", str(results), "--source", str(archive), "--to", url, "--wait", "0"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1, done.output
    lines = [line for line in done.stderr.splitlines() if line and "publishing" not in line]
    assert len(lines) == 1, lines
    assert "PLANTED" not in done.output
    return lines[0]


def test_no_dicom_source(tmp_path):
    write_archive(tmp_path / "png", 1)
    pictures = scored(tmp_path / "results", tmp_path / "png")
    line = line_of(pictures, tmp_path / "png", "http://127.0.0.1:9")
    assert "no predicted DICOM scan of this choice; other formats have no patient" in line


def test_a_source_with_other_pixels(results, archive):
    write(archive, "a.dcm", scan_dataset(9, ORIENTATIONS["axial"]))
    assert (
        "1 scans were not published, 0 were: 1 x source: its pixels are not those that were "
        in (line_of(results, archive, "http://127.0.0.1:9"))
    )


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (401, "refuses access (HTTP 401); set BRAINTUMOR_DICOMWEB_TOKEN, or"),
        (403, "refuses access (HTTP 403); set BRAINTUMOR_DICOMWEB_TOKEN, or"),
        (404, "is no DICOMweb service (HTTP 404); write the address of its root"),
        (400, "1 scans were not published, 0 were: 1 x server: HTTP 400"),
        (500, "1 scans were not published, 0 were: 1 x server: HTTP 500"),
        (503, "is down (HTTP 503) and was waited for 0 s (--wait); publish again"),
    ],
)
def test_a_server_that_answers_with_a_code(results, archive, code, text):
    store = Store()
    store.answers = [code]
    with serving(store) as url:
        assert text in line_of(results, archive, url)
    assert not store.arrived


def test_tls_that_is_not_verified(tmp_path, results, archive):
    store = Store()
    with serving(store, context=server_context(certificates(tmp_path))) as url:
        line = line_of(results, archive, url)
    assert "is not verified; set REQUESTS_CA_BUNDLE to the certificate of its authority" in line
    assert not store.arrived
