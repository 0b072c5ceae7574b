"""An Orthanc of the test's own, with its DICOMweb plugin, on loopback."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

PLUGINS = [*Path("/usr/share/orthanc/plugins").glob("*OrthancDicomWeb*.so")]
needs_orthanc = pytest.mark.skipif(
    not (PLUGINS and shutil.which("Orthanc")), reason="Orthanc is not installed"
)


class Orthanc:
    """Started and ended as often as a test likes; it keeps its objects in a folder."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self.dicomweb = f"{self.address}/dicom-web"
        self._settings = folder / "orthanc.json"
        self._process = None
        settings = {
            "StorageDirectory": str(folder / "orthanc"),
            "IndexDirectory": str(folder / "orthanc"),
            "HttpPort": port,
            "DicomServerEnabled": False,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "Plugins": [str(path) for path in PLUGINS],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        self._settings.write_text(json.dumps(settings))

    def start(self):
        self._process = subprocess.Popen(
            ["Orthanc", str(self._settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(300):
            try:
                return self.instances()
            except urllib.error.URLError:
                time.sleep(0.2)
        raise AssertionError("Orthanc does not answer")

    def end(self):
        self._process.terminate()
        self._process.wait(timeout=60)

    def instances(self):
        """How many objects it has."""
        with urllib.request.urlopen(f"{self.address}/statistics", timeout=30) as answer:
            return json.load(answer)["CountInstances"]
