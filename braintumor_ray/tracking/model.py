"""A bundle as a model of MLflow.

MLflow copies this file into the model and runs it when the model is loaded ("models from code"):
nothing is pickled. `braintumor-ray` must be installed where that happens.
"""

import base64
from collections.abc import Sequence
from typing import Any

import mlflow.models
import mlflow.pyfunc
import numpy as np
import pandas as pd

IMAGE = "image"  # column of a data frame


class BundleModel(mlflow.pyfunc.PythonModel):
    """Predicts scans with the project's own `Predictor`."""

    def load_context(self, context: Any) -> None:  # noqa: ANN401 - MLflow's type
        """Load the bundle that is in the model's artifacts."""
        from braintumor_ray import Predictor

        self._predictor = Predictor.from_bundle(context.artifacts["bundle"])

    # MLflow would check the input by an annotation of it, and it has several kinds.
    def predict(  # type: ignore[no-untyped-def]  # noqa: D417
        self,
        context: Any,  # noqa: ANN401
        model_input,  # noqa: ANN001
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Predict scans.

        Args:
            model_input: uint8 gray arrays (H, W), in a list or as (n, H, W); or a data frame with
                the files' bytes in column `image`.
            params: `explain`, whether to compute maps; True unless given.

        Returns:
            A row per scan with the columns of `Predictor`; arrays as lists.

        Raises:
            ValueError: an input of another kind, or a file that cannot be decoded.
        """
        explain = bool((params or {}).get("explain", True))
        return as_frame(self._predictor(_images(model_input), explain=explain))


def as_frame(columns: dict[str, Any]) -> pd.DataFrame:
    """Columns of the predictor; those of several dimensions as nested lists, as JSON has them."""
    nested = {k: v.tolist() for k, v in columns.items() if getattr(v, "ndim", 1) > 1}
    return pd.DataFrame(columns | nested)


def _images(given: Any) -> Sequence[np.ndarray]:  # noqa: ANN401 - of several kinds
    if isinstance(given, pd.DataFrame):
        if IMAGE not in given.columns:
            raise ValueError(
                f"no column '{IMAGE}' among {', '.join(map(str, given.columns))}; it holds the "
                "bytes of image files"
            )
        return [_decoded(row, data) for row, data in enumerate(given[IMAGE])]
    if isinstance(given, np.ndarray) and given.ndim == 2:
        return [given]
    return list(given)


def _decoded(row: int, data: bytes | str) -> np.ndarray:
    """The pixels of a file; in JSON, as a server of MLflow takes it, its bytes are base64."""
    from braintumor_ray.decode.decode import decode

    found = decode(base64.b64decode(data) if isinstance(data, str) else bytes(data))
    if found.gray is None:
        raise ValueError(f"row {row}: {found.status}: {found.reason}; leave it out")
    return found.gray


mlflow.models.set_model(BundleModel())
