"""What a job needs of a cluster, from a sample measured here: `score --plan`."""

import time
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from braintumor_ray.models.bundle import Bundle
from braintumor_ray.models.device import choose_device
from braintumor_ray.scoring.decode_stage import DecodeStage
from braintumor_ray.scoring.options import ScoreOptions
from braintumor_ray.scoring.predict_stage import PredictStage
from braintumor_ray.scoring.scans import Scans

SAMPLE = 96  # scans, evenly over the catalog


@dataclass(frozen=True)
class Costs:
    """Seconds per scan, of one decoder (reading included) and of one predictor.

    Attributes:
        decode_s, predict_s: seconds per scan.
        device: what predicted: 'cpu', 'cuda', or 'given' where the user gave its speed.
        block_bytes: of a block of decoded scans in Ray's memory.
    """

    decode_s: float
    predict_s: float
    device: str
    block_bytes: int


def estimate(
    scans: Scans,
    remaining: int,
    bundle: Bundle,
    options: ScoreOptions,
    gpu_scans_per_s: float | None = None,
) -> dict[str, Any]:
    """Measure a sample and compute how many decoders and how much memory one predictor needs.

    Args:
        scans: the catalog.
        remaining: scans still to be scored.
        bundle: of the run.
        options: of the run.
        gpu_scans_per_s: what one GPU predicts; None: measured where there is a GPU here.

    Returns:
        The figures, with `lines` for people.
    """
    costs = measure(sample_of(scans), bundle, options, gpu_scans_per_s)
    share = 0.0 if costs.device == "cpu" else options.request.gpus_per_predictor or 1.0
    request = replace(options.request, gpus_per_predictor=share)
    return ask(costs, remaining, replace(options, request=request))


def sample_of(scans: Scans, count: int = SAMPLE) -> pa.Table:
    """Some rows, evenly spread over a catalog."""
    step = max(1, scans.num_rows // count)
    taken, start = [], 0
    for part in scans.parts():
        rows = range(-start % step, part.num_rows, step)
        taken.append(part.take(pa.array(rows, pa.int64())))
        start += part.num_rows
    return pa.concat_tables(taken, promote_options="default").slice(0, count)


def measure(
    sample: pa.Table, bundle: Bundle, options: ScoreOptions, gpu_scans_per_s: float | None
) -> Costs:
    """Decode and predict a sample in this process; warm-up runs are not timed."""
    decode = DecodeStage(bundle.preprocessing, options.decode, bundle.cam_shape)
    decode(sample.slice(0, 8))  # its child process has started
    decoded, decode_s = _timed(decode, sample)
    block_bytes = int(decoded.nbytes / max(1, decoded.num_rows) * options.block_size)
    if gpu_scans_per_s:
        return Costs(decode_s, 1 / gpu_scans_per_s, "given", block_bytes)
    predict = PredictStage(options.predict, bundle.fingerprint, bundle=bundle)
    predict(decoded)  # the first batch pays for the choice of kernels
    _, predict_s = _timed(predict, decoded)
    return Costs(decode_s, predict_s, choose_device(options.predict.device).type, block_bytes)


def ask(costs: Costs, remaining: int, options: ScoreOptions) -> dict[str, Any]:
    """The resources that follow from the costs.

    A GPU (or a node's predictor) is kept busy by decode_s / predict_s decoders. Ray's memory holds
    the blocks in flight: one being made and one waiting per decoder, two per predictor.
    """
    speed = 1 / costs.predict_s
    decoders = costs.decode_s * speed
    request = options.request
    share = request.gpus_per_predictor or 0.0
    per_gpu = 1 / share if share else 1.0
    cpus = decoders * request.cpus_per_decode + per_gpu
    memory = costs.block_bytes * (2 * decoders + 2 * per_gpu) / options.object_store_fraction
    found = {
        "remaining": remaining,
        "decode_ms": 1000 * costs.decode_s,
        "predict_ms": 1000 * costs.predict_s,
        "device": costs.device,
        "predictors_per_gpu": per_gpu if share else None,
        "cpus_per_predictor": 1.0,
        "gpus_per_predictor": share,
        "cpus_per_decode": request.cpus_per_decode,
        "decoders_per_gpu": decoders,
        "cpus_per_gpu": cpus,
        "object_store_bytes": int(memory),
        "hours": remaining / speed / 3600,
    }
    return found | {"lines": _lines(found)}


def _lines(found: dict[str, Any]) -> list[str]:
    one = "GPU" if found["device"] != "cpu" else "CPU predictor"
    each = (
        f"{found['predictors_per_gpu']:g} per GPU, {found['gpus_per_predictor']:g} GPU and 1 CPU"
        if found["predictors_per_gpu"]
        else "1 CPU"
    )
    return [
        f"{found['remaining']} scans to score",
        f"a decoder takes {found['decode_ms']:.2f} ms a scan here, reading included; "
        f"a {one} {found['predict_ms']:.3f} ms ({found['device']})",
        f"predictors: {each} each; decoders: {found['cpus_per_decode']:g} CPU each",
        f"to keep one {one} busy: {found['decoders_per_gpu']:.1f} decoders, "
        f"{found['cpus_per_gpu']:.1f} CPUs in all, "
        f"{found['object_store_bytes'] / 1e6:.0f} MB of object store",
        f"with that, {found['hours']:.2f} hours on one {one}, {found['hours'] / 8:.2f} on eight",
    ]


def _timed(stage: Any, rows: pa.Table) -> tuple[pa.Table, float]:  # noqa: ANN401 - a stage
    started = time.perf_counter()
    out = stage(rows)
    return out, (time.perf_counter() - started) / max(1, rows.num_rows)
