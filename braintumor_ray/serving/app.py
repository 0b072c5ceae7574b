"""The service on Ray Serve: fronts that speak HTTP and decode, predictors that batch.

`build` is the import path of a Serve config; `run` serves from this process's Ray session.
"""

import asyncio
import logging
import math
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from typing import Any

from ray import serve
from ray.exceptions import ActorUnavailableError, RayActorError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig
from ray.util.metrics import Histogram

from braintumor_ray.monitoring.meters import RequestMeters
from braintumor_ray.serving.access import MeteredApp
from braintumor_ray.serving.batching import Gatherer
from braintumor_ray.serving.decoders import DecoderPool
from braintumor_ray.serving.model import MapChoice, ModelCard, Row, batches_at_once
from braintumor_ray.serving.problems import busy
from braintumor_ray.serving.service import Service, not_ready
from braintumor_ray.serving.settings import ServingSettings, parse_settings, token_digest
from braintumor_ray.serving.web import ROUTES, create_app
from braintumor_ray.types import GrayImage

APP_NAME = "braintumor"
CALLS_PER_REPLICA = 4  # two that its lanes work at, and two that wait
_TRIES = 3  # a predictor that dies loses its batch; predicting again gives the same result
_UNBOUNDED = 100_000  # the front refuses by itself, as a problem document, long before this


@serve.deployment(name="Predictor")
class PredictorReplica:
    """One predictor; requests that wait together are predicted together."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from braintumor_ray.serving.batched import BatchedPredictor

        chosen = parse_settings(settings)
        # Ray exports each value as the middle of its bucket: one bucket for each size, around it.
        sizes = Histogram(
            "braintumor_batch_size",
            description="scans per forward pass",
            boundaries=[size + 0.5 for size in range(chosen.max_batch_size + 1)],
        )
        self._predictor = BatchedPredictor(chosen, sizes.observe)

    async def predict(self, explain: Sequence[MapChoice], *squares: GrayImage) -> list[Row]:
        """One row for each uint8 (S, S); they wait for their batches.

        Squares are arguments of their own: Ray sends an argument below 100 KiB with the call, and a
        larger one, such as a list of them, by its object store.
        """
        return await self._predictor(list(zip(squares, explain, strict=True)))

    async def card(self) -> ModelCard:
        """What the model is."""
        return self._predictor.card


class Front:
    """A front's replica: Serve hands each request to its ASGI application."""

    def __init__(self, predictor: DeploymentHandle) -> None:
        self.predictor = predictor


class RemoteModel:
    """The predictors behind a Serve handle, as `serving.model.Model`."""

    def __init__(self, handle: DeploymentHandle, settings: ServingSettings) -> None:
        self._handle = handle
        most = settings.max_batch_size
        self._gathered = Gatherer(
            self._predict, most // batches_at_once(settings), most, calls_of(settings)
        )

    async def predict(self, square: GrayImage, explain: MapChoice) -> Row:
        """As `Model.predict`; asks another replica when one dies during the request."""
        return await self._gathered((square, explain))

    def coming(self, count: int) -> AbstractContextManager[None]:
        """As `Model.coming`."""
        return self._gathered.coming(count)

    async def _predict(self, items: Sequence[tuple[GrayImage, MapChoice]]) -> list[Row]:
        squares, explain = zip(*items, strict=True)
        rows: list[Row] = await self._ask(lambda: self._handle.predict.remote(explain, *squares))
        return rows

    async def card(self) -> ModelCard:
        """As `Model.card`."""
        card: ModelCard = await self._ask(self._handle.card.remote)
        return card

    async def _ask(self, call: Callable[[], Any]) -> Any:  # noqa: ANN401 - what the method returns
        for attempt in range(_TRIES):
            try:
                return await call()
            except BackPressureError as error:
                raise busy("the predictors' queue is full; try again shortly") from error
            except DeploymentUnavailableError as error:
                raise not_ready() from error
            except (RayActorError, ActorUnavailableError):
                await asyncio.sleep(0.1 * 2**attempt)
        raise not_ready()


def build(args: dict[str, Any]) -> Application:
    """The application, from the `args` of a Serve config (see `ServingSettings`).

    Raises:
        UsageError: a setting is wrong, or the token file cannot be read.
    """
    from braintumor_ray.serving.batched import resolve_serving_engine

    settings, _ = resolve_serving_engine(parse_settings(args))
    return build_application(settings, token_digest(settings))


def build_application(settings: ServingSettings, digest: str | None) -> Application:
    """The application; `digest` is SHA-256 of the token in hex, None: no token is asked for."""

    def make_app() -> Any:  # noqa: ANN401 - ASGI; evaluated inside each front
        model = RemoteModel(serve.get_deployment_handle("Predictor"), settings)
        decoders = DecoderPool(
            settings.decoders, settings.decode_timeout_s, settings.decode_memory_mib * 2**20
        )
        app = create_app(Service(settings, model, decoders), digest)
        return MeteredApp(app, ROUTES, RequestMeters().answered)

    front = serve.deployment(
        name="Front",
        num_replicas=settings.front_replicas,
        max_ongoing_requests=_UNBOUNDED,
        ray_actor_options={"num_cpus": 0.5},
        logging_config=_quiet(),
    )(serve.ingress(make_app)(Front))
    deployment: Any = PredictorReplica  # Serve's decorator made it a deployment
    predictor = deployment.options(**predictor_options(settings)).bind(
        asdict(replace(settings, token_file=None, token_sha256=None))
    )
    return front.bind(predictor)


def run(settings: ServingSettings, host: str, port: int, ready: Callable[[], None]) -> None:
    """Serve until this process is stopped (SIGINT, SIGTERM), in the Ray session that is open.

    Args:
        settings: what is served.
        host: address to listen on.
        port: TCP port.
        ready: called once requests are answered.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    start(settings, host, port)
    try:
        ready()
        while not stop.wait(1.0):
            pass
    finally:
        serve.shutdown()


def start(settings: ServingSettings, host: str, port: int) -> None:
    """Start serving in the Ray session that is open; returns once requests are answered."""
    serve.start(http_options={"host": host, "port": port}, logging_config=_quiet())
    application = build_application(settings, token_digest(settings))
    serve.run(application, name=APP_NAME, route_prefix="/")


def gpus_in_cluster() -> float:
    """GPUs of the Ray session that is open."""
    import ray

    return float(ray.cluster_resources().get("GPU", 0))


def metrics_addresses() -> list[str]:
    """Where Ray exports Prometheus metrics, Serve's among them: one address per node."""
    import ray

    return [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in ray.nodes()
        if node["Alive"] and node.get("MetricsExportPort", 0) > 0  # below: none are collected
    ]


def predictor_options(settings: ServingSettings) -> dict[str, Any]:
    """How Serve runs the predictors."""
    options: dict[str, Any] = {
        "max_ongoing_requests": 4 * settings.max_batch_size,  # the default of 5 would cap batches
        "max_queued_requests": settings.max_queued,
        "ray_actor_options": {"num_cpus": 1, "num_gpus": settings.gpus_per_replica},
        "logging_config": _quiet(),
        "health_check_period_s": 5,
        "graceful_shutdown_timeout_s": 10,
    }
    if settings.most > settings.replicas:
        options["autoscaling_config"] = {
            "min_replicas": settings.replicas,
            "max_replicas": settings.most,
            "target_ongoing_requests": CALLS_PER_REPLICA,
        }
    else:
        options["num_replicas"] = settings.replicas
    return options


def calls_of(settings: ServingSettings) -> int:
    """Calls that one front makes at a time; all of them keep every predictor busy."""
    return max(1, math.ceil(CALLS_PER_REPLICA * settings.most / settings.front_replicas))


def _quiet() -> LoggingConfig:
    """No line per request: nothing about uploads is logged, and it costs time."""
    return LoggingConfig(enable_access_log=False, log_level=logging.WARNING)
