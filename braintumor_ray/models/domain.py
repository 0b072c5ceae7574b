"""Does an input look like the training scans? Distance of pooled features, no labels needed."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

FloatArray = npt.NDArray[np.floating]
IN_DOMAIN = 0.99
# The tail of a few hundred scans is uncertain: at the bare quantile up to 3% of other scans are
# flagged, with this much slack under 1%; foreign pictures are farther still.
DOMAIN_SLACK = 1.1


@dataclass(frozen=True)
class DomainDetector:
    """Distance to the training features: Mahalanobis inside their main subspace, plus the residual.

    Features count by their direction only, scaled to unit length: flat pictures and drawings have
    weak features, which without it lie near the mean. Both parts are divided by their mean over the
    training scans, so that a typical training scan has a distance near sqrt(2). (Residual and
    in-subspace distance as in Wang et al. 2022, "ViM".)

    Attributes:
        mean: (C,) mean of the training features at unit length.
        basis: (C, r) orthonormal principal directions.
        scale: (r,) standard deviation along each.
        residual: root mean square length of what the subspace leaves over.
    """

    mean: npt.NDArray[np.float32]
    basis: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]
    residual: float

    @classmethod
    def fit(cls, features: FloatArray, rank: int = 64) -> "DomainDetector":
        """Fit to pooled features (n, C), n >= 2."""
        x: FloatArray = np.asarray(features, dtype=np.float64)
        if x.ndim != 2 or len(x) < 2:
            raise ValueError(f"need features (n >= 2, C), got {x.shape}")
        x = _unit_length(x)
        rank = max(1, min(rank, len(x) // 4, x.shape[1] - 1))
        mean = x.mean(axis=0)
        _, singular, directions = np.linalg.svd(x - mean, full_matrices=False)
        basis = directions[:rank].T
        scale = np.maximum(singular[:rank] / np.sqrt(len(x) - 1), 1e-6)
        rest = (x - mean) - (x - mean) @ basis @ basis.T
        residual = max(float(np.sqrt((rest**2).sum(axis=1).mean())), 1e-6)
        return cls(
            mean.astype(np.float32), basis.astype(np.float32), scale.astype(np.float32), residual
        )

    def distance(self, features: FloatArray) -> npt.NDArray[np.float32]:
        """Distance of pooled features (n, C), float32 (n,), 0 upwards."""
        centered = _unit_length(np.asarray(features, dtype=np.float32)) - self.mean
        # torch multiplies, as NumPy's BLAS has threads of its own, which take torch's cores.
        basis = torch.from_numpy(self.basis)
        coordinates = torch.from_numpy(centered) @ basis
        rest = centered - (coordinates @ basis.T).numpy()
        inside = ((coordinates.numpy() / self.scale) ** 2).mean(axis=1)
        outside = (rest**2).sum(axis=1) / self.residual**2
        return np.asarray(np.sqrt(inside + outside), dtype=np.float32)


def domain_limit(distances: FloatArray) -> float:
    """A limit that at most 1% of the validation scans exceed; from their distances (n,)."""
    return DOMAIN_SLACK * float(np.quantile(distances, IN_DOMAIN, method="higher"))


def _unit_length(features: FloatArray) -> FloatArray:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(lengths, 1e-12))


COORDINATES = 16  # a batch's mean in more directions drowns in noise: measured at 8 to 64
_FLOOR = 1e-3  # features below this are as good as none
_FEW = 8  # scans of a group whose own mean says more than that of all


@dataclass(frozen=True)
class ArchiveReference:
    """How known scans lie, so that an archive as a whole can be compared with them.

    One scan in twenty of another hospital looks strange by itself; a hundred of them differ
    plainly in their mean. Coordinates are taken from the mean of the scans that are decided alike,
    as an archive with more tumors is no stranger than one with fewer.

    Attributes:
        centers: (2, C) mean log features of scans decided negative, and positive.
        basis: (C, r) orthonormal principal directions of what is left.
        scale: (r,) standard deviation along each.
        scans: (2,) scans behind each center.
    """

    centers: npt.NDArray[np.float32]
    basis: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]
    scans: npt.NDArray[np.int64]

    @classmethod
    def fit(cls, features: FloatArray, positive: npt.NDArray[np.bool_]) -> "ArchiveReference":
        """Fit to pooled features (n, C), n >= 2, and to what was decided, bool (n,)."""
        x = _log(features)
        groups = [x[positive == decided] for decided in (False, True)]
        groups = [group if len(group) >= _FEW else x for group in groups]
        centers = np.stack([group.mean(axis=0) for group in groups])
        rest = x - centers[positive.astype(int)]
        _, singular, directions = np.linalg.svd(rest, full_matrices=False)
        rank = max(1, min(COORDINATES, len(x) // 4, x.shape[1]))
        scale = np.maximum(singular[:rank] / np.sqrt(len(x) - 1), 1e-6)
        return cls(
            centers.astype(np.float32),
            directions[:rank].T.astype(np.float32),
            scale.astype(np.float32),
            np.array([len(group) for group in groups]),
        )

    def coordinates(
        self, features: FloatArray, positive: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.float32]:
        """Where scans lie, float32 (n, r) in standard deviations of the known scans.

        Args:
            features: pooled, (n, C).
            positive: what was decided, bool (n,).
        """
        rest = _log(features) - self.centers[positive.astype(int)]
        return np.asarray(rest @ self.basis / self.scale, dtype=np.float32)


def _log(features: FloatArray) -> FloatArray:
    """Log features, with their sign: what differs between scanners multiplies them."""
    return np.arcsinh(np.asarray(features, dtype=np.float64) / _FLOOR)
