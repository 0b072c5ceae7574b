"""Objects are sent by C-STORE once, to pynetdicom's server and to DCMTK's."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pydicom
import pytest
from pydicom.uid import ParametricMapStorage, generate_uid

from braintumor_ray.errors import PublishError, UsageError
from braintumor_ray.publishing.dimse import Peer, is_dimse
from braintumor_ray.publishing.options import PublishOptions
from braintumor_ray.publishing.publish import publish
from braintumor_ray.publishing.retry import RetryPolicy
from tests.publishing.certificates import certificates, server_context
from tests.publishing.dicomweb import Pauses
from tests.publishing.scans import ORIENTATIONS, scan_dataset, scored, write
from tests.publishing.test_publish import archive_table

pynetdicom = pytest.importorskip("pynetdicom")
SCANS, EACH = 4, 4


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans") / "archive"
    for number in range(SCANS):
        write(folder, f"{number}.dcm", scan_dataset(number, ORIENTATIONS["oblique"]))
    return folder


@pytest.fixture
def results(tmp_path, archive):
    return scored(tmp_path / "results", archive)


class Store:
    """What a server was sent, and what it answers."""

    def __init__(self):
        self.arrived, self.classes, self.callers = [], [], set()
        self.answers = []  # status codes of the next objects, before it works
        self.after = lambda event: None

    def take(self, event):
        self.callers.add(event.assoc.requestor.ae_title)
        if self.answers and (status := self.answers.pop(0)) is not None:
            return status
        self.arrived.append(event.request.AffectedSOPInstanceUID)
        self.classes.append(event.request.AffectedSOPClassUID)
        self.after(event)
        return 0x0000


@contextmanager
def serving(store, port=0, title="PACS", takes=pynetdicom.AllStoragePresentationContexts, **more):
    """The address of pynetdicom's own server, in a thread."""
    entity = pynetdicom.AE(title)
    entity.supported_contexts = takes
    entity.require_called_aet = True
    for name, value in more.pop("entity", {}).items():
        setattr(entity, name, value)
    handlers = [(pynetdicom.evt.EVT_C_STORE, store.take)]
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers, **more)
    try:
        yield f"{title}@127.0.0.1:{server.socket.getsockname()[1]}"
    finally:
        server.shutdown()


def sent(results, archive, address, **options):
    return publish(str(results), archive_table(archive), PublishOptions(to=address, **options))


def test_addresses():
    assert is_dimse("PACS@host:104")
    assert is_dimse("MY PACS@[::1]:11112")
    for other in ("https://me@host:443/x", "PACS@host", "@host:104", "SEVENTEEN_LETTERS@h:1"):
        assert not is_dimse(other)


def test_each_object_arrives_once_over_one_association(results, archive):
    store, opened = Store(), []
    with serving(store) as address:
        store.after = lambda event: opened.append(event.assoc)
        found = sent(results, archive, address, limit=2, aet="MY_TITLE")
        assert (found["scans"], found["objects"]) == (2, 2 * EACH)
        assert len(set(opened)) == 1
        assert sent(results, archive, address)["sent_before"] == 2
        assert sent(results, archive, address)["sent_before"] == SCANS
    assert len(store.arrived) == len(set(store.arrived)) == SCANS * EACH
    assert store.callers == {"MY_TITLE", "BRAINTUMOR"}
    assert store.classes.count(ParametricMapStorage) == 2 * SCANS
    ledger = "".join(path.read_text() for path in results.glob("published/*/*.jsonl"))
    assert not [uid for uid in (*store.arrived, "PLANTED", "Planted") if uid in ledger]


def test_what_arrives_is_what_was_made(results, archive, tmp_path):
    store, datasets = Store(), []
    with serving(store) as address:
        store.after = lambda event: datasets.append(event.dataset)
        sent(results, archive, address, output=str(tmp_path / "out"))
    for path in (tmp_path / "out").rglob("*.dcm"):
        assert pydicom.dcmread(path) in datasets


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007, 0x0111])
def test_warnings_and_duplicates_count_as_stored(results, archive, status):
    store = Store()
    store.answers = [status] * EACH
    with serving(store) as address:
        assert sent(results, archive, address)["scans"] == SCANS


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0xA900, "refused Parametric Map Storage (0xa900, Data Set Does Not Match SOP Class)"),
        (0xC123, "refused Parametric Map Storage (0xc123, Cannot Understand)"),
        (0x0122, "refused Parametric Map Storage (0x0122, Refused: SOP Class Not Supported)"),
    ],
)
def test_a_refusal_names_its_status_and_the_others_are_sent(results, archive, status, words):
    store = Store()
    store.answers = [status]
    with serving(store) as address:
        with pytest.raises(
            PublishError, match=f"^1 scans were not published, {SCANS - 1} were"
        ) as e:
            sent(results, archive, address)
        assert words in str(e.value)
        assert sent(results, archive, address)["scans"] == 1
    assert len(store.arrived) == SCANS * EACH


def test_no_access_ends_it(results, archive):
    store = Store()
    store.answers = [0x0124]
    with serving(store) as address, pytest.raises(PublishError, match=r"refuses access \(0x0124"):
        sent(results, archive, address)


def test_a_full_server_is_waited_for():
    store, pauses = Store(), []
    store.answers = [0xA700, 0xA701]
    with serving(store) as address:
        peer = Peer(address, RetryPolicy(60, Pauses(pauses)), "ME")
        peer.store([with_meta(0)])
        peer.close()
    assert pauses == [1.0, 2.0]
    assert len(store.arrived) == 1


def with_meta(number):
    dataset = scan_dataset(number, ORIENTATIONS["axial"])
    dataset.SOPInstanceUID = generate_uid()
    return dataset


def test_a_server_that_ends_the_association_is_sent_the_object_again():
    store, pauses = Store(), []
    with serving(store) as address:
        store.after = lambda event: event.assoc.abort() if len(store.arrived) == 1 else None
        peer = Peer(address, RetryPolicy(60, Pauses(pauses)), "ME")
        peer._entity.dimse_timeout = None  # on the association that ended it would wait for ever
        for number in range(3):
            peer.store([with_meta(number)])
        peer.close()
    assert len(set(store.arrived)) == 3


def test_an_idle_association_that_the_server_ended_is_made_anew():
    store = Store()
    with serving(store, entity={"network_timeout": 0.3}) as address:
        peer = Peer(address, RetryPolicy(60, Pauses([])), "ME")
        peer.store([with_meta(0)])
        time.sleep(1.5)
        peer.store([with_meta(1)])
        peer.close()
    assert len(store.arrived) == 2


def test_a_class_that_the_server_does_not_take_is_named(results, archive):
    takes = [c for c in pynetdicom.AllStoragePresentationContexts
             if c.abstract_syntax != ParametricMapStorage]  # fmt: skip
    words = "4 x server: does not take Parametric Map Storage"
    with serving(Store(), takes=takes) as address, pytest.raises(PublishError, match=words):
        sent(results, archive, address)


def test_a_server_that_takes_none_of_the_classes_is_named(results, archive):
    takes = pynetdicom.VerificationPresentationContexts
    words = r"does not take .*Parametric Map Storage"
    with serving(Store(), takes=takes) as address, pytest.raises(PublishError, match=words):
        sent(results, archive, address, wait=0)


def test_a_title_that_is_not_known_ends_it_with_the_reason(results, archive):
    with serving(Store()) as address:
        other = address.replace("PACS", "OTHER")
        with pytest.raises(PublishError, match=r"rejects the association.*[Cc]alled AE.*--aet"):
            sent(results, archive, other)
    with pytest.raises(UsageError, match="is no AE title"):
        sent(results, archive, address, aet="SEVENTEEN_LETTERS")


def test_a_server_that_stays_down_ends_it_with_nothing_lost(results, archive):
    store = Store()
    with serving(store) as address:
        sent(results, archive, address, limit=1)
        port = int(address.rsplit(":", 1)[1])
    with pytest.raises(PublishError, match=r"is down \(no association\)"):
        sent(results, archive, address, wait=0)
    with serving(store, port):
        assert sent(results, archive, address)["scans"] == SCANS - 1
    assert len(store.arrived) == SCANS * EACH


def test_tls_is_verified_and_a_client_certificate_is_shown(results, archive, tmp_path, monkeypatch):
    files, store = certificates(tmp_path), Store()
    with serving(store, ssl_context=server_context(files, wants_certificate=True)) as address:
        with pytest.raises(PublishError, match=r"not verified; set REQUESTS_CA_BUNDLE"):
            sent(results, archive, address, tls=True, wait=0)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(files.authority))
        with pytest.raises(PublishError, match=r"client certificate.*BRAINTUMOR_DICOMWEB_CERT"):
            sent(results, archive, address, tls=True, wait=0)
        monkeypatch.setenv("BRAINTUMOR_DICOMWEB_CERT", str(files.certificate))
        monkeypatch.setenv("BRAINTUMOR_DICOMWEB_KEY", str(files.key))
        assert sent(results, archive, address, tls=True)["scans"] == SCANS
    assert len(store.arrived) == SCANS * EACH


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def storescp(folder, port):
    """DCMTK's server, which writes a file per object, named by its UID."""
    folder.mkdir(exist_ok=True)
    command = ["storescp", "--output-directory", str(folder), "--aetitle", "DCMTK", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.wait()


def stored_uids(folder):
    return [str(pydicom.dcmread(path).SOPInstanceUID) for path in folder.iterdir()]


@pytest.mark.chaos
@pytest.mark.skipif(not shutil.which("storescp"), reason="DCMTK's storescp is not installed")
def test_dcmtk_has_each_object_once_after_kills_of_either_side(results, archive, tmp_path):
    folder, port = tmp_path / "stored", free_port()
    address = f"DCMTK@127.0.0.1:{port}"
    command = [sys.executable, "-m", "braintumor_ray.cli", "publish", str(results),
               "--source", str(archive), "--to", address]  # fmt: skip
    with storescp(folder, port):
        publisher = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        wait_for(lambda: len([*folder.iterdir()]) >= EACH + 1)
        publisher.send_signal(signal.SIGKILL)
        assert publisher.wait() == -signal.SIGKILL
    publisher = subprocess.Popen(command)  # the server is down: it is waited for
    time.sleep(1)
    with storescp(folder, port):
        assert publisher.wait(timeout=240) == 0
        again = sent(results, archive, address)
    assert again["sent_before"] == SCANS
    uids = stored_uids(folder)
    assert len(uids) == len(set(uids)) == SCANS * EACH


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
