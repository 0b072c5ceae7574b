"""What runs the backbone: torch, OpenVINO or ONNX Runtime, behind one interface.

An engine gives the target map; the head and the maps are computed in float32 by `explain.cam` for
all of them, so that engines differ in the rounding of the backbone and in nothing else.
"""

import threading
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from braintumor_ray.choices import EngineName, Precision
from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.engines.convert import INPUT, openvino_core, to_onnx, to_openvino
from braintumor_ray.engines.graph import Normalized
from braintumor_ray.errors import UsageError
from braintumor_ray.extras import require
from braintumor_ray.models.bundle import QuantizedGraph
from braintumor_ray.models.classifier import Classifier, normalize
from braintumor_ray.models.device import use_bf16
from braintumor_ray.models.folding import fold_batch_norms, round_kernels
from braintumor_ray.models.fusing import fuse_activations, pack_weights
from braintumor_ray.types import GrayImage

FEATURES = "features"
Run = Callable[[GrayImage], list[NDArray[Any]]]
"""uint8 (B, S, S) to the outputs in order; those may be views until this thread's next call."""


class Engine(Protocol):
    """Runs the backbone of a bundle.

    Attributes:
        name: 'torch', 'openvino' or 'onnxruntime'.
        bf16: whether the backbone computes in bfloat16.
        model: the network whose head goes on from the features.
    """

    name: EngineName
    bf16: bool
    model: Classifier

    def features(self, images: GrayImage) -> Tensor:
        """The target map of a batch; may be called from several threads.

        Args:
            images: uint8 (B, S, S), B at least 1.

        Returns:
            (B, C, h, w) float32 on the engine's device; valid until this thread's next call.
        """
        ...


def make_engine(
    name: EngineName,
    model: Classifier,
    preprocessing: Preprocessing,
    device: torch.device,
    precision: Precision,
    parallel: int = 1,
    quantized: QuantizedGraph | None = None,
) -> Engine:
    """An engine for a network.

    Args:
        name: which.
        model: in eval mode, on CPU; it is not changed.
        preprocessing: of its bundle.
        device: where it runs; a GPU is for torch only.
        precision: as for `Predictor`.
        parallel: batches that will be asked for at the same time. torch's threads, or as many as
            batches where those are more, are divided among them.
        quantized: the backbone with int8 layers, which runs in place of the model's.

    Raises:
        UsageError: the engine is not installed, or cannot run on that device, in that precision or
            a quantized backbone.
    """
    if quantized is not None and name != "openvino":
        raise not_quantized(name)
    if name == "torch":
        return TorchEngine(model, preprocessing, device, bf16=use_bf16(device, precision))
    if device.type != "cpu":
        raise UsageError(
            f"engine '{name}' runs on CPUs and the device is '{device}'; use --device cpu, or "
            "--engine torch"
        )
    if name == "openvino":
        return OpenVinoEngine(model, preprocessing, precision, parallel, quantized)
    return OnnxEngine(model, preprocessing, precision, parallel)


def not_quantized(name: str) -> UsageError:
    """What an engine other than OpenVINO answers to a quantized bundle."""
    return UsageError(
        f"the bundle is quantized (int8) and engine '{name}' cannot run it; use --engine openvino, "
        "or the bundle in float that it was made of"
    )


class TorchEngine:
    """The network as torch runs it fastest, see `for_inference`."""

    name: EngineName = "torch"

    def __init__(
        self, model: Classifier, preprocessing: Preprocessing, device: torch.device, *, bf16: bool
    ) -> None:
        self.bf16 = bf16
        self.model = for_inference(model, device, bf16=bf16)
        self._device, self._preprocessing = device, preprocessing

    @torch.no_grad()
    def features(self, images: GrayImage) -> Tensor:
        """As `Engine.features`."""
        pixels = normalize(torch.from_numpy(images).to(self._device), self._preprocessing)
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self.bf16):
            features = self.model.features(pixels)
        return features.float()


class _ExportedEngine:
    """The backbone as another library runs it; head and maps stay in torch.

    Attributes:
        model: the head.
    """

    model: Classifier
    _run: Run

    def features(self, images: GrayImage) -> Tensor:
        """As `Engine.features`."""
        return torch.from_numpy(self._run(images)[0])


class OpenVinoEngine(_ExportedEngine):
    """The backbone in OpenVINO, on CPUs; see `run_in_openvino`."""

    name: EngineName = "openvino"

    def __init__(
        self,
        model: Classifier,
        preprocessing: Preprocessing,
        precision: Precision,
        parallel: int = 1,
        quantized: QuantizedGraph | None = None,
    ) -> None:
        core = openvino_core()
        self.bf16 = _openvino_bf16(core, precision)
        if quantized is None:
            self.model, network = _head_and_network(model, preprocessing)
            if self.bf16:  # OpenVINO rounds each weight by itself
                round_kernels(network)
            graph = to_openvino(network, preprocessing.image_size, (FEATURES,))
        else:
            self.model = model
            graph = core.read_model(quantized.xml, quantized.weights)
        self._run = run_in_openvino(graph, bf16=self.bf16, parallel=parallel)


class OnnxEngine(_ExportedEngine):
    """The backbone in ONNX Runtime, on CPUs, in float32: it has no bfloat16 there."""

    name: EngineName = "onnxruntime"

    def __init__(
        self,
        model: Classifier,
        preprocessing: Preprocessing,
        precision: Precision,
        parallel: int = 1,
    ) -> None:
        require("onnxruntime")
        if precision == "bf16":
            raise UsageError(
                "engine 'onnxruntime' has no bf16 on CPUs; use --precision fp32, or --engine "
                "openvino"
            )
        self.bf16 = False
        self.model, network = _head_and_network(model, preprocessing)
        self._run = run_in_onnxruntime(
            network, preprocessing.image_size, (FEATURES,), parallel=parallel
        )


def run_in_openvino(graph: Any, *, bf16: bool, parallel: int = 1) -> Run:  # noqa: ANN401
    """An `openvino.Model` as OpenVINO runs it on CPUs.

    It has threads of its own: as many streams as batches at a time. They are not pinned to cores,
    as several predictors on one machine would all be pinned to the same ones.
    """
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        "NUM_STREAMS": parallel,
        "INFERENCE_NUM_THREADS": _threads(parallel),
        "ENABLE_CPU_PINNING": False,
    }
    compiled = openvino_core().compile_model(graph, "CPU", settings)
    local = threading.local()  # a request is one thread's, and its outputs are views

    def run(images: GrayImage) -> list[NDArray[Any]]:
        if not hasattr(local, "request"):
            local.request = compiled.create_infer_request()
        found = local.request.infer([images], share_inputs=True, share_outputs=True)
        return [np.asarray(values) for values in found.values()]

    return run


def run_in_onnxruntime(
    module: nn.Module, size: int, outputs: tuple[str, ...], *, parallel: int = 1
) -> Run:
    """A module as ONNX Runtime runs it on CPUs, in float32."""
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = max(1, _threads(parallel) // parallel)
    # Threads that wait by spinning would take the cores of Ray's other workers.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    content = to_onnx(module, size, outputs)
    session = runtime.InferenceSession(content, options, ["CPUExecutionProvider"])

    def run(images: GrayImage) -> list[NDArray[Any]]:
        found: list[NDArray[Any]] = session.run(None, {INPUT: images})
        return found

    return run


def for_inference(model: Classifier, device: torch.device, *, bf16: bool) -> Classifier:
    """The same network as torch runs it fastest: folded, fused, weights cast and packed once.

    Args:
        model: in eval mode, on CPU; it is not changed.
        device: where it will run.
        bf16: it will run under autocast to bfloat16, which else casts the weights in every call.
    """
    ready = fold_batch_norms(model)
    # Elsewhere oneDNN refuses.
    by_onednn = device.type == "cpu" and (not bf16 or use_bf16(device, "auto"))
    if by_onednn:
        ready = fuse_activations(ready)
    ready = ready.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if bf16:
        round_kernels(ready.backbone)
        for module in ready.backbone.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.to(torch.bfloat16)
    if by_onednn:
        pack_weights(ready, bf16=bf16)
    return ready


def _head_and_network(
    model: Classifier, preprocessing: Preprocessing
) -> tuple[Classifier, Normalized]:
    """The network whose head torch runs, and what another engine runs of it."""
    network = Normalized(model, preprocessing).eval()
    return network.network, network


def _openvino_bf16(core: object, precision: Precision) -> bool:
    """Whether OpenVINO computes in bfloat16: on request, or where this CPU gains.

    Raises:
        UsageError: it was asked for and this CPU has none (OpenVINO would compute in float32
            without a word).
    """
    can = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")  # type: ignore[attr-defined]
    if precision == "bf16" and not can:
        raise UsageError(
            "engine 'openvino': this CPU has no bf16; use --precision fp32, or --engine torch"
        )
    return can and use_bf16(torch.device("cpu"), precision)


def _threads(parallel: int) -> int:
    """Threads for all batches together: Ray gives an actor one of torch's, a job asks for more."""
    return max(parallel, torch.get_num_threads())
