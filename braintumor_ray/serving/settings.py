"""What a service may use and accept: the arguments of the Serve config, checked."""

import hashlib
import math
import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from braintumor_ray.decode.types import DecodeLimits
from braintumor_ray.errors import UsageError, describe_validation

TOKEN_VARIABLE = "BRAINTUMOR_TOKEN"
MIB = 2**20


class ServingSettings(BaseModel):
    """Everything but host and port; the keys of `args` in a Serve config."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: str = Field(description="bundle directory or URI, readable where the replicas run")
    device: str = Field("auto", description="auto, cpu or cuda")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    cam_class: Literal["predicted", "positive"] = "predicted"
    replicas: int = Field(1, ge=1, description="predictors; the least where they scale by load")
    max_replicas: int | None = Field(None, ge=1, description="most predictors, scaled by load")
    front_replicas: int = Field(
        2, ge=1, description="processes that speak HTTP and decode: one answers while one restarts"
    )
    gpus_per_replica: float = Field(0, ge=0)
    torch_threads: int | None = Field(None, ge=1, description="of each predictor on CPU")
    max_batch_size: int = Field(16, ge=1, description="scans per forward pass")
    max_queued: int = Field(128, ge=1, description="requests in hand, over all fronts, before 503")
    decoders: int | None = Field(None, ge=1, description="decoding processes per front")
    decode_timeout_s: float = Field(10.0, gt=0)
    decode_memory_mib: int = Field(2048, ge=256, description="most that one decoder may hold")
    max_bytes: int = Field(64 * MIB, ge=1, description="largest file")
    max_pixels: int = Field(64_000_000, ge=1, description="most pixels in one frame")
    max_batch_files: int = Field(64, ge=1)
    max_batch_bytes: int = Field(128 * MIB, ge=1, description="largest body of several files")
    max_inflight_bytes: int = Field(256 * MIB, ge=1, description="all bodies in hand, per front")
    body_timeout_s: float = Field(30.0, gt=0, description="longest silence inside a body")
    token_file: str | None = Field(None, description="read where the application is built")
    token_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")

    @property
    def queue_per_front(self) -> int:
        """Requests that one front may have in hand; a balancer fills the fronts evenly."""
        return math.ceil(self.max_queued / self.front_replicas)

    @property
    def limits(self) -> DecodeLimits:
        """What one file may cost its decoder."""
        return DecodeLimits(self.max_bytes, self.max_pixels)


def parse_settings(args: dict[str, object]) -> ServingSettings:
    """Check the arguments of a Serve config.

    Raises:
        UsageError: a key is unknown or a value cannot be meant.
    """
    try:
        return ServingSettings.model_validate(args)
    except ValidationError as error:
        raise UsageError(f"serving settings: {describe_validation(error)}") from error


def token_digest(settings: ServingSettings) -> str | None:
    """SHA-256 of the token in hex, or None where the service asks for none.

    From `token_sha256`, else the file `token_file`, else the environment (BRAINTUMOR_TOKEN). Only
    the digest travels to the replicas: the cluster never stores the token.

    Raises:
        UsageError: the file cannot be read, or the token is empty or not plain ASCII.
    """
    if settings.token_sha256:
        return settings.token_sha256
    if settings.token_file:
        try:
            text = Path(settings.token_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"token file '{settings.token_file}' cannot be read "
                f"({type(error).__name__}); give a text file with the token alone"
            ) from error
        return _digest(text, f"token file '{settings.token_file}'")
    if TOKEN_VARIABLE in os.environ:
        return _digest(os.environ[TOKEN_VARIABLE], f"${TOKEN_VARIABLE}")
    return None


def _digest(text: str, source: str) -> str:
    token = text.strip()
    if not token or not token.isascii() or any(c.isspace() for c in token):
        raise UsageError(
            f"{source} holds no token: it must be one word of ASCII; "
            "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return hashlib.sha256(token.encode()).hexdigest()
