"""A service in this process: real decoding, real routes, a model that needs no weights."""

import asyncio
import socket
import threading
from contextlib import contextmanager, nullcontext

import cv2
import numpy as np
import uvicorn
from starlette.testclient import TestClient

from braintumor_ray.serving.decoders import DecoderPool
from braintumor_ray.serving.model import ModelCard
from braintumor_ray.serving.service import Service
from braintumor_ray.serving.settings import ServingSettings
from braintumor_ray.serving.web import create_app
from tests.builders import CLASSES, disc_scan

TOKEN = "correct-horse"
CARD = ModelCard(
    fingerprint="f" * 32,
    backbone="none",
    head="linear",
    class_names=CLASSES,
    positive_classes=tuple(c for c in CLASSES if c != "no_tumor"),
    threshold=0.5,
    temperature=1.0,
    image_size=64,
    interpolation="area",
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    cam_layer="none",
    cam_shape=(7, 7),
    cam_class="predicted",
    detects_out_of_domain=False,
    recipe="test",
    data_fingerprint="none",
    precision="fp32",
    device="cpu",
)


class FakeModel:
    """Brighter scans are likelier gliomas; the map is a gradient; remembers what it was given."""

    def __init__(self, error=None, wait_s=0.0):
        self.error = error
        self.wait_s = wait_s
        self.seen = []

    async def card(self):
        if self.error:
            raise self.error
        return CARD

    def coming(self, count):
        return nullcontext()

    async def predict(self, square, explain):
        await asyncio.sleep(self.wait_s)
        if self.error:
            raise self.error
        self.seen.append(square)
        first = float(square.mean()) / 255
        row = {
            "predicted_class": "glioma_tumor" if first > 0.25 else "no_tumor",
            "probabilities": np.array([first, 0.1, 0.7 - first, 0.2], np.float32),
            "decision": True,
            "entropy": np.float32(0.5),
            "out_of_domain": False,
            "cam_class": explain if isinstance(explain, str) else "glioma_tumor",
        }
        if not explain:
            return row
        cam = np.arange(49, dtype=np.float16).reshape(7, 7)
        shares = {"heat_inside": 0.5, "heat_rim": 0.25, "heat_background": np.nan}
        return row | {"gradcam": cam, "gradcam_pp": cam / 2} | shares


def make_client(decoders, model=None, digest=None, **settings):
    chosen = ServingSettings(bundle="none", **{"front_replicas": 1} | settings)
    service = Service(chosen, model or FakeModel(), decoders)
    return TestClient(create_app(service, digest), raise_server_exceptions=False)


def make_decoders(**options):
    return DecoderPool(count=1, **options)


def encoded(suffix=".png", seed=1, size=(96, 112)):
    return cv2.imencode(suffix, disc_scan(seed, size))[1].tobytes()


@contextmanager
def listening(decoders, digest=None, **settings):
    """The service on a real socket of this process; yields its address."""
    chosen = ServingSettings(bundle="none", **{"front_replicas": 1} | settings)
    service = Service(chosen, FakeModel(), decoders)
    config = uvicorn.Config(create_app(service, digest), log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)  # who connects before the server runs waits
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)
