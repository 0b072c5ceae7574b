"""The command that answers over HTTP: serve."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from braintumor_ray.cli.console import say, short_errors
from braintumor_ray.cli.options import BundleOption, Device, Precision, check_choice

app = typer.Typer()


@app.command()
@short_errors
def serve(
    bundle: BundleOption,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    replicas: Annotated[str, typer.Option(help="Predictors, or MIN:MAX (autoscaled).")] = "1",
    token_file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="File with the token that requests must carry (else BRAINTUMOR_TOKEN)."),
    ] = None,
    max_queued: Annotated[
        int, typer.Option(min=1, help="Requests in hand at a time; more are answered 503.")
    ] = 128,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Answer predictions over HTTP, with a page at /; ends with Ctrl-C. See docs/serving.md."""
    from braintumor_ray.commands import parse_range
    from braintumor_ray.local_ray import ray_session
    from braintumor_ray.serving.command import serve_command, serving_settings
    from braintumor_ray.serving.haproxy import haproxy_environment

    check_choice("--precision", precision, ("auto", "fp32", "bf16"))
    number = parse_range("--replicas", replicas)
    settings = serving_settings(
        bundle=bundle,
        replicas=number,
        token_file=token_file,
        device=device,
        precision=precision,
        max_queued=max_queued,
    )
    predictors = number if isinstance(number, int) else number[1]
    with haproxy_environment(), ray_session(predictors + 1):
        serve_command(settings, host, port, say)
