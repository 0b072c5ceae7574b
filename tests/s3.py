"""A real S3 API on loopback, and a proxy in front of it that misbehaves on demand."""

import http.client
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def environment_of(url):
    """Variables by which a process finds the API at this address."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


BUSY = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code>"
    b"<Message>Please reduce your request rate.</Message></Error>"
)

UNKNOWN = (
    b"<?xml version='1.0'?><Error><Code>NotImplemented</Code>"
    b"<Message>A header you provided implies functionality that is not implemented</Message>"
    b"</Error>"
)


class Faults:
    """What the proxy does to requests whose path contains `where`.

    Attributes:
        busy_until: time.monotonic() before which the answer is 503.
        delay_s: between the two halves of a body that is read.
        refused: requests answered with 503 so far.
        unconditional: puts with a condition are answered with 501.
    """

    def __init__(self):
        self.where = ""
        self.busy_until = 0.0
        self.delay_s = 0.0
        self.refused = 0
        self.slowed = 0
        self.refusals_left = 0
        self.unconditional = False

    @contextmanager
    def busy_at_first(self, requests, where=""):
        """Refuse the first so many requests."""
        self.where, self.refusals_left = where, requests
        yield
        self.refusals_left = 0

    def refuses(self, path):
        if self.where not in path:
            return False
        self.refusals_left -= 1
        refused = self.refusals_left >= 0 or time.monotonic() < self.busy_until
        self.refused += refused
        return refused

    def busy_for(self, seconds, where=""):
        self.where, self.busy_until = where, time.monotonic() + seconds


def _handler(target, faults):
    conditional = threading.Lock()

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each body waits 40 ms for the headers' receipt

        def log_message(self, *_):
            return

        def forward(self):
            body = self._body()
            hit = faults.where in self.path
            if faults.refuses(self.path):
                return self._answer(503, [("Content-Type", "application/xml")], BUSY)
            if "If-Match" in self.headers or "If-None-Match" in self.headers:
                if faults.unconditional:
                    return self._answer(501, [("Content-Type", "application/xml")], UNKNOWN)
                with conditional:  # moto checks and puts in two steps; real stores in one
                    return self._pass_on(body, hit)
            return self._pass_on(body, hit)

        def _pass_on(self, body, hit):
            connection = http.client.HTTPConnection(*target, timeout=60)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP}
            if body or self.command in ("PUT", "POST"):
                headers["Content-Length"] = str(len(body))
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in HOP]
            connection.close()
            slow = hit and faults.delay_s and self.command == "GET"
            return self._answer(answer.status, kept, content, slow, answer)

        def _body(self):
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _answer(self, status, headers, content, slow=False, answer=None):
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            length = len(content)
            if self.command == "HEAD" and answer is not None:
                length = int(answer.getheader("Content-Length") or 0)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command == "HEAD":
                return
            half = len(content) // 2 if slow else 0
            if slow:
                faults.slowed += 1
                self.wfile.write(content[:half])
                time.sleep(faults.delay_s)
            self.wfile.write(content[half:])

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward

    return Proxy


HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "server", "date"}


@contextmanager
def s3_server():
    """Yields (url of the proxy, its faults); moto behind it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    faults = Faults()
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server.get_host_and_port(), faults))
    proxy.daemon_threads = True
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_address[1]}", faults
    finally:
        proxy.shutdown()
        proxy.server_close()
        server.stop()


def upload(folder, bucket, prefix):
    """Put every file of a folder into a bucket."""
    from braintumor_ray.storage import write_atomically

    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            write_atomically(f"s3://{bucket}/{prefix}/{name}", path.read_bytes())
