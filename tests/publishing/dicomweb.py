"""A small DICOMweb server on loopback: it keeps what it is sent, and fails as a test wants."""

import io
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pydicom


class Store:
    """What the server has: objects by UID, in the order of their arrival."""

    def __init__(self):
        self.arrived = []
        self.answers = []  # status codes for the next requests, before it works
        self.before = self.after = lambda: None  # called around each storing
        self.conflict = False  # 409 for what it has
        self.full = False  # 202 and a reason for each object, and keeps none
        self.media_type = "application/dicom+json"
        self.unknown = (404, b"")  # what it answers of objects that it does not have
        self.cut = 0  # answers whose connection ends within them

    def take(self, body, boundary):
        parts = body.split(b"--" + boundary)[1:-1]
        contents = [part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n") for part in parts]
        uids = [pydicom.dcmread(io.BytesIO(content)).SOPInstanceUID for content in contents]
        if self.full:
            return 202, json.dumps({"00081198": sequence(*map(failed, uids))}).encode()
        known = self.conflict and all(uid in self.arrived for uid in uids)
        self.arrived += uids
        return (409 if known else 200), b""


def sequence(*items):
    return {"vr": "SQ", "Value": items}


def failed(uid):
    """An item of FailedSOPSequence: out of resources."""
    return {"00081155": {"vr": "UI", "Value": [uid]}, "00081197": {"vr": "US", "Value": [0xA700]}}


class Pauses(threading.Event):
    """Notes how long was waited, and does not wait."""

    def __init__(self, noted):
        super().__init__()
        self.noted = noted

    def wait(self, timeout=None):
        self.noted.append(timeout)
        return False


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        store, body = self.server.store, self._body()
        store.seen = self.headers.get("Authorization")
        if store.answers:
            self._answer(store.answers.pop(0))
            return
        store.before()
        boundary = self.headers["Content-Type"].split("boundary=")[1].split(";")[0].strip('"')
        answer = store.take(body, boundary.encode())
        store.after()
        self._answer(*answer)

    def do_GET(self):
        uid = self.path.split("/instances/")[1].split("/")[0]
        known = uid in self.server.store.arrived
        found = (200, b'[{"00080018": {"vr": "UI"}}]')
        self._answer(*(found if known else self.server.store.unknown))

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status, body=b""):
        cut, self.server.store.cut = self.server.store.cut, max(0, self.server.store.cut - 1)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) + bool(cut)))
        self.send_header("Content-Type", self.server.store.media_type)
        if status in range(300, 400):
            self.send_header("Location", "/elsewhere/instances/1")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = self.close_connection or bool(cut)

    def log_message(self, *args):
        """Tests print nothing."""


@contextmanager
def serving(store, port=0, context=None):
    """The server's address."""
    server = ThreadingHTTPServer(("127.0.0.1", port), _Handler)
    server.store = store
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    scheme = "https" if context else "http"
    try:
        yield f"{scheme}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
