"""What needs the bundle: maps of any class, and the training scans that a scan is most like."""

import threading

import numpy as np
from numpy.typing import NDArray

from braintumor_ray.errors import UsageError
from braintumor_ray.predict.neighbors import FEATURES, load_neighbors
from braintumor_ray.predict.results import ResultsFolder
from braintumor_ray.types import GrayImage

NO_BUNDLE = "not shown: start the review with --bundle RUN/bundle"


class Explainer:
    """The bundle that scored the results, for one scan at a time.

    Args:
        location: of the bundle.
        device: as for `Predictor`.
        folder: of the results.

    Raises:
        BundleError: not a bundle.
        UsageError: the results were made by another bundle.
    """

    def __init__(self, location: str, device: str, folder: ResultsFolder) -> None:
        from braintumor_ray.predict.predictor import Predictor

        self._predictor = Predictor.from_bundle(
            location, device, methods=folder.meta["cam_methods"]
        )
        fingerprint = self._predictor.bundle.fingerprint
        if fingerprint != folder.meta["bundle_fingerprint"]:
            raise UsageError(
                f"--bundle '{location}' ({fingerprint[:8]}) did not score '{folder.location}' "
                f"({folder.meta['bundle_fingerprint'][:8]}); give the one that did"
            )
        self._turn = threading.Lock()
        run = location.rstrip("/").rpartition("/")[0] or "."
        self.neighbors = load_neighbors(run)

    def cam(self, gray: GrayImage, class_name: str, method: str) -> NDArray[np.float32]:
        """The map of a class, float32 (h, w).

        Raises:
            UsageError: no class of the bundle.
        """
        with self._turn:
            columns = self._predictor.explaining(class_name)([gray])
        return np.asarray(columns[method][0], np.float32)

    def pooled(self, gray: GrayImage) -> NDArray[np.float32]:
        """What the network sees in a scan, float32 (C,)."""
        square, _ = self._predictor.bundle.preprocessing.square(gray)
        with self._turn:
            return self._predictor.forward(square[None], explain=False).pooled[0]


def missing_neighbors(network: Explainer | None) -> str | None:
    """Why no neighbors are shown; None: they are."""
    if network is None:
        return NO_BUNDLE
    if network.neighbors is None:
        return f"not shown: the run of this bundle kept no {FEATURES} (runs of today do)"
    return None
