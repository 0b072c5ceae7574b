"""A small DICOMweb service on loopback: QIDO-RS and WADO-RS over a folder, failing as told."""

import io
import json
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pydicom

STUDY, SERIES, SOP, CLASS = "0020000D", "0020000E", "00080018", "00080016"
MANUFACTURER, SIZE = "00080070", "00201209"


class Pacs:
    """What the service has, and how it answers."""

    def __init__(self, *folders):
        self.objects = {}  # (study, series, sop) -> class and bytes
        self.answers = []  # codes for the next requests, before it works
        self.gone = set()  # SOP Instance UIDs that are listed and not there
        self.most = None  # results of a page, whatever is asked for
        self.ignores_offset = False
        self.manufacturers = {}  # by Series Instance UID
        self.tells_manufacturer = False  # if it is asked for
        self.tells_sizes = False
        self.single_part = False  # else multipart/related
        self.body = None  # of any answer
        self.asked = []  # paths with their queries
        self.sent = 0  # objects
        for folder in folders:
            self.add(folder)

    def add(self, folder):
        for path in sorted(folder.rglob("*.dcm")):
            data = path.read_bytes()
            tags = pydicom.dcmread(io.BytesIO(data), force=True, stop_before_pixels=True)
            uids = (tags.StudyInstanceUID, tags.SeriesInstanceUID, tags.SOPInstanceUID)
            self.objects[tuple(map(str, uids))] = (str(tags.SOPClassUID), data)
            self.manufacturers[str(tags.SeriesInstanceUID)] = str(tags.get("Manufacturer", ""))

    def listed(self, *above, further=""):
        """Results of the level below some UIDs, each once, with further attributes."""
        level = len(above)
        found, sizes = {}, Counter(uids[:2] for uids in self.objects)
        for uids, (sop_class, _) in self.objects.items():
            if uids[:level] == above:
                found[uids[level]] = {(STUDY, SERIES, SOP)[level]: uids[level], CLASS: sop_class}
            if uids[:level] == above and level == 1:
                told = found[uids[1]]
                if self.tells_manufacturer and further == MANUFACTURER:
                    told[MANUFACTURER] = self.manufacturers.get(uids[1], "")
                if self.tells_sizes:
                    told[SIZE] = sizes[uids[:2]]
        return [{k: {"vr": "UI", "Value": [v]} for k, v in each.items()} for each in found.values()]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each body waits 40 ms for the headers' receipt

    def do_GET(self):
        pacs, parts = self.server.pacs, urlsplit(self.path)
        pacs.asked.append(self.path)
        pacs.credentials = self.headers.get("Authorization")
        if pacs.answers:
            return self._answer(pacs.answers.pop(0))
        if pacs.body is not None:
            return self._answer(200, pacs.body, "text/html")
        names = parts.path.removeprefix("/dicom-web").strip("/").split("/")
        if names[-1] in ("studies", "series", "instances"):
            return self._list(tuple(names[1::2]), parse_qs(parts.query))
        return self._send(tuple(names[1::2]))

    def _list(self, above, query):
        pacs = self.server.pacs
        found = pacs.listed(*above, further=query.get("includefield", [""])[0])
        start = 0 if pacs.ignores_offset else int(query["offset"][0])
        page = found[start : start + (pacs.most or int(query["limit"][0]))]
        return self._answer(200 if page else 204, json.dumps(page).encode() if page else b"")

    def _send(self, uids):
        pacs = self.server.pacs
        if uids not in pacs.objects or uids[-1] in pacs.gone:
            return self._answer(404)
        pacs.sent += 1
        _, data = pacs.objects[uids]
        if pacs.single_part:
            if not self.headers["Accept"].startswith("application/dicom"):
                return self._answer(406)
            return self._answer(200, data, "application/dicom")
        body = b"--XX\r\nContent-Type: application/dicom\r\n\r\n" + data + b"\r\n--XX--\r\n"
        return self._answer(200, body, 'multipart/related; type="application/dicom"; boundary=XX')

    def _answer(self, status, body=b"", kind="application/dicom+json"):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Tests print nothing."""


@contextmanager
def serving(pacs):
    """The source URI of the service, without a query."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.pacs = pacs
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"dicomweb+http://127.0.0.1:{server.server_port}/dicom-web"
    finally:
        server.shutdown()
        server.server_close()
