"""CPU milliseconds of one request by part, in a plain process against a mocked predictor.

    python benchmarks/serve_parts.py [--scans FOLDER] [--requests N] [--output DIR]

CPU time, not wall time: it may run on a busy machine. A part is measured alone, so that parts need
not add up to the whole. What Ray Serve adds, and the predictor, are in `serve.py`.
Written to DIR: serve_parts.json.
"""

import argparse
import asyncio
import json
import pickle
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import psutil

from benchmarks import common
from benchmarks.serve import read_scans, some_scans

QUERY = b"explain=both&heatmap=array"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", help="default: real scans where there are any, else phantoms")
    parser.add_argument("--distinct", type=int, default=64, help="scans in use")
    parser.add_argument("--requests", type=int, default=640)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clients", type=int, default=16, help="requests at the same time")
    parser.add_argument("--output", default=common.OUTPUT)
    parser.add_argument("--tiny", action="store_true", help="seconds only: does it still run?")
    options = parser.parse_args()
    if options.tiny:
        options.distinct, options.requests, options.repeats = 4, 16, 1
    with tempfile.TemporaryDirectory() as work:
        options.scans = options.scans or some_scans(Path(work))
        found = asyncio.run(parts(options, read_scans(options)))
    for name, milliseconds in found.items():
        print(f"{name:<44} {milliseconds:7.3f} ms")
    print("written:", common.write_json(options.output, "serve_parts", found))


class Mocked:
    """A model that answers at once, with rows of the size of real ones."""

    def __init__(self) -> None:
        cam = np.random.default_rng(0).random((7, 7)).astype(np.float16)
        self.row = {
            "predicted_class": "glioma_tumor",
            "probabilities": np.array([0.7, 0.1, 0.1, 0.1], np.float32),
            "decision": np.True_,
            "entropy": np.float32(0.5),
            "out_of_domain": np.False_,
            "cam_class": "glioma_tumor",
            "prediction_set": ["glioma_tumor"],
            "gradcam": cam,
            "gradcam_pp": cam,
            **{f"heat_{region}": np.float32(0.3) for region in ("inside", "rim", "background")},
        }

    async def card(self):
        from braintumor_ray.serving.model import ModelCard

        names = ("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor")
        return ModelCard(
            fingerprint="f" * 32, backbone="mobilenetv2_100", head="linear", class_names=names,
            positive_classes=names[:2] + names[3:], threshold=0.5, temperature=1.0, image_size=224,
            interpolation="area", mean=(0.0,) * 3, std=(1.0,) * 3, cam_layer="none",
            cam_shape=(7, 7), cam_class="predicted", detects_out_of_domain=False, recipe="none",
            data_fingerprint="none", precision="fp32", device="cpu", crop="head",
        )  # fmt: skip

    def coming(self, count):
        return nullcontext()

    async def predict(self, square, explain):
        await asyncio.sleep(0)
        return self.row


async def parts(options: argparse.Namespace, scans: list[bytes]) -> dict[str, float]:
    from braintumor_ray.decode.head import WHOLE, Box
    from braintumor_ray.serving.answers import answer
    from braintumor_ray.serving.decoders import DecoderPool
    from braintumor_ray.serving.model import placed
    from braintumor_ray.serving.schemas import PredictQuery
    from braintumor_ray.serving.service import Service, json_response
    from braintumor_ray.serving.settings import ServingSettings
    from braintumor_ray.serving.upload import UploadOptions
    from braintumor_ray.serving.web import create_app

    model, pool = Mocked(), DecoderPool(2)
    settings, card = ServingSettings("none", max_queued=10_000), await model.card()
    app = create_app(Service(settings, model, pool))
    wanted = UploadOptions(preprocessing=card.preprocessing, limits=settings.limits)
    (upload,) = await pool.decode_all([scans[0]], wanted)
    query = PredictQuery(explain="both", heatmap="array")

    async def request(number: int) -> None:
        await asked(app, "/v1/predict", scans[number % len(scans)])

    async def state(number: int) -> None:
        await asked(app, "/healthz", b"", "GET")

    async def decoding(number: int) -> None:
        await pool.decode_all([scans[number % len(scans)]], wanted)

    async def placing(number: int) -> None:
        placed(model.row, upload.box or WHOLE, Box(*card.map_frame))

    async def answering(number: int) -> None:
        answer(upload, model.row, card, query)

    ready = answer(upload, model.row, card, query)

    async def writing(number: int) -> None:
        json_response(ready)

    async def sending(number: int) -> None:
        pickle.loads(pickle.dumps((upload.image, True), 5))
        pickle.loads(pickle.dumps(model.row, 5))

    measured = {
        "the whole request, without a socket": request,
        "of it: framework (as of /healthz)": state,
        "of it: decoding, and its way there": decoding,
        "of it: maps over the whole picture": placing,
        "of it: the answer's values": answering,
        "of it: JSON": writing,
        "besides: pickles of square and row": sending,
    }
    found = {name: await cpu_ms(work, options) for name, work in measured.items()}
    pool.close()
    return {
        f"{name}{suffix}": value
        for name, (front, child) in found.items()
        for suffix, value in (("", front), (", in the decoder", child))
        if suffix == "" or child > 0.02
    }


async def cpu_ms(work, options: argparse.Namespace) -> tuple[float, float]:
    """Median CPU ms of this process and of its children for one call."""
    me, runs = psutil.Process(), []
    for _ in range(options.repeats + 1):  # the first one warms up
        before, children = time.process_time(), children_s(me)
        numbers = iter(range(options.requests))

        async def client(numbers=numbers) -> None:
            for number in numbers:
                await work(number)

        await asyncio.gather(*(client() for _ in range(options.clients)))
        spent = time.process_time() - before, children_s(me) - children
        runs.append([1000 * seconds / options.requests for seconds in spent])
    kept = runs[1:] or runs
    return statistics.median(run[0] for run in kept), statistics.median(run[1] for run in kept)


def children_s(process: psutil.Process) -> float:
    times = [child.cpu_times() for child in process.children(recursive=True)]
    return sum(each.user + each.system for each in times)


async def asked(app, path: str, body: bytes, verb: str = "POST") -> None:
    """One request by ASGI, as a server hands it over."""
    scope = {
        "type": "http", "http_version": "1.1", "method": verb, "path": path, "raw_path": path,
        "query_string": QUERY if verb == "POST" else b"", "root_path": "", "scheme": "http",
        "headers": [(b"content-length", str(len(body)).encode()), (b"host", b"localhost")],
        "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1),
    }  # fmt: skip
    statuses = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        statuses.append(message.get("status"))

    await app(scope, receive, send)
    assert statuses[0] == 200, json.dumps(statuses)


if __name__ == "__main__":
    main()
