"""Libraries that only some commands need; they come with an extra of the package."""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from braintumor_ray.errors import UsageError

EXTRAS = {  # package: our extra
    "cleanlab": "labels",
    "cryptography": "hospital",
    "dicomweb_client": "hospital",
    "duckdb": "sql",
    "highdicom": "hospital",
    "huggingface_hub": "hub",
    "mlflow": "mlflow",
    "nncf": "quantize",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "pyiceberg": "iceberg",
    "pynetdicom": "hospital",
    "requests": "hospital",
}


def is_installed(package: str) -> bool:
    """Whether an optional package is there; does not import it."""
    return find_spec(package) is not None


def require(module: str) -> ModuleType:
    """Import an optional package, or a module of one.

    Raises:
        UsageError: it is not installed; names the extra that brings it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UsageError(
            f"'{package}' cannot be imported ({error}); install it with: "
            f"pip install 'braintumor-ray[{EXTRAS[package]}]'"
        ) from error
