"""Objects are sent to a DICOMweb server once, whatever happens."""

import signal
import subprocess
import sys

import pytest

from braintumor_ray.errors import BrainTumorError, PublishError, UsageError
from braintumor_ray.publishing.options import PublishOptions
from braintumor_ray.publishing.publish import publish
from braintumor_ray.publishing.retry import RetryPolicy
from braintumor_ray.publishing.server import Server
from tests.publishing.certificates import certificates, server_context
from tests.publishing.dicomweb import Pauses, Store, serving
from tests.publishing.scans import ORIENTATIONS, scan_dataset, scored, write
from tests.publishing.test_publish import archive_table, published

SCANS, EACH = 5, 4


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans") / "archive"
    for number in range(SCANS):
        write(folder, f"{number}.dcm", scan_dataset(number, ORIENTATIONS["sagittal"]))
    return folder


@pytest.fixture
def results(tmp_path, archive):
    return scored(tmp_path / "results", archive, generations=2)


def sent(results, archive, url, **options):
    return publish(str(results), archive_table(archive), PublishOptions(to=url, **options))


def test_each_object_arrives_once_and_again_nothing_is_sent(results, archive, monkeypatch):
    monkeypatch.setenv("BRAINTUMOR_DICOMWEB_TOKEN", "secret-token")
    store = Store()
    with serving(store) as url:
        found = sent(results, archive, url, limit=2)
        assert (found["scans"], found["objects"]) == (2, 2 * EACH)
        assert sent(results, archive, url)["sent_before"] == 2
        again = sent(results, archive, url)
    assert (again["scans"], again["sent_before"]) == (0, SCANS)
    assert len(store.arrived) == len(set(store.arrived)) == SCANS * EACH
    assert store.seen == "Bearer secret-token"
    ledgers = sorted(results.glob("published/*/*.jsonl"))
    assert [path.name for path in ledgers] == ["000001.jsonl", "000002.jsonl"]
    text = "".join(path.read_text() for path in ledgers)
    for secret in ("PLANTED", "Planted", "secret-token", *store.arrived):
        assert secret not in text


@pytest.mark.chaos
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_killed_publish_goes_on_without_duplicates(results, archive, moment):
    store, process = Store(), None

    def kill():
        if process and len(store.arrived) >= 2 * EACH:
            process.send_signal(signal.SIGKILL)
            process.wait()

    with serving(store) as url:
        setattr(store, moment, kill)
        command = [sys.executable, "-m", "braintumor_ray.cli", "publish", str(results)]
        process = subprocess.Popen(
            [*command, "--source", str(archive), "--to", url, "--senders", "1"]
        )
        assert process.wait(timeout=120) == -signal.SIGKILL
        arrived = len(set(store.arrived))
        assert 2 * EACH <= arrived < SCANS * EACH
        process, store.conflict = None, True
        found = sent(results, archive, url)
    assert len(set(store.arrived)) == SCANS * EACH
    assert found["sent_before"] >= 1
    # Only the scan that was under way when it was killed can arrive twice, as the same objects.
    assert len(store.arrived) - len(set(store.arrived)) <= EACH
    lines = "\n".join(p.read_text() for p in results.glob("published/*/*")).split("\n")
    assert len([line for line in lines if line]) == SCANS


def test_what_the_server_has_already_is_no_error(results, archive, tmp_path):
    store = Store()
    with serving(store) as url:
        sent(results, archive, url)
        store.conflict = True
        other = scored(tmp_path / "same rows, no ledger", archive, generations=2)
        assert sent(other, archive, url)["scans"] == SCANS
    assert len(set(store.arrived)) == SCANS * EACH


def test_a_busy_server_is_waited_for(results, archive):
    store = Store()
    store.answers = [503, 429]
    pauses = []
    with serving(store) as url:
        server = Server(url, RetryPolicy(60, Pauses(pauses)))
        server.store([scan_dataset(0, ORIENTATIONS["axial"])])
    assert pauses == [1.0, 2.0]
    assert len(store.arrived) == 1


def test_a_server_that_stays_down_ends_it_with_nothing_lost(results, archive):
    store = Store()
    with serving(store) as url:
        sent(results, archive, url, limit=1)
        port = int(url.rsplit(":", 1)[1])
    with pytest.raises(PublishError, match=r"is down \(ConnectionError\)"):
        sent(results, archive, url, wait=0)
    with serving(store, port):
        assert sent(results, archive, url)["scans"] == SCANS - 1
    assert len(store.arrived) == SCANS * EACH


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (401, "refuses access.*BRAINTUMOR_DICOMWEB_TOKEN"),
        (404, "no DICOMweb service"),
        (301, "redirects to another address"),
        (308, "redirects to another address"),
        (400, "server: HTTP 400"),
    ],
)
def test_a_refusal_of_the_server_is_one_line_with_its_code(results, archive, code, words):
    store = Store()
    store.answers = [code] * SCANS
    with serving(store) as url, pytest.raises(PublishError, match=words) as error:
        sent(results, archive, url)
    assert str(code) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("unknown", [(404, b""), (204, b""), (200, b"[]")])
def test_what_the_server_does_not_have_is_refused_however_it_says_so(results, archive, unknown):
    store = Store()
    store.full, store.unknown = True, unknown
    with serving(store) as url, pytest.raises(PublishError, match=r"5 scans.*reason 0xa700"):
        sent(results, archive, url)


@pytest.mark.parametrize("parameter", ["", "; charset=utf-8", ";charset=UTF-8"])
def test_what_the_server_did_not_keep_is_refused_whatever_its_charset(results, archive, parameter):
    store = Store()
    store.full, store.media_type = True, f"application/dicom+json{parameter}"
    with serving(store) as url, pytest.raises(PublishError, match=r"5 scans.*reason 0xa700"):
        sent(results, archive, url)
    assert not [*results.glob("published/*/*.jsonl")]


def test_a_page_is_no_answer_of_a_dicomweb_service(results, archive):
    store = Store()
    store.media_type = "text/html; charset=utf-8"
    with serving(store) as url, pytest.raises(PublishError, match="answers with a page"):
        sent(results, archive, url)
    assert not [*results.glob("published/*/*.jsonl")]


def test_with_a_folder_objects_are_written_and_sent(results, archive, tmp_path):
    store = Store()
    with serving(store) as url:
        published(results, archive, tmp_path / "out", to=url, limit=1)
    assert len(store.arrived) == len([*(tmp_path / "out").rglob("*.dcm")]) == EACH


def test_tls_is_verified(results, archive, tmp_path, monkeypatch):
    files, store = certificates(tmp_path), Store()
    with serving(store, context=server_context(files)) as url:
        with pytest.raises(PublishError, match=r"not verified; set REQUESTS_CA_BUNDLE") as error:
            sent(results, archive, url, wait=0)
        assert "\n" not in str(error.value)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(files.authority))
        assert sent(results, archive, url)["scans"] == SCANS
    assert len(store.arrived) == SCANS * EACH


def test_a_client_certificate_is_shown_where_the_server_wants_one(
    results, archive, tmp_path, monkeypatch
):
    files, store = certificates(tmp_path), Store()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(files.authority))
    with serving(store, context=server_context(files, wants_certificate=True)) as url:
        with pytest.raises(PublishError, match="client certificate, set BRAINTUMOR_DICOMWEB_CERT"):
            sent(results, archive, url, wait=0)
        monkeypatch.setenv("BRAINTUMOR_DICOMWEB_CERT", str(files.certificate))
        monkeypatch.setenv("BRAINTUMOR_DICOMWEB_KEY", str(files.key))
        assert sent(results, archive, url)["scans"] == SCANS
    monkeypatch.setenv("BRAINTUMOR_DICOMWEB_KEY", str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"BRAINTUMOR_DICOMWEB_KEY names .* which is no file"):
        sent(results, archive, url)


@pytest.mark.parametrize("url", ["https://", "http://[::1", "http://host:99999", "http://a b/x"])
def test_an_address_that_is_none_is_one_line_without_uids(results, archive, url):
    with pytest.raises(BrainTumorError, match=r"is no address|cannot be asked") as error:
        sent(results, archive, url)
    assert "1.2." not in str(error.value)


@pytest.mark.parametrize("url", ["http://me:se@cret@127.0.0.1:9/dw", "ftp://me:se@cret@host"])
def test_a_password_in_the_address_is_not_shown(results, archive, url):
    with pytest.raises(BrainTumorError, match=r"://\*\*\*@") as error:
        sent(results, archive, url, wait=0)
    assert "cret" not in str(error.value)


def test_a_server_that_ends_within_its_answer_is_asked_again():
    store, pauses = Store(), []
    store.cut = 1
    with serving(store) as url:
        Server(url, RetryPolicy(60, Pauses(pauses))).store([scan_dataset(0, ORIENTATIONS["axial"])])
    assert pauses == [1.0]
    assert len(store.arrived) == 2


def test_scans_that_arrived_are_noted_when_another_ends_the_command(results, archive):
    store = Store()
    store.answers = [200, 200, 401]  # of scans that are sent at the same time
    with serving(store) as url:
        with pytest.raises(PublishError, match="refuses access"):
            sent(results, archive, url, senders=3)
        text = "\n".join(path.read_text() for path in results.glob("published/*/*"))
        noted = [line for line in text.split("\n") if line]
        assert len(noted) >= 2
        assert sent(results, archive, url)["sent_before"] == len(noted)
