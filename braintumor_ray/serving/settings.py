"""What a service may use and accept: the arguments of the Serve config, checked."""

import hashlib
import math
import os
from dataclasses import MISSING, Field, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from braintumor_ray.choices import CamClass
from braintumor_ray.errors import UsageError, describe_validation
from braintumor_ray.options import (
    Bundle,
    Device,
    EngineOption,
    Option,
    PrecisionOption,
    TokenFile,
    TtaOption,
    annotated,
)

if TYPE_CHECKING:
    from braintumor_ray.decode.types import DecodeLimits

TOKEN_VARIABLE = "BRAINTUMOR_TOKEN"
MIB = 2**20
setting = partial(Option, hidden=True)


@dataclass(frozen=True)
class ServingSettings:
    """Everything but host and port; the keys of `args` in a Serve config."""

    bundle: Bundle
    device: Device = "auto"
    precision: PrecisionOption = "auto"
    engine: EngineOption = "torch"
    cam_class: Annotated[CamClass, setting("whose map is made")] = "predicted"
    tta: TtaOption = False
    replicas: Annotated[
        int,
        setting("predictors; the least where they scale by load, 0: none without load", least=0),
    ] = 1
    max_replicas: Annotated[int | None, setting("most predictors, scaled by load", least=1)] = None
    front_replicas: Annotated[
        int,
        setting("processes that speak HTTP and decode: one answers while one restarts", least=1),
    ] = 2
    gpus_per_replica: Annotated[float, setting("share of a GPU", least=0)] = 0
    torch_threads: Annotated[int | None, setting("of each predictor on CPU", least=1)] = None
    max_batch_size: Annotated[int, setting("scans per forward pass", least=1)] = 16
    max_queued: Annotated[
        int, Option("Requests in hand, over all fronts; more are answered 503.", least=1)
    ] = 128
    decoders: Annotated[int | None, setting("decoding processes per front", least=1)] = None
    decode_timeout_s: Annotated[float, setting("longest time for one file", least=1e-3)] = 10.0
    decode_memory_mib: Annotated[int, setting("most that one decoder may hold", least=256)] = 2048
    max_bytes: Annotated[int, setting("largest file", least=1)] = 64 * MIB
    max_pixels: Annotated[int, setting("most pixels in one frame", least=1)] = 64_000_000
    max_batch_files: Annotated[int, setting("most files in one request", least=1)] = 64
    max_batch_bytes: Annotated[int, setting("largest body of several files", least=1)] = 128 * MIB
    max_inflight_bytes: Annotated[int, setting("all bodies in hand, per front", least=1)] = (
        256 * MIB
    )
    body_timeout_s: Annotated[float, setting("longest silence inside a body", least=1e-3)] = 30.0
    token_file: TokenFile = None
    token_sha256: Annotated[
        str | None, setting("digest of the token", pattern="^[0-9a-f]{64}$")
    ] = None

    @property
    def most(self) -> int:
        """Largest number of predictors."""
        return self.max_replicas or self.replicas

    @property
    def queue_per_front(self) -> int:
        """Requests that one front may have in hand; a balancer fills the fronts evenly."""
        return math.ceil(self.max_queued / self.front_replicas)

    @property
    def limits(self) -> "DecodeLimits":
        """What one file may cost its decoder."""
        from braintumor_ray.decode.types import DecodeLimits

        return DecodeLimits(self.max_bytes, self.max_pixels)


def parse_settings(args: dict[str, object]) -> ServingSettings:
    """Check the arguments of a Serve config.

    Raises:
        UsageError: a key is unknown, or a value is not valid or does not fit the others.
    """
    from pydantic import ConfigDict, ValidationError, create_model

    declared: Any = {field.name: _checked_field(field) for field in fields(ServingSettings)}
    model = create_model("Checked", __config__=ConfigDict(extra="forbid"), **declared)
    try:
        settings = ServingSettings(**dict(model.model_validate(args)))
    except ValidationError as error:
        raise UsageError(f"serving settings: {describe_validation(error)}") from error
    if settings.replicas > (settings.max_replicas or settings.replicas) or not settings.most:
        raise UsageError(
            f"serving settings: replicas is {settings.replicas} and max_replicas is "
            f"{settings.max_replicas}; predictors scale from replicas to max_replicas, which must "
            "be at least 1 and not less"
        )
    return settings


def _checked_field(field: Field[Any]) -> tuple[Any, Any]:
    """The field as pydantic checks it, with the limits that it declares."""
    from pydantic import Field as Checked

    shown = annotated(field, Option)
    assert shown is not None
    kind = get_args(field.type)[0]
    default = ... if field.default is MISSING else field.default
    return kind, Checked(default, ge=shown.least, le=shown.most, pattern=shown.pattern)


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
