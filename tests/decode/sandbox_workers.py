"""Worker functions that the sandbox tests run in its child, by name."""

import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np

from braintumor_ray.decode.decode import decode


def hostile(data, options):
    """Do what the first byte says; otherwise give the length and the options back."""
    action = data[:1] if data else b""
    if action == b"!":
        os._exit(7)
    elif action == b"#":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif action == b"z":
        time.sleep(60)
    elif action == b"m":
        np.ones(6 * 2**30, np.uint8)
    elif action == b"e":
        raise ValueError("with the patient's name in it")
    elif action == b"u":
        return [np.zeros(9), options, sys.stderr]  # a stream does not pickle
    elif action == b"p":
        print("noise on stdout", flush=True)
        os.write(1, b"raw noise on fd 1\n")
    return (None if data is None else len(data), options)


def dies_once(data, options):
    """Exit on the first call for a marker file, then succeed."""
    marker = Path(options["marker"])
    if data == b"!" and not marker.exists():
        marker.touch()
        os._exit(3)
    return data


def logged(data, options):
    """Write each call to a file, so that a test can count them."""
    with Path(options["log"]).open("ab") as log:
        log.write(data + b"\n")
    return data


def echo(data, options):
    """The bytes as an array of any size."""
    return np.frombuffer(data, np.uint8)


def slow(data, options):
    """Take a tenth of a second, so that a batch takes longer than one item may."""
    time.sleep(0.1)
    return data


def status(data, options):
    """Decode; with the peak memory so far, in KiB."""
    decoded = decode(data)
    return decoded.status, decoded.reason, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def loaded(data, options):
    """Which heavy modules the child has imported."""
    return [name for name in ("torch", "ray", "pandas", "matplotlib") if name in sys.modules]


def pid(data, options):
    """The child's process id."""
    return os.getpid()


def pid_then_stall(data, options):
    """The child's process id the first time, an endless loop the second."""
    if _CALLS:
        while True:
            sum(range(10**7))
    _CALLS.append(1)
    return os.getpid()


_CALLS = []
