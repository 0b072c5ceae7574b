"""Fixtures shared by all tests."""

import gc
import os
import re
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent


# Files whose tests share the session's Ray run one after the other, in these groups.
ON_RAY = ("training", "scoring")
RAY = pytest.StashKey[ExitStack]()  # the session's, while it runs


def pytest_configure(config):
    """Processes that run side by side share the cores fairly; no key is left with the user."""
    gc.disable()  # while tests are collected, next to nothing is garbage
    os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="braintumor-config-")
    # How often Ray Train looks at its workers, of whose reports it takes one at a time.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    if hasattr(config, "workerinput"):  # one of several processes of pytest-xdist
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # idle threads spin, at the others' cost
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # and where a number of them is set
        os.environ.setdefault("RAY_worker_niceness", "0")  # with Ray's own, 15, others go first


def pytest_collection_finish():
    gc.freeze()  # modules and tests stay until the end
    gc.enable()


@pytest.hookimpl(tryfirst=True)  # xdist's own hook, which reads the groups, has no fixed place
def pytest_collection_modifyitems(config, items):
    """Tests that start clusters and kill processes get a second try: a busy machine is no fault.

    The summary names every test that needed it.
    """
    for item in items:
        if item.get_closest_marker("ray") or item.get_closest_marker("chaos"):
            item.add_marker(pytest.mark.flaky(reruns=1))
    if hasattr(config, "workerinput"):
        _group(items)


def _group(items):
    """Put every test into a group that one process runs; the longest groups come first."""
    on_ray = {item.path for item in items if "cluster" in getattr(item, "fixturenames", ())}
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    rank = {}
    for item in items:
        group = _group_of(item, on_ray)
        item.add_marker(pytest.mark.xdist_group(group))
        rank[item] = (*(group != name for name in ON_RAY), item.path not in slow)
    items.sort(key=rank.__getitem__)


def _group_of(item, on_ray):
    """Tests of one file stay together, for its fixtures; those of the benchmarks have none."""
    folder = item.path.relative_to(PROJECT / "tests").parts[0]
    if item.path in on_ray:
        return ON_RAY[folder != "training"]
    return item.name if folder == "benchmarks" else str(item.path.relative_to(PROJECT))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    """The session's Ray ends with its group: its idle processes cost a sixth of a core."""
    done = yield
    if _is_on_ray(item) and not _is_on_ray(nextitem) and RAY in item.config.stash:
        item.config.stash[RAY].close()
    return done


def _is_on_ray(item):
    """Whether a test is in one of the groups that share a Ray; without groups, none is."""
    group = item and item.get_closest_marker("xdist_group")
    return bool(group) and group.args[0] in ON_RAY


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans, or a skip that says why."""
    folder = Path(os.environ.get("BRAINTUMOR_DATA", PROJECT.parent / "shared" / "data"))
    if not (folder / "mri4").is_dir():
        pytest.skip(f"real scans not found at {folder}; set BRAINTUMOR_DATA")
    return folder


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory) -> Path:
    """A bundle of a small random network."""
    from tests.builders import make_bundle

    path = tmp_path_factory.mktemp("bundle") / "bundle"
    make_bundle(path)
    return path


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    """The catalog of 20 phantom patients, with five unreadable files and two planted copies."""
    from braintumor_ray.catalog.build import load_catalog
    from braintumor_ray.catalog.identity import IdentityHash
    from braintumor_ray.catalog.options import CatalogOptions
    from braintumor_ray.phantom.dataset import write_phantoms

    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, patients=20, seed=3, slices=(2, 3))
    patient = re.compile(r"/(?P<patient>p\d{4})_s")
    identity = IdentityHash(clear=True)
    return load_catalog(
        folder / "scans", CatalogOptions(patient_pattern=patient, identity=identity)
    )


@pytest.fixture(scope="session")
def fingerprinted(phantoms):
    """The phantoms' catalog with the columns of an audit."""
    from braintumor_ray.audit.fingerprints import fingerprint_catalog

    return fingerprint_catalog(phantoms, workers=1)


@pytest.fixture(scope="session")
def s3_url_and_faults():
    """An S3 API on loopback: (url, its faults)."""
    from tests.s3 import s3_server

    with s3_server() as served:
        yield served


@pytest.fixture(scope="session")
def cluster(s3_url_and_faults, pytestconfig):
    """One small local Ray for all tests that need one; its workers know where the S3 API is."""
    from braintumor_ray.local_ray import ray_session
    from tests.s3 import environment_of

    with ExitStack() as stack:
        pytestconfig.stash[RAY] = stack
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment_of(s3_url_and_faults[0]).items():
                patch.setenv(name, value)
            stack.enter_context(ray_session())
        yield


@pytest.fixture
def s3(s3_url_and_faults, monkeypatch, request):
    """A bucket of the test's own: (bucket, faults); the environment points to its server."""
    import boto3

    from tests.s3 import environment_of

    url, faults = s3_url_and_faults
    for name, value in environment_of(url).items():
        monkeypatch.setenv(name, value)
    bucket = f"b{abs(hash(request.node.nodeid)):x}"[:40]
    boto3.client("s3").create_bucket(Bucket=bucket)
    faults.__init__()
    yield bucket, faults
    faults.__init__()
