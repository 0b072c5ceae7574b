"""Which engine is fastest on this machine: measured, as it depends on network, cores and releases.

    python -m braintumor_ray.engines.choice '{"bundle": ..., "precision": ..., "parallel": ...}'

does it in a process of its own and prints the result as JSON: the driver of a job builds no
network.
"""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

import numpy as np
import torch

from braintumor_ray.choices import EngineChoice, EngineName, Precision
from braintumor_ray.engines.engine import make_engine, not_quantized
from braintumor_ray.errors import BundleError, UsageError, first_line
from braintumor_ray.extras import is_installed
from braintumor_ray.models.allocator import allocator_environment
from braintumor_ray.models.bundle import Bundle, BundleFields, load_bundle, read_bundle_fields
from braintumor_ray.models.device import choose_device

GAIN = 1.1  # what another engine must gain over torch: less is noise
ROUNDS, SECONDS = 7, 4.0  # at most; at least three rounds
TIMEOUT_S = 600
BATCH = 16
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """An engine, and why.

    Attributes:
        engine: the one to take.
        scans_per_s: what each candidate did; empty where there was nothing to compare.
    """

    engine: EngineName
    scans_per_s: Mapping[str, float] = field(default_factory=dict)

    def describe(self) -> str:
        """One line for people."""
        measured = ", ".join(f"{name} {rate:.0f}" for name, rate in self.scans_per_s.items())
        return f"engine: {self.engine}" + (f" (measured, scans/s: {measured})" if measured else "")


def possible_engine(engine: EngineChoice, fields: BundleFields) -> EngineChoice:
    """What a bundle leaves of a choice: one that is quantized has one engine.

    Raises:
        UsageError: the chosen engine cannot run the bundle.
    """
    if fields.quantization is None:
        return engine
    if engine not in ("auto", "openvino"):
        raise not_quantized(engine)
    return "openvino"


def fastest_engine(
    bundle: Bundle,
    device: torch.device,
    precision: Precision = "auto",
    *,
    parallel: int = 1,
    batch_size: int = BATCH,
) -> Choice:
    """Time the backbone in every installed engine that can run it; torch on GPUs without a look.

    One that cannot, at whichever step, is left out.

    Args:
        bundle: whose network.
        device: where it will run.
        precision: as for `Predictor`; each engine in its own where it is 'auto'.
        parallel: batches at a time.
        batch_size: scans per batch.
    """
    names = _candidates(device, precision)
    if len(names) == 1:
        return Choice("torch")
    side = bundle.preprocessing.image_size
    images = np.random.default_rng(0).integers(0, 256, (batch_size, side, side)).astype(np.uint8)
    model = bundle.build_model()
    calls: dict[EngineName, Callable[[], object]] = {}
    for name in names:
        try:
            engine = make_engine(name, model, bundle.preprocessing, device, precision, parallel)
            engine.features(images)
        except Exception as error:  # their libraries' errors have no class in common
            if name == "torch":
                raise
            logger.warning("engine '%s' cannot run this network: %s", name, first_line(error))
            continue
        calls[name] = lambda engine=engine: engine.features(images)  # type: ignore[misc]
    seconds = _interleaved(calls, parallel)
    rates: dict[str, float] = {
        name: parallel * batch_size / median for name, median in seconds.items()
    }
    best = max(calls, key=lambda name: rates[name])
    return Choice(best if rates[best] >= GAIN * rates["torch"] else "torch", rates)


def _possible_here(engine: EngineChoice, bundle: str) -> EngineChoice:
    try:
        fields = read_bundle_fields(bundle)
    except BundleError:
        if engine == "auto":
            raise
        return engine  # the bundle may be on other nodes only; their predictors check it
    return possible_engine(engine, fields)


def resolve_engine(
    engine: EngineChoice,
    bundle: str,
    *,
    device: str = "auto",
    precision: Precision = "auto",
    parallel: int = 1,
) -> Choice:
    """A named engine as it is; 'auto' measured by `fastest_engine` in a process of its own.

    Args:
        engine: as chosen by the user.
        bundle: folder or URI.
        device: as for `Predictor`; on a GPU nothing is measured.
        precision: as for `Predictor`.
        parallel: batches at a time.

    Raises:
        BundleError: 'auto', and the bundle cannot be read.
        UsageError: it could not be measured, or the bundle is quantized and needs another engine.
    """
    engine = _possible_here(engine, bundle)
    if engine != "auto":
        return Choice(engine)
    chosen = choose_device(device)
    if len(_candidates(chosen, precision)) == 1:
        return Choice("torch")
    wanted = {"bundle": bundle, "precision": precision, "parallel": parallel}
    command = [sys.executable, "-m", "braintumor_ray.engines.choice", json.dumps(wanted)]
    found_by = {"PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
    environment = os.environ | allocator_environment() | found_by
    try:
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment
        )
    except (OSError, subprocess.SubprocessError) as error:
        # Of a process that took too long it is bytes, and only remarks.
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""
        line = (said.strip() or str(error)).splitlines()[-1]
        raise UsageError(
            f"the engines could not be measured ({line}); name one, such as --engine torch"
        ) from error
    found = json.loads(done.stdout.splitlines()[-1])
    return Choice(found["engine"], found["scans_per_s"])


def _candidates(device: torch.device, precision: Precision) -> list[EngineName]:
    """Engines that are installed and could run; torch first."""
    found: list[EngineName] = ["torch"]
    if device.type != "cpu" or not is_installed("onnx"):  # the way to both others
        return found
    if is_installed("openvino"):
        found.append("openvino")
    if is_installed("onnxruntime") and precision != "bf16":
        found.append("onnxruntime")
    return found


def _interleaved(
    calls: Mapping[EngineName, Callable[[], object]], parallel: int
) -> dict[EngineName, float]:
    """Median seconds of `parallel` calls at a time, by turns: slow moments hit all alike."""
    times: dict[EngineName, list[float]] = {name: [] for name in calls}
    with ThreadPoolExecutor(parallel, initializer=_alone if parallel > 1 else None) as pool:
        for call in calls.values():
            list(pool.map(lambda _, call=call: call(), range(parallel)))  # type: ignore[misc]
        begin = time.perf_counter()
        for number in range(ROUNDS):
            if number >= 3 and time.perf_counter() - begin > SECONDS:
                break
            for name, call in calls.items():
                start = time.perf_counter()
                list(pool.map(lambda _, call=call: call(), range(parallel)))  # type: ignore[misc]
                times[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in times.items()}


def _alone() -> None:
    """One thread per operation: batches run in parallel, as in a job."""
    torch.set_num_threads(1)


def main(text: str) -> None:
    """Measure what a JSON text asks for; print the choice as JSON."""
    wanted = json.loads(text)
    parallel = wanted["parallel"]
    choice = fastest_engine(
        load_bundle(wanted["bundle"]),
        torch.device("cpu"),
        wanted["precision"],
        parallel=parallel,
    )
    print(json.dumps(asdict(choice)))


if __name__ == "__main__":
    main(sys.argv[1])
