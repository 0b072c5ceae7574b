"""Brain-tumor MRI classification that scales and explains itself. Not a medical device."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from braintumor_ray.predict.predictor import Predictor
    from braintumor_ray.predict.results import read_results

__version__ = "0.1.0"
__all__ = ["Predictor", "__version__", "read_results"]

_LAZY = {
    "Predictor": "braintumor_ray.predict.predictor",
    "read_results": "braintumor_ray.predict.results",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the type depends on the name
    """Import public names on first use, so that importing the package loads no torch."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
