"""A certificate authority of the test's own, with a certificate for 127.0.0.1."""

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Files:
    """Where they are; certificate and key serve for the server and for a client."""

    authority: Path
    certificate: Path
    key: Path


def certificates(folder):
    """Make them with openssl; skips where it is not installed."""
    files = Files(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
    extensions = folder / "extensions"
    extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    key = ["-newkey", "rsa:2048", "-nodes"]
    _openssl("req", "-x509", *key, "-keyout", folder / "ca.key", "-out", files.authority,
             "-subj", "/CN=test authority", "-days", "2",
             "-addext", "keyUsage=critical,keyCertSign", )  # fmt: skip
    request = folder / "request.pem"
    _openssl("req", *key, "-keyout", files.key, "-out", request, "-subj", "/CN=localhost")
    _openssl("x509", "-req", "-in", request, "-CA", files.authority, "-CAkey", folder / "ca.key",
             "-CAcreateserial", "-out", files.certificate, "-days", "2",
             "-extfile", extensions)  # fmt: skip
    return files


def server_context(files, wants_certificate=False):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    if wants_certificate:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(files.authority)
    return context


def _openssl(*arguments):
    try:
        subprocess.run(["openssl", *map(str, arguments)], capture_output=True, check=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
