"""The routes of the service. Each front makes its own; no import of Ray."""

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from braintumor_ray import __version__
from braintumor_ray.serving.access import AccessMiddleware
from braintumor_ray.serving.problems import (
    KINDS,
    Problem,
    ProblemError,
    from_status,
    internal,
    openapi_responses,
)
from braintumor_ray.serving.schemas import (
    OBJECTS,
    SAMPLES,
    BatchAnswer,
    ModelInfo,
    Prediction,
    PredictQuery,
    State,
    upload_body,
)
from braintumor_ray.serving.service import Service, json_response

NOTICE = "Research software, not a medical device."
PAGE = Path(__file__).parent / "page"
STATIC = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/static/style.css": ("style.css", "text/css; charset=utf-8"),
    "/static/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/static/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "/static/example.png": ("example.png", "image/png"),
    "/static/icon.svg": ("icon.svg", "image/svg+xml"),
}
ROUTES = ("/", "/v1/predict", "/v1/predict/batch", "/v1/model", "/healthz", "/readyz")
OPEN_PATHS = frozenset({*STATIC, "/healthz", "/readyz"})
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# An upload can meet every failure but those of a wrong path or method.
_UPLOAD = tuple(kind for kind in KINDS if kind not in ("not-found", "method"))
_LIMITS = ("max_bytes", "max_pixels", "max_batch_files", "max_batch_bytes")


def create_app(service: Service, digest: str | None = None) -> ASGIApp:
    """The whole application, behind `AccessMiddleware`.

    Args:
        service: what answers.
        digest: SHA-256 of the token in hex; None: no token is asked for.
    """
    app = FastAPI(
        title="braintumor-ray",
        version=__version__,
        description=f"Brain-tumor MRI classification with class activation maps. {NOTICE}",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    add_problems(app)
    _add_static(app)
    _add_state(app, service)
    _add_predictions(app, service)
    _describe(app, secured=digest is not None)
    return AccessMiddleware(app, digest, OPEN_PATHS)


def _add_predictions(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/predict",
        responses={200: {"model": Prediction, "content": OBJECTS}, **openapi_responses(*_UPLOAD)},
        openapi_extra=upload_body(batch=False),
        summary="Classify and explain one scan",
    )
    async def predict(request: Request, query: Annotated[PredictQuery, Query()]) -> Response:
        """One file as the raw body, or as field `file` of a form; its content decides.

        A DICOM file may be answered with its map as a DICOM Parametric Map (`Accept:
        application/dicom`), or with all maps asked for (`Accept: multipart/related`).
        """
        return await service.predict(request, query)

    @app.post(
        "/v1/predict/batch",
        responses={200: {"model": BatchAnswer}, **openapi_responses(*_UPLOAD)},
        openapi_extra=upload_body(batch=True),
        summary="Classify and explain several scans",
    )
    async def predict_batch(request: Request, query: Annotated[PredictQuery, Query()]) -> Response:
        """Several files of a form, field `files`, or a zip of them, such as a DICOM series.

        Each file has its own result or error. A form may hold zips, too.
        """
        return await service.predict_batch(request, query)

    # FastAPI documents these two, and plain routes answer: its checks of the query cost as much CPU
    # as all else of a request but the decoding.
    for path, respond in (
        ("/v1/predict", service.predict),
        ("/v1/predict/batch", service.predict_batch),
    ):
        app.router.routes.insert(0, Route(path, _with_query(respond), methods=["POST"]))


def _with_query(respond: Callable[[Request, PredictQuery], Awaitable[Response]]) -> Any:  # noqa: ANN401 - an endpoint
    async def endpoint(request: Request) -> Response:
        return await respond(request, _parsed(request.scope["query_string"]))

    return endpoint


@lru_cache(256)
def _parsed(query: bytes) -> PredictQuery:
    """The options of a query string; clients repeat theirs."""
    given = QueryParams(query).multi_items()
    if len(dict(given)) < len(given):
        ((name, _),) = Counter(name for name, _ in given).most_common(1)
        raise ProblemError("parameter", f"parameter '{name[:40]}' comes twice; give it once")
    try:
        return PredictQuery.model_validate(dict(given))
    except ValidationError as error:
        raise _parameter_problem(error) from error


def _add_state(app: FastAPI, service: Service) -> None:
    known = openapi_responses("token", "large-headers", "internal", "not-ready", "busy")
    health = openapi_responses("large-headers", "internal", "not-ready")

    @app.get("/v1/model", responses={200: {"model": ModelInfo}, **known}, summary="The bundle")
    async def model(_: Request) -> Response:
        """Classes, threshold, preprocessing, fingerprint and limits of the bundle that answers."""
        card = (await service.card()).model_dump(mode="json")
        limits = {name: getattr(service.settings, name) for name in _LIMITS}
        return json_response(card | {"limits": limits, "version": __version__, "notice": NOTICE})

    @app.get("/healthz", responses={200: {"model": State}, **health}, summary="Is it alive?")
    async def healthz(_: Request) -> Response:
        """Answers as long as this process does."""
        return json_response({"status": "alive"})

    @app.get("/readyz", responses={200: {"model": State}, **health}, summary="Can it predict?")
    async def readyz(_: Request) -> Response:
        """Answers 200 when a predictor does, else 503."""
        await service.check_ready()
        return json_response({"status": "ready"})

    # Load balancers ask by HEAD: a plain route of GET answers it, FastAPI's do not.
    for path, respond in (("/v1/model", model), ("/healthz", healthz), ("/readyz", readyz)):
        app.router.routes.insert(0, Route(path, respond, methods=["GET"]))


def _add_static(app: FastAPI) -> None:
    for path, (name, media_type) in STATIC.items():
        # Read once: a request never opens a file.
        app.add_api_route(
            path,
            static_route((PAGE / name).read_bytes(), media_type),
            include_in_schema=False,
            methods=["GET", "HEAD"],
        )


def static_route(content: bytes, media_type: str) -> Any:  # noqa: ANN401 - an endpoint
    """An endpoint that answers a file of the page, under the policy that loads nothing else."""
    headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}

    async def static() -> Response:
        return Response(content, media_type=media_type, headers=headers)

    return static


def add_problems(app: Starlette) -> None:
    """Errors of an application's routes become problem documents, so does a slash too many.

    A redirect would name the host that the client sent, and http where TLS ends before the service.
    """
    app.router.redirect_slashes = False

    async def answer(_: Request, error: Exception) -> Response:
        return _problem(error).response()

    # Exception alone would not do: FastAPI has its own answers to its own errors.
    for kind in (ProblemError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, answer)


def _problem(error: Exception) -> ProblemError:
    """The problem that an exception is shown as."""
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, HTTPException):
        return from_status(error.status_code, error.headers)
    return _parameter_problem(error) if isinstance(error, RequestValidationError) else internal()


def _parameter_problem(error: RequestValidationError | ValidationError) -> ProblemError:
    first = error.errors()[0]
    name = str(first["loc"][-1])[:40]
    if first["type"] == "extra_forbidden":
        offered = ", ".join(PredictQuery.model_fields)
        return ProblemError("parameter", f"parameter '{name}' is unknown; use {offered}")
    value = str(first.get("input"))[:40]
    return ProblemError("parameter", f"{name}='{value}': {first['msg']}; see /docs")


def _describe(app: FastAPI, secured: bool) -> None:
    made_by_fastapi = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(made_by_fastapi(), secured)  # in place: FastAPI keeps what it made
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI documents it


def _complete(document: dict[str, Any], secured: bool) -> None:
    """Problems instead of FastAPI's own errors; the token where one is asked for."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    schemas["Problem"] = Problem.model_json_schema()
    for path, methods in document["paths"].items():
        for operation in methods.values():
            operation["x-codeSamples"] = [
                {"lang": "Shell", "label": label, "source": source}
                for label, source in SAMPLES[path]
            ]
    document["x-problems"] = {name: asdict(kind) for name, kind in KINDS.items()}
    if not secured:
        return
    document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, methods in document["paths"].items():
        if path not in OPEN_PATHS:
            for operation in methods.values():
                operation["security"] = [{"token": []}]
