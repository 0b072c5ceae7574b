"""What `braintumor-ray serve` does, inside an open Ray session."""

import socket
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from braintumor_ray.errors import UsageError
from braintumor_ray.models.bundle import load_bundle
from braintumor_ray.serving.settings import ServingSettings, parse_settings, token_digest
from braintumor_ray.storage import absolute


def serving_settings(
    *,
    bundle: str,
    replicas: int | tuple[int, int] = 1,
    token_file: Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    max_queued: int = 128,
) -> ServingSettings:
    """Check what the command was given, before Ray starts.

    Args:
        bundle: bundle directory or URI.
        replicas: predictors, or (least, most) scaled by load.
        token_file: file with the token; else $BRAINTUMOR_TOKEN; else no token is asked for.
        device: auto, cpu or cuda.
        precision: auto, fp32 or bf16.
        max_queued: requests in hand before further ones are refused.

    Raises:
        BundleError: not a bundle.
        UsageError: an option or the token cannot be used.
    """
    load_bundle(bundle)
    least, most = replicas if isinstance(replicas, tuple) else (replicas, None)
    args: dict[str, Any] = {
        "bundle": absolute(bundle),
        "replicas": least,
        "max_replicas": most,
        "device": device,
        "precision": precision,
        "max_queued": max_queued,
        "token_file": str(token_file) if token_file else None,
    }
    settings = parse_settings(args)
    return settings.model_copy(update={"token_sha256": token_digest(settings)})


def serve_command(
    settings: ServingSettings, host: str, port: int, say: Callable[[str], None]
) -> None:
    """Serve until stopped; blocks. Call it inside `ray_session`.

    Args:
        settings: from `serving_settings`.
        host: address to listen on; loopback unless the operator says otherwise.
        port: TCP port.
        say: prints a line for people.

    Raises:
        UsageError: the port is taken.
    """
    from braintumor_ray.serving import app

    _check_port(host, port)
    if settings.device in ("auto", "cuda") and app.gpus_in_cluster():
        settings = settings.model_copy(update={"gpus_per_replica": 1.0})
    secured = token_digest(settings) is not None
    if not secured and not _is_loopback(host):
        say(f"no token is set: whoever reaches {host}:{port} may use the service")

    def ready() -> None:
        say(f"serving {settings.bundle} at http://{host}:{port}/ (documents at /docs)")
        say("token: " + ("asked for" if secured else "none (set BRAINTUMOR_TOKEN)"))
        for address in app.metrics_addresses():
            say(f"metrics: {address}")
        say("research software, not a medical device; Ctrl-C ends it")

    app.run(settings, host, port, ready)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"cannot listen on {host}:{port} ({error.strerror}); choose another --port"
            ) from error
