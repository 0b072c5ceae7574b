"""The command that answers over HTTP: serve."""

from dataclasses import replace
from typing import Annotated

import typer

from braintumor_ray.cli.console import log, short_errors
from braintumor_ray.cli.options import Host, Port, takes
from braintumor_ray.monitoring.options import LiveMetrics
from braintumor_ray.options import parse_range
from braintumor_ray.serving.settings import ServingSettings

app = typer.Typer()


@app.command()
@short_errors
@takes(settings=ServingSettings, live=LiveMetrics)
def serve(
    settings: ServingSettings,
    live: LiveMetrics,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    replicas: Annotated[
        str,
        typer.Option(
            metavar="N|MIN:MAX", help="Predictors; MIN:MAX: scaled by load, 0:1 also to none."
        ),
    ] = "1",
) -> None:
    """Answer predictions over HTTP, with a page at /; ends with Ctrl-C. See docs/serving.md."""
    from braintumor_ray.local_ray import ray_session
    from braintumor_ray.serving.command import serve_command, serving_settings
    from braintumor_ray.serving.haproxy import haproxy_environment

    number = parse_range("--replicas", replicas, least=0)
    least, most = number if isinstance(number, tuple) else (number, None)
    settings = serving_settings(replace(settings, replicas=least, max_replicas=most))
    with haproxy_environment(), ray_session((most or least) + 1, live.metrics_port):
        serve_command(settings, host, port, log)
