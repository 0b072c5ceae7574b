"""200 scans and more go to Orthanc and their results come back, whatever is killed in between."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pydicom
import pytest
import requests
from dicomweb_client.api import DICOMwebClient

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.catalog.identity import IdentityHash
from braintumor_ray.catalog.options import CatalogOptions
from braintumor_ray.decode.decode import decode
from braintumor_ray.errors import PublishError
from braintumor_ray.phantom.dataset import patient_slices
from braintumor_ray.publishing.options import PublishOptions
from braintumor_ray.publishing.publish import publish
from braintumor_ray.storage import read_bytes
from tests.evaluation.make_results import add_generation, make_results
from tests.publishing.orthanc import Orthanc, needs_orthanc
from tests.publishing.scans import ORIENTATIONS, scan_dataset, uid, write
from tests.publishing.test_publish import archive_table

EACH, SIDE = 4, 128
PROJECT = Path(__file__).resolve().parents[2]
REAL = Path(os.environ.get("BRAINTUMOR_DATA", PROJECT.parent / "shared" / "data")) / "dicom"


def phantom_scans(folder, patients, per_patient=5):
    """DICOM of phantom slices: a study and a series per patient, oblique ones among them."""
    for number in patients:
        slices = patient_slices(number, slices=(per_patient, per_patient))
        orientation = [*ORIENTATIONS.values()][number % len(ORIENTATIONS)]
        for at, each in enumerate(slices):
            small = cv2.resize(each.image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
            dataset = scan_dataset(at, orientation, PatientID=f"PLANTED{number}")
            dataset.PixelData = np.asarray(small, np.uint8).tobytes()
            dataset.Rows, dataset.Columns = small.shape
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid("s", number), uid("e", number)
            dataset.SOPInstanceUID = uid("i", number, at)
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            dataset.FrameOfReferenceUID = uid("f", number)
            write(folder / f"patient{number}", f"{at}.dcm", dataset)


def stow(orthanc, archive):
    """Send an archive; counts by what Orthanc answers."""
    client, answers = DICOMwebClient(orthanc.dicomweb), Counter()
    for path in sorted(archive.rglob("*.dcm")):
        try:
            client.store_instances([pydicom.dcmread(path, force=True)])
            answers["stored"] += 1
        except (requests.HTTPError, AttributeError) as error:
            answers[f"{path.name}: {error}"] += 1
    return answers


def table_of(archive):
    return load_catalog(archive, CatalogOptions(identity=IdentityHash(b"key")))


def unreadable(catalog):
    """Rows whose file has no picture, as the archive job finds them."""
    rows = enumerate(catalog.select(["uri", "frame"]).to_pylist())
    return {
        at for at, row in rows if decode(read_bytes(row["uri"]), frame=row["frame"]).gray is None
    }


def lines(results):
    files = results.glob("published/*/*.jsonl")
    return [line for path in files for line in path.read_text().split("\n") if line]


def start(results, archive, url):
    command = [sys.executable, "-m", "braintumor_ray.cli", "publish", str(results)]
    return subprocess.Popen(
        [*command, "--source", str(archive), "--to", url],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def kill_at(publisher, results, count):
    """SIGKILL when so many scans are in the ledger."""
    while len(lines(results)) < count:
        assert publisher.poll() is None, publisher.stderr.read()
        time.sleep(0.02)
    publisher.send_signal(signal.SIGKILL)
    assert publisher.wait() == -signal.SIGKILL
    publisher.stderr.close()
    return len(lines(results))


def night(results, archive, url):
    """What `publish` tells at its end: some scans are always refused."""
    with pytest.raises(PublishError) as told:
        publish(str(results), archive_table(archive), PublishOptions(to=url, wait=60))
    return str(told.value)


@needs_orthanc
@pytest.mark.chaos
@pytest.mark.timeout(3000)
def test_counts_are_exact_after_kills_and_restarts(tmp_path):
    archive, orthanc = tmp_path / "archive", Orthanc(tmp_path)
    phantom_scans(archive / "phantoms", range(40))
    place = scan_dataset(7, ORIENTATIONS["axial"])
    del place.ImagePositionPatient  # refused each night
    write(archive, "no place.dcm", place)
    if REAL.is_dir():
        shutil.copytree(REAL, archive / "real")
    catalog = table_of(archive)
    bad = unreadable(catalog)
    results = make_results(tmp_path / "results", catalog, unreadable=bad)
    orthanc.start()
    try:
        print("STOW:", dict(stow(orthanc, archive)))
        sources = orthanc.instances()
        first = start(results, archive, orthanc.dicomweb)
        after_one = kill_at(first, results, 60)
        orthanc.end()
        second = start(results, archive, orthanc.dicomweb)  # waits for it
        time.sleep(3)
        assert orthanc.start() >= sources + EACH * after_one
        after_two = kill_at(second, results, 120)
        told = night(results, archive, orthanc.dicomweb)
        print("last:", told)
        published = len(lines(results))
        assert len(set(lines(results))) == published
        assert orthanc.instances() == sources + EACH * published
        assert published >= 200
        assert published + int(told.split(" scans were not published")[0]) == (
            catalog.num_rows - len(bad)
        )
        assert f"{published - after_two} were" in told
        again = night(results, archive, orthanc.dicomweb)
        assert ", 0 were: " in again  # refused are asked again, the others not
        assert orthanc.instances() == sources + EACH * published
        phantom_scans(archive / "phantoms", range(40, 44))
        every = table_of(archive)
        added = tuple(f"phantoms/patient{number}/" for number in range(40, 44))
        is_new = [path.startswith(added) for path in every["path"].to_pylist()]
        new = every.filter(pa.array(is_new))
        assert new.num_rows == 20
        add_generation(results, 2, new)
        assert ", 20 were: " in night(results, archive, orthanc.dicomweb)
        assert orthanc.instances() == sources + EACH * (published + 20)
        text = "".join(lines(results))
        assert "PLANTED" not in text
        assert str(uid("i", 0, 0)) not in text
    finally:
        orthanc.end()
