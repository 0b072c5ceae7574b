"""Where the heat of a map is: background, rim (skull and scalp) or inside of the head.

Everything here refers to the network's input: the S x S picture to which a scan of any aspect
was squashed. The shares of heat are those of the bilinearly upsampled map, but nothing is
upsampled: the adjoint of the upsampling is applied to the regions once, and a share is then a
weighted sum over the raw h x w map.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from braintumor_ray.decode.head import head_mask
from braintumor_ray.errors import UsageError

BACKGROUND, RIM, INSIDE = 0, 1, 2
RIM_SHARE_OF_DIAMETER = 0.1


class Shares(NamedTuple):
    """Shares of heat or of area, each in [0, 1], together 1; all None where there is none."""

    inside: float | None
    rim: float | None
    background: float | None


NO_SHARES = Shares(None, None, None)


def head_regions(gray: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """Split the network's input picture into background, rim and inside of the head.

    The head is the largest filled outline after a light blur and a threshold. It follows the
    scalp, not the brain. The rim is every pixel of the head within a tenth of the head's
    equivalent diameter (of the circle of equal area) of the head's border; where the picture
    cuts the head off, the picture's edge is border.

    Args:
        gray: uint8 (S, S), the scan as squashed for the network, before normalization.

    Returns:
        uint8 (S, S) with 0 background, 1 rim, 2 inside; None where no plausible head was found
        (flat picture, or an outline of less than 5% or more than 95% of the picture).

    Raises:
        UsageError: `gray` is not a two-dimensional uint8 array.
    """
    _check_gray(gray)
    head = head_mask(gray)
    if head is None:
        return None
    padded = cv2.copyMakeBorder(head, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_5)[1:-1, 1:-1]
    diameter = 2.0 * np.sqrt(cv2.countNonZero(head) / np.pi)
    return head + (depth > RIM_SHARE_OF_DIAMETER * diameter).astype(np.uint8)


def region_weights(
    regions: NDArray[np.uint8] | None, cam_shape: tuple[int, int]
) -> NDArray[np.float32]:
    """Give each raw map pixel its weight in each region of the upsampled map.

    `sum(cam * weights[r])` equals the sum over region r of the map upsampled to S x S
    (bilinear, align_corners=False): the adjoint of the upsampling, applied to the region.

    Args:
        regions: uint8 (S, S) from `head_regions`, or None for no head.
        cam_shape: (h, w) of the raw maps.

    Returns:
        float32 (3, h, w), indexed by `BACKGROUND`, `RIM`, `INSIDE`; zeros where there is no head.
    """
    height, width = cam_shape
    if regions is None:
        return np.zeros((3, height, width), np.float32)
    rows = _upsampling_matrix(regions.shape[0], height)
    columns = _upsampling_matrix(regions.shape[1], width)
    masks = np.hstack([np.minimum(regions, 1), regions == INSIDE])  # head | inside
    # einsum, not @: the threads that BLAS starts would take torch's cores.
    summed = np.einsum("hs,sw->hw", rows, masks.astype(np.float32)).reshape(height, 2, -1)
    head, inside = np.einsum("hks,ws->khw", summed, columns)
    everywhere = np.outer(rows.sum(axis=1), columns.sum(axis=1))
    return np.stack([everywhere - head, head - inside, inside]).clip(min=0)  # differences round


def head_weights(
    squares: Sequence[NDArray[np.uint8]], cam_shape: tuple[int, int]
) -> NDArray[np.float32]:
    """`region_weights` of each scan's `head_regions`.

    Args:
        squares: uint8 (S, S) each, the scans as squashed for the network.
        cam_shape: (h, w) of the raw maps.

    Returns:
        float32 (n, 3, h, w); a scan's are all zero where no plausible head was found.
    """
    found = [region_weights(head_regions(square), cam_shape) for square in squares]
    return np.array(found, np.float32).reshape(-1, 3, *cam_shape)  # of no scans, too


def heat_shares(cam: NDArray[Any], weights: NDArray[np.float32]) -> Shares:
    """Share of a map's heat in each region.

    Args:
        cam: raw map (h, w), any float dtype, values >= 0 (after the ReLU).
        weights: float32 (3, h, w) from `region_weights` for the same scan.

    Returns:
        Shares that sum to 1; all None where the map or the head mask is empty.

    Raises:
        UsageError: the map's and the weights' shapes differ.
    """
    row = heat_shares_batch(cam[np.newaxis], weights[np.newaxis])[0]
    return NO_SHARES if np.isnan(row).any() else Shares(*row.tolist())


def heat_shares_batch(cams: NDArray[Any], weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """Share of each map's heat in each region, for a batch.

    Args:
        cams: raw maps (B, h, w), any float dtype, values >= 0.
        weights: float32 (B, 3, h, w), one `region_weights` per scan.

    Returns:
        float64 (B, 3) in the order inside, rim, background; rows sum to 1, or are NaN where
        the map or the head mask is empty or the map is not finite.

    Raises:
        UsageError: the shapes do not belong together.
    """
    if weights.shape != (cams.shape[0], 3, *cams.shape[1:]):
        raise UsageError(
            f"maps of shape {cams.shape} and region weights of shape {weights.shape} do not "
            "belong together; make the weights with region_weights(regions, cam.shape)"
        )
    heat = np.einsum("bhw,brhw->br", cams, weights.astype(np.float64))
    heat = heat[:, [INSIDE, RIM, BACKGROUND]]
    total = heat.sum(axis=1, keepdims=True)
    usable = np.isfinite(total) & (total > 0)
    return np.where(usable, heat / np.where(usable, total, 1.0), np.nan)


def area_shares(regions: NDArray[np.uint8] | None) -> Shares:
    """Share of the picture's area in each region; all None where there is no head.

    Args:
        regions: uint8 (S, S) from `head_regions`.
    """
    if regions is None:
        return NO_SHARES
    head = cv2.countNonZero(regions)
    inside = cv2.countNonZero(cv2.compare(regions, INSIDE, cv2.CMP_EQ))
    pixels = regions.size
    return Shares(inside / pixels, (head - inside) / pixels, (pixels - head) / pixels)


def looks_at_border(heat: Shares, area: Shares) -> bool:
    """Whether the rim or the background holds more than its area's share of the heat.

    False where either is unknown: an empty map or mask is no evidence.
    """
    if heat.rim is None or heat.background is None or area.rim is None or area.background is None:
        return False
    return heat.rim > area.rim or heat.background > area.background


@lru_cache(maxsize=64)
def _upsampling_matrix(size: int, raw: int) -> NDArray[np.float32]:
    """Bilinear upsampling from `raw` to `size` samples, align_corners=False: float32 (raw, size).

    Shared by every caller of the cache: not to be changed.
    """
    position = np.clip((np.arange(size) + 0.5) * raw / size - 0.5, 0, raw - 1)
    left = np.floor(position).astype(int)
    right = np.minimum(left + 1, raw - 1)
    matrix = np.zeros((raw, size), np.float32)
    np.add.at(matrix, (left, np.arange(size)), 1 - (position - left))
    np.add.at(matrix, (right, np.arange(size)), position - left)
    return matrix


def _check_gray(gray: NDArray[np.uint8]) -> None:
    if gray.ndim != 2 or gray.dtype != np.uint8:
        raise UsageError(
            f"a head is found in a uint8 picture (S, S), not {gray.dtype} {gray.shape}; "
            "pass the gray scan as resized for the network, before normalization"
        )
