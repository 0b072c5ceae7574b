"""Drives headless Chromium over its debugging protocol; no driver to install."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_browser():
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    return found


class Browser:
    """One tab."""

    def __init__(self, start_s=90):
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 "--no-first-run", "--remote-debugging-port=0", "--hide-scrollbars",
                 "--disable-background-networking")  # fmt: skip
        self._process = subprocess.Popen(
            [find_browser(), *flags, f"--user-data-dir={self._profile.name}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._last_id = 0
        self.requested = []
        self.messages = []
        try:
            self._socket = connect(self._address(start_s), max_size=2**26)
        except BaseException:
            self.close()
            raise
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = None
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Network", "DOM", "Log"):
            self.call(f"{domain}.enable")

    def _address(self, start_s):
        port_file = Path(self._profile.name) / "DevToolsActivePort"
        deadline = time.monotonic() + start_s
        while not (port_file.exists() and len(port_file.read_text().splitlines()) == 2):
            if time.monotonic() > deadline or self._process.poll() is not None:
                pytest.skip("the browser does not start here")
            time.sleep(0.1)
        port, path = port_file.read_text().splitlines()
        return f"ws://127.0.0.1:{port}{path}"

    def call(self, method, **parameters):
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": parameters}
        if getattr(self, "_session", None):
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(timeout=90))
            self._note(answer)
            if answer.get("id") == self._last_id:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _note(self, answer):
        kind, values = answer.get("method"), answer.get("params", {})
        if kind == "Network.requestWillBeSent":
            self.requested.append(values["request"]["url"])
        elif kind == "Runtime.exceptionThrown":
            self.messages.append(values["exceptionDetails"]["text"])
        elif kind == "Log.entryAdded" and values["entry"]["source"] in ("security", "javascript"):
            self.messages.append(values["entry"]["text"])

    def evaluate(self, script):
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_until(self, script, timeout_s=60):
        deadline = time.monotonic() + timeout_s
        while not self.evaluate(script):
            assert time.monotonic() < deadline, f"never true: {script}"
            time.sleep(0.01)

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.wait_until(f"document.readyState === 'complete' && location.href === {url!r}")

    def look(self, width, height, dark=False):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 500,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def upload(self, selector, *paths):
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def press(self, key, code=0, text=""):
        base = {"key": key, "code": key, "windowsVirtualKeyCode": code, "text": text}
        self.call("Input.dispatchKeyEvent", type="keyDown", **base)
        self.call("Input.dispatchKeyEvent", type="keyUp", **base)

    def screenshot(self, path):
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        if getattr(self, "_socket", None):
            self._socket.close()
        self._process.terminate()
        self._process.wait(timeout=30)
        self._profile.cleanup()
