"""200 scans and more go to Orthanc; nights score them from there and send the results back.

All by the commands of the product, whatever is killed in between. BRAINTUMOR_BUNDLE names a trained
bundle; else a small random network scores.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
import requests
from dicomweb_client.api import DICOMwebClient

from braintumor_ray.dicomweb.query import OURS, Lister, parse_query
from braintumor_ray.dicomweb.session import DicomwebService
from braintumor_ray.phantom.dataset import patient_slices
from braintumor_ray.predict.results import read_results
from tests.publishing.orthanc import Orthanc, needs_orthanc
from tests.publishing.scans import ORIENTATIONS, scan_dataset, uid, write

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


def stow(orthanc, files):
    """Send files; counts by what Orthanc answers, and how many objects it must have of them."""
    client, answers, uids = DICOMwebClient(orthanc.dicomweb), Counter(), set()
    for path in sorted(files):
        try:
            dataset = pydicom.dcmread(path, force=True)
            client.store_instances([dataset])
            answers["stored"] += 1
            uids.add(dataset.SOPInstanceUID)  # some of the real files are one object, coded anew
        except (requests.HTTPError, AttributeError) as error:
            answers[f"{path.name}: {error}"] += 1
    print("STOW:", dict(answers), len(uids), "objects")
    return len(uids)


class Hospital:
    """A PACS, a results folder, and the commands of a night between them."""

    def __init__(self, folder, bundle):
        self.orthanc, self.results = Orthanc(folder), folder / "results"
        self.source = f"dicomweb+{self.orthanc.dicomweb}?Modality=MR"
        self.told = ""  # all that was printed
        self._bundle = bundle
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", "BRAINTUMOR_HASH_KEY": "planted"}
        self._environment.pop("RAY_ADDRESS", None)

    def nightly(self):
        """What is scored tonight; a gate may tell that phantoms are no training scans (3)."""
        command = ["nightly", self.source, "--bundle", str(self._bundle)]
        command += ["--output", str(self.results), "--json"]
        done = subprocess.run(
            self._command(command), env=self._environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        self.told += done.stdout + done.stderr
        assert done.returncode in (0, 3), done.stderr
        return json.loads(done.stdout)

    def start(self):
        command = ["publish", str(self.results), "--source", self.source]
        return subprocess.Popen(
            self._command([*command, "--to", self.orthanc.dicomweb]),
            env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def publish(self):
        """Scans that are refused, and that are published; some are always refused: exit code 1."""
        publisher = self.start()
        told = "".join(publisher.communicate())
        self.told += told
        assert publisher.returncode == 1, told
        found = re.search(r"(\d+) scans were not published, (\d+) were: (.*)", told)
        print("publish:", found[0])
        return int(found[1]), int(found[2])

    def ledger(self):
        files = self.results.glob("published/*/*.jsonl")
        return [line for path in files for line in path.read_text().split("\n") if line]

    def predicted(self):
        return read_results(self.results)["status"].to_pylist().count("ok")

    def ours(self):
        """How many objects of ours a listing of all modalities leaves out, and leaves."""
        every = parse_query(f"dicomweb+{self.orthanc.dicomweb}?Modality=*")
        lister = Lister(DicomwebService(self.orthanc.dicomweb, 0), every)
        listed = sum(map(len, lister.studies()))
        print("listed:", listed, dict(lister.left_out))
        return lister.left_out[OURS]

    def kept(self):
        """All that is kept and was told, but pixels and maps, as text."""
        tables = [pq.read_table(path) for path in self.results.rglob("*.parquet")]
        texts = [path.read_text() for path in self.results.rglob("*.json*")]
        names = {"gradcam", "gradcam_pp"}
        rows = (t.drop_columns([n for n in t.column_names if n in names]) for t in tables)
        return self.told + "".join(texts) + "".join(str(row.to_pylist()) for row in rows)

    def kill_at(self, publisher, count):
        """SIGKILL when so many scans are in the ledger."""
        while len(self.ledger()) < count:
            assert publisher.poll() is None, publisher.stderr.read()
            time.sleep(0.02)
        publisher.send_signal(signal.SIGKILL)
        assert publisher.wait() == -signal.SIGKILL
        publisher.stdout.close()
        publisher.stderr.close()
        print("killed at", len(self.ledger()), "of", self.predicted())
        return len(self.ledger())

    @staticmethod
    def _command(arguments):
        return [sys.executable, "-m", "braintumor_ray.cli", *arguments]


def archive_of(folder):
    """Phantoms, one scan that has no place in the patient, and the real ones."""
    phantom_scans(folder / "phantoms", range(40))
    place = scan_dataset(7, ORIENTATIONS["axial"])
    del place.ImagePositionPatient  # refused each night
    write(folder, "no place.dcm", place)
    return [*folder.rglob("*.dcm"), *REAL.rglob("*.dcm")]


@needs_orthanc
@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(3000)
def test_nights_from_a_pacs_to_a_pacs_are_exact_after_kills_and_restarts(tmp_path, bundle_path):
    hospital = Hospital(tmp_path, os.environ.get("BRAINTUMOR_BUNDLE", bundle_path))
    hospital.orthanc.start()
    try:
        files = archive_of(tmp_path / "archive")
        sources = stow(hospital.orthanc, files)
        assert hospital.orthanc.instances() == sources >= 201
        first_night(hospital, sources)
        quiet_night(hospital)
        phantom_scans(tmp_path / "more", range(40, 44))
        assert stow(hospital.orthanc, [*(tmp_path / "more").rglob("*.dcm")]) == 20
        night_of_twenty(hospital)
        kept = hospital.kept()
        assert "PLANTED" not in kept
        assert not [n for n in range(44) if uid("s", n) in kept or uid("i", n, 0) in kept]
    finally:
        hospital.orthanc.end()


def first_night(hospital, sources):
    """Killed at 30% and at 60%, Orthanc started again in between."""
    tonight = hospital.nightly()
    print("nightly:", tonight["scans"], tonight["status"], tonight["left_out"])
    predicted, orthanc = hospital.predicted(), hospital.orthanc
    assert predicted >= 201
    after_one = hospital.kill_at(hospital.start(), int(0.3 * predicted))
    orthanc.end()
    second = hospital.start()  # waits for it
    time.sleep(3)
    assert orthanc.start() >= sources + EACH * after_one
    after_two = hospital.kill_at(second, int(0.6 * predicted))
    refused, published = hospital.publish()
    assert after_two + published + refused == predicted
    assert_exact(hospital, sources, after_two + published)


def assert_exact(hospital, sources, published):
    """Each scan is in the ledger once, each object in Orthanc once."""
    lines = hospital.ledger()
    assert len(lines) == len(set(lines)) == published
    assert hospital.orthanc.instances() == sources + EACH * published
    assert hospital.ours() == EACH * published


def quiet_night(hospital):
    before = hospital.orthanc.instances(), hospital.ledger()
    tonight = hospital.nightly()
    assert not tonight["scans"]
    assert hospital.publish()[1] == 0
    assert (hospital.orthanc.instances(), hospital.ledger()) == before


def night_of_twenty(hospital):
    published = len(hospital.ledger())
    sources = hospital.orthanc.instances() - EACH * published
    assert hospital.nightly()["scans"] == 20
    assert hospital.publish()[1] == 20
    assert_exact(hospital, sources, published + 20)
