"""Pretrained weights: from a file, from the hub, or none."""

import hashlib
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from torch import Tensor, nn

from braintumor_ray.errors import WeightsError
from braintumor_ray.models.classifier import size_argument
from braintumor_ray.models.small_cnn import Cnn3Conv, SmallCnn
from braintumor_ray.models.vision_libraries import import_timm

_CLASSIFIERS = ("classifier.", "fc.", "head.fc.", "head.", "last_linear.", "AuxLogits.")


def load_pretrained(backbone: nn.Module, name: str, source: str, size: int | None = None) -> str:
    """Load weights into a backbone in place; returns a line that says what was loaded.

    Args:
        backbone: as `build_backbone(name, size)` gives it.
        name: the backbone's name.
        source: 'imagenet' (timm's pretrained weights, from the hub or its cache), 'none', or the
            path of a .safetensors file with timm's keys.
        size: as of `build_backbone`: positions of the hub's weights are resampled to it.

    Raises:
        WeightsError: the file does not fit or the hub cannot be reached; names the way out.
    """
    if source == "none":
        return "weights: random"
    if isinstance(backbone, Cnn3Conv | SmallCnn):
        if source == "imagenet":
            return f"weights: random ('{name}' has no pretrained weights)"
    elif source == "imagenet":
        backbone.load_state_dict(_from_hub(name, size), strict=False)
        return f"weights: timm's pretrained {name}"
    path = Path(source)
    _check_fit(backbone, _read(path), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"weights: {path.name} (sha256 {digest[:12]})"


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise WeightsError(
            f"--weights '{path}': no such file; give a .safetensors file, 'imagenet' or 'none'"
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"--weights '{path}' is not a safetensors file: {error}") from error


def _check_fit(backbone: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load strictly, leaving out only the classifier that the backbone does not have."""
    ours = backbone.state_dict()
    extra = [k for k in state if k not in ours and not k.startswith(_CLASSIFIERS)]
    missing = [k for k in ours if k not in state]
    shapes = [k for k in ours if k in state and state[k].shape != ours[k].shape]
    if extra or missing or shapes:
        raise WeightsError(
            f"--weights '{path}' does not fit the backbone: {len(missing)} keys missing, "
            f"{len(extra)} unknown, {len(shapes)} of another shape "
            f"(first: {(missing + extra + shapes)[0]}); is it the file of another architecture?"
        )
    backbone.load_state_dict({k: state[k] for k in ours})


def _from_hub(name: str, size: int | None) -> dict[str, Tensor]:
    timm = import_timm()
    config = timm.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        raise WeightsError(
            f"timm has no pretrained weights for '{name}'; use --weights FILE or --weights none"
        )
    way_out = (
        "use --weights FILE (a .safetensors file with timm's keys) or --weights none, "
        "or connect once so that the weights are cached"
    )
    if not _cached(config.hf_hub_id) and not _hub_reachable():
        raise WeightsError(f"pretrained weights for '{name}': the hub cannot be reached; {way_out}")
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0, **size_argument(name, size))
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"pretrained weights for '{name}': {error}; {way_out}") from error
    state: dict[str, Tensor] = model.state_dict()
    return state


def _cached(hub_id: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    if not hub_id:
        return False
    names = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(hub_id, name), str) for name in names)


def _hub_reachable(timeout_s: float = 5.0) -> bool:
    """Ask once and quickly; the hub's own client would retry for most of a minute."""
    from huggingface_hub import constants

    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return True  # only the proxy knows
    if constants.HF_HUB_OFFLINE:
        return False
    host = urlsplit(constants.ENDPOINT)
    try:
        address = (host.hostname or "", host.port or 443)
        with socket.create_connection(address, timeout=timeout_s):
            return True
    except OSError:
        return False
