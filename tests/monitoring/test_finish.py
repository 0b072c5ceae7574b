"""`--on-finish`: a command or a webhook, which never change how a run ended."""

import json
import shlex
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from braintumor_ray.errors import UsageError
from braintumor_ray.monitoring import finish
from braintumor_ray.monitoring.finish import notify
from braintumor_ray.monitoring.options import RunReport, check_target, command_words
from tests.monitoring.runs import finished, summary


@pytest.fixture
def said():
    return []


@pytest.fixture
def hook(monkeypatch):
    """A server that answers with the next of its codes: (its address, codes, bodies)."""
    monkeypatch.setattr(finish, "PAUSE_S", 0.01)
    monkeypatch.setattr(finish, "WEBHOOK_TIMEOUT_S", 0.3)
    codes, bodies = [], []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            code = codes.pop(0)
            if code is None:
                time.sleep(0.6)
                return
            self.send_response(code)
            if 300 <= code < 400:
                self.send_header("Location", "/elsewhere")
            self.end_headers()

        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/secret-path", codes, bodies
    server.shutdown()
    server.server_close()


def python(code):
    return f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}"


def test_a_command_gets_the_summary_and_the_exit_code(tmp_path, said):
    out = tmp_path / "out.json"
    code = (
        "import json, os, sys; d = json.load(sys.stdin);"
        f"json.dump([d, os.environ['BRAINTUMOR_EXIT_CODE'], os.environ['BRAINTUMOR_RUN_ID']],"
        f" open({str(out)!r}, 'w')); print('told')"
    )
    notify(python(code), finished(3, found=summary()), said.append)
    document, exit_code, run = json.loads(out.read_text())
    assert (exit_code, run) == ("3", "r1")
    assert (document["exit_code"], document["outcome"]) == (3, "gate not met")
    assert document["summary"]["night"]["gates"]
    assert said == ["told"], "what the command prints does not mix with results on stdout"


def test_no_shell_reads_the_command(tmp_path, said):
    marker = tmp_path / "made"
    notify(f"{python('pass')} ; touch {marker}", finished(), said.append)
    assert not marker.exists()
    assert said == []


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (python("raise SystemExit(7)"), "ended with 7"),
        ("/no/such/program --x", "No such file"),
        (python("import time; time.sleep(60)"), "not done after"),
    ],
)
def test_a_command_that_fails_is_one_warning(said, target, words, monkeypatch):
    monkeypatch.setattr(finish, "COMMAND_TIMEOUT_S", 2.0)
    notify(target, finished(), said.append)
    assert len(said) == 1
    assert said[0].startswith("warning: --on-finish")
    assert words in said[0]


def test_a_webhook_gets_the_summary(hook, said):
    url, codes, bodies = hook
    codes.append(204)
    notify(url, finished(1, error="disk full"), said.append)
    (body,) = bodies
    document = json.loads(body)
    assert (document["outcome"], document["error"]) == ("failed", "disk full")
    assert said == []


@pytest.mark.parametrize(
    ("answers", "posts", "warned"),
    [
        ([500, 503, 200], 3, False),
        ([500, 500, 500], 3, True),
        ([None, 200], 2, False),
        ([None, None, None], 3, True),
        ([404], 1, True),
        ([429, 200], 2, False),
        ([301], 1, True),
        ([302], 1, True),
    ],
)
def test_a_webhook_is_tried_three_times_where_that_may_help(hook, said, answers, posts, warned):
    url, codes, bodies = hook
    codes.extend(answers)
    notify(url, finished(), said.append)
    assert len(bodies) == posts
    assert len(said) == warned
    assert "secret-path" not in "".join(said)


def test_nobody_listens(said, monkeypatch):
    monkeypatch.setattr(finish, "PAUSE_S", 0.01)
    notify("http://127.0.0.1:1/", finished(), said.append)
    assert "127.0.0.1" in said[0]
    assert "refused" in said[0]


def test_what_answers_is_no_web_server(said, monkeypatch):
    monkeypatch.setattr(finish, "PAUSE_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            for _ in range(finish.TRIES):
                connection, _ = server.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"SSH-2.0-OpenSSH\r\n")

        threading.Thread(target=answer, daemon=True).start()
        notify(f"http://127.0.0.1:{server.getsockname()[1]}/secret", finished(), said.append)
    (line,) = said
    assert "no answer in HTTP" in line
    assert "secret" not in line


@pytest.mark.parametrize("url", ["http://h/a b", "http://h:port/", "http://[::1/", "https://"])
def test_an_address_that_is_none_is_refused_before_the_run(url):
    with pytest.raises(UsageError, match="not valid") as refusal:
        check_target(url)
    assert url not in str(refusal.value)


@pytest.mark.parametrize("text", ["", "  ", "notify 'half"])
def test_a_command_without_words_is_refused(text):
    with pytest.raises(UsageError, match="--on-finish"):
        command_words(text)


def test_nothing_is_told_by_default():
    assert RunReport().on_finish is None
    assert RunReport().metrics_file is None
