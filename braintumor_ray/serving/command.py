"""What `braintumor-ray serve` does, inside an open Ray session."""

import socket
from dataclasses import asdict, replace
from ipaddress import ip_address

from braintumor_ray.errors import UsageError
from braintumor_ray.progress import Log
from braintumor_ray.serving.settings import ServingSettings, parse_settings, token_digest
from braintumor_ray.storage import absolute


def serving_settings(chosen: ServingSettings) -> ServingSettings:
    """Check what was chosen, before Ray starts; the token becomes its digest.

    Raises:
        BundleError: not a bundle, or its files do not belong together: found here, not by
            replicas that start again and again.
        UsageError: a setting or the token cannot be used.
    """
    from braintumor_ray.models.bundle import check_bundle  # with torch, which a review spares

    check_bundle(chosen.bundle)
    settings = parse_settings(asdict(replace(chosen, bundle=absolute(chosen.bundle))))
    return replace(settings, token_sha256=token_digest(settings))


def serve_command(settings: ServingSettings, host: str, port: int, log: Log) -> None:
    """Serve until stopped; blocks. Call it inside `ray_session`.

    Args:
        settings: from `serving_settings`.
        host: address to listen on.
        port: TCP port.
        log: prints a line for people.

    Raises:
        UsageError: the port is taken.
    """
    from braintumor_ray.serving import app
    from braintumor_ray.serving.batched import resolve_serving_engine

    check_port(host, port)
    on_gpu = settings.device in ("auto", "cuda") and settings.engine in ("auto", "torch")
    if on_gpu and app.gpus_in_cluster():
        settings = replace(settings, gpus_per_replica=1.0)
    settings, engine = resolve_serving_engine(settings)
    secured = token_digest(settings) is not None
    if not secured and not is_loopback(host):
        log(f"no token is set: whoever reaches {authority(host, port)} may use the service")

    def ready() -> None:
        log(f"serving {settings.bundle} at http://{authority(host, port)}/ (documents at /docs)")
        log(engine)
        log("token: " + ("asked for" if secured else "none (set BRAINTUMOR_TOKEN)"))
        for address in app.metrics_addresses():
            log(f"metrics: {address}")
        log("research software, not a medical device; Ctrl-C ends it")

    app.run(settings, host, port, ready)


def authority(host: str, port: int) -> str:
    """Host and port as URLs have them: an address of IPv6 in brackets (RFC 3986, 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_port(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on.

    Raises:
        UsageError: the port is taken, or the address is not this machine's.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"cannot listen on {authority(host, port)} ({error.strerror}); choose another "
                "--port"
            ) from error
