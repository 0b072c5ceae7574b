"""A real Prometheus on a free port."""

import json
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import yaml


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Prometheus:
    """Asks a server at a URL."""

    def __init__(self, url):
        self._url = url

    def query(self, expr, at=None):
        """The result of an instant query; AssertionError with Prometheus' words for a bad one."""
        fields = {"query": expr} | ({"time": at} if at else {})
        url = f"{self._url}/api/v1/query?{urllib.parse.urlencode(fields)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expr}: {error.read().decode()}") from error

    def is_ready(self):
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=5):
                return True
        except OSError:
            return False


@contextmanager
def prometheus(folder, targets):
    """A Prometheus that scrapes `host:port/path` targets, with time for a busy machine."""
    jobs = []
    for number, target in enumerate(targets):
        host, _, path = target.partition("/")
        jobs.append(
            {
                "job_name": f"job{number}",
                "metrics_path": f"/{path}",
                "static_configs": [{"targets": [host]}],
            }
        )
    settings = {"global": {"scrape_interval": "2s", "scrape_timeout": "2s"}, "scrape_configs": jobs}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    server = Prometheus(f"http://127.0.0.1:{port}")
    try:
        wait_for(server.is_ready, 120)
        yield server
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def files_over_http(folder):
    """Serves a folder, as node_exporter would its textfiles: host:port."""
    handler = partial(Silent, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Silent."""


def wait_for(is_so, seconds):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.3)
