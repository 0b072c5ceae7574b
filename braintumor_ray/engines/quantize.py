"""A backbone with int8 layers: NNCF's post-training quantization of OpenVINO's graph.

Scales of weights and activations come from calibration scans; no labels, no gradients. The head and
the maps are not part of the graph: they are computed from the target map in float32, as always.
"""

import io
import logging
import os
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.engines.convert import to_openvino
from braintumor_ray.engines.engine import FEATURES
from braintumor_ray.engines.graph import Normalized
from braintumor_ray.extras import require
from braintumor_ray.models.bundle import QuantizedGraph
from braintumor_ray.models.classifier import Classifier
from braintumor_ray.types import GrayImage


def quantize_backbone(
    model: Classifier, preprocessing: Preprocessing, images: GrayImage
) -> QuantizedGraph:
    """The backbone of a network with int8 layers.

    Args:
        model: in eval mode, on CPU; it is not changed.
        preprocessing: of its bundle.
        images: calibration scans, uint8 (n, S, S), n at least 1.

    Raises:
        UsageError: NNCF, OpenVINO or onnx is not installed.
    """
    network = Normalized(model, preprocessing).eval()
    graph = to_openvino(network, preprocessing.image_size, (FEATURES,))
    return _packed(quantize_graph(graph, images))


def quantize_graph(graph: Any, images: GrayImage) -> Any:  # noqa: ANN401 - openvino.Model, twice
    """As `quantize_backbone`, of any `openvino.Model` that takes uint8 (n, S, S)."""
    nncf = _quiet_nncf()
    batches = [images[i : i + 1] for i in range(len(images))]
    with redirect_stdout(io.StringIO()):  # its progress bars: stdout is for results
        return nncf.quantize(
            graph,
            nncf.Dataset(batches),
            preset=nncf.QuantizationPreset.MIXED,  # asymmetric activations: SiLU is below 0, too
            subset_size=len(batches),
        )


def _quiet_nncf() -> ModuleType:
    """NNCF without its reports of use to its makers, which it sends unless this is set."""
    require("openvino")
    with patch.dict(os.environ, {"NNCF_CI": "1"}):  # looked at when it is imported
        nncf = require("nncf")
    nncf.set_log_level(logging.ERROR)
    return nncf


def _packed(graph: Any) -> QuantizedGraph:  # noqa: ANN401 - openvino.Model
    openvino = require("openvino")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.xml"
        openvino.save_model(graph, path, compress_to_fp16=False)
        return QuantizedGraph(path.read_bytes(), path.with_suffix(".bin").read_bytes())
