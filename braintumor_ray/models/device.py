"""Where a network runs, and in which precision."""

import os
from pathlib import Path

import torch

from braintumor_ray.choices import Precision
from braintumor_ray.errors import UsageError


def choose_device(name: str) -> torch.device:
    """'auto', 'cpu' or 'cuda[:n]' as a torch device.

    Raises:
        UsageError: CUDA was asked for and there is none, or the name is unknown.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device '{name}' is unknown; use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device '{name}': torch sees no CUDA GPU here; use --device cpu")
    return device


def use_bf16(device: torch.device, precision: Precision) -> bool:
    """Whether to run the backbone in bfloat16: on request, or where the hardware gains."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and _cpu_has_bf16()


def _cpu_has_bf16() -> bool:
    if os.uname().sysname != "Linux":
        return False
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return "avx512_bf16" in flags or "amx_bf16" in flags
