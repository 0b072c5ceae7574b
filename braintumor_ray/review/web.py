"""The routes of a review: a page, scans in order, pictures, and their labels."""

import hashlib
import ipaddress
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from braintumor_ray import __version__
from braintumor_ray.catalog.reviewed import Key, Reviewed, newest, read_events
from braintumor_ray.errors import BrainTumorError, UsageError, describe_validation
from braintumor_ray.explain.overlay import METHOD_LABELS
from braintumor_ray.review.changes import Change
from braintumor_ray.review.explainer import Explainer, missing_neighbors
from braintumor_ray.review.log import LabelLog, table_of
from braintumor_ray.review.options import ORDERS, Order
from braintumor_ray.review.pictures import (
    LARGEST,
    Cache,
    Encoded,
    NoPicture,
    Pictures,
    stored_map,
)
from braintumor_ray.review.scans import FILTERS, Filter, RankedScans
from braintumor_ray.serving.access import AccessMiddleware
from braintumor_ray.serving.problems import ProblemError
from braintumor_ray.serving.web import NOTICE, add_problems, static_route
from braintumor_ray.storage import absolute
from braintumor_ray.types import Ints
from braintumor_ray.worklist.worklist import run_shifts

PAGE = Path(__file__).parent / "page"
STATIC = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/static/review.css": ("review.css", "text/css; charset=utf-8"),
    **{
        f"/static/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8")
        for name in ("review", "list", "stage", "server")
    },
    "/static/icon.svg": ("icon.svg", "image/svg+xml"),
}
_MOST_ROWS = 500  # in one answer
_MOST_BODY = 64 * 1024
_SCORED = ("uri", "frame", "pixel_sha256")


@dataclass(frozen=True)
class Review:
    """What the routes answer from.

    Attributes:
        scans: of the results.
        log: where labels go.
        pictures: reads scans.
        network: of the bundle; None: stored maps only.
        order: the first one.
        reviewer: whose labels they are where the page names nobody.
    """

    scans: RankedScans
    log: LabelLog
    pictures: Pictures
    network: Explainer | None = None
    order: Order = "urgency"
    reviewer: str = ""
    views: Cache = field(default_factory=lambda: Cache(32))

    @cached_property
    def name(self) -> str:
        """Names results and labels; a browser keeps by it what it could not send yet."""
        folder = self.scans.folder
        place = f"{absolute(folder.location)}\n{self.log.path}\n{folder.meta['bundle_fingerprint']}"
        return hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def about(self) -> dict[str, Any]:
        """What the page gets once."""
        meta = self.scans.folder.meta
        labels = {m: METHOD_LABELS.get(m, m) for m in self.scans.methods}
        return {
            "results": self.name,
            "class_names": self.scans.class_names,
            "positive_classes": list(meta["positive_classes"]),
            "threshold": meta["threshold"],
            "cam_class": meta["cam_class"],
            "methods": labels,
            "orders": list(ORDERS),
            "filters": list(FILTERS),
            "order": self.order,
            "reviewer": self.reviewer,
            "any_class": self.network is not None,
            "no_neighbors": missing_neighbors(self.network),
            "shifts": run_shifts(self.scans.folder),
            "labels": self.log.path.name,
            "version": __version__,
            "notice": NOTICE,
            **self.progress(),
        }

    def progress(self) -> dict[str, int]:
        """How far the review is; `events` changes with every label, of other tabs, too."""
        self.log.refresh()
        done = len(self.scans.reviewed(self.log.states()))
        return {"events": self.log.count, "done": done, "total": self.scans.rows.num_rows}

    def listed(self, order: Order, wanted: Filter, start: int, count: int, as_of: int) -> Any:  # noqa: ANN401 - JSON
        """A page of the list as it was after `as_of` events: labeling moves no row of it."""
        rows = self.view(order, wanted, as_of)
        shown = self.scans.page(rows, start, min(count, _MOST_ROWS), self.log.states())
        return {"total": len(rows), "start": start, "as_of": as_of, "rows": shown}

    def view(self, order: Order, wanted: Filter, as_of: int) -> Ints:
        """Rows of a list; the same for the same arguments, in another run of the server, too."""
        since = as_of if wanted in ("open", "done") else 0

        def make() -> Ints:
            return self.scans.listed(order, wanted, self._states_at(since))

        found: Ints = self.views.get((order, wanted, since), make)
        return found

    def _states_at(self, count: int) -> Mapping[Key, Reviewed]:
        if count >= self.log.count:
            return self.log.states()
        return newest(read_events(str(self.log.path))[:count]) if count else {}

    def row(self, name: str) -> int:
        """The row of a scan.

        Raises:
            ProblemError: there is none of that name.
        """
        if name not in self.scans.row_of:
            raise ProblemError("not-found", f"no scan '{name[:20]}' in these results; reload")
        return self.scans.row_of[name]

    def facts(self, name: str) -> dict[str, Any]:
        """All about one scan."""
        self.log.refresh()
        return self.scans.facts(self.row(name), self.log.states())

    def picture(self, name: str, longest: int) -> Encoded:
        """The scan."""
        row = self.scans.rows.slice(self.row(name), 1)
        return self.pictures.scan(row.select(_SCORED), max(16, min(longest, LARGEST)))

    def heat(self, name: str, method: str, class_name: str) -> Encoded:
        """A map in color: stored, or of another class by the network."""
        row = self.row(name)
        if method not in self.scans.methods:
            known = ", ".join(self.scans.methods)
            raise ProblemError("parameter", f"method '{method[:40]}' is not stored; use {known}")
        rows = self.scans.rows
        shape = (int(rows["height"][row].as_py()), int(rows["width"][row].as_py()))
        own = rows["cam_class"][row].as_py()
        if class_name in ("", own):
            cells = tuple(self.scans.folder.meta["cam_shape"])
            make = partial(stored_map, rows[method], row, cells)
        else:
            make = partial(self._live_map, row, class_name, method)
        return self.pictures.heat((name, method, class_name or own), make, shape)

    def _live_map(self, row: int, class_name: str, method: str) -> Any:  # noqa: ANN401 - an array
        if self.network is None:
            raise ProblemError(
                "parameter", "maps of other classes need the network; start with --bundle"
            )
        gray = self.pictures.gray(self.scans.rows.slice(row, 1).select(_SCORED))
        return self.network.cam(gray, class_name, method)

    def neighbors(self, name: str) -> dict[str, Any]:
        """The training scans that a scan is most like, or why they are not shown."""
        row = self.row(name)
        missing = missing_neighbors(self.network)
        if missing or self.network is None or self.network.neighbors is None:
            return {"missing": missing, "neighbors": []}
        gray = self.pictures.gray(self.scans.rows.slice(row, 1).select(_SCORED))
        return {"neighbors": self.network.neighbors.nearest(self.network.pooled(gray))}

    def neighbor_picture(self, index: int) -> Encoded:
        """A training scan, small."""
        near = self.network.neighbors if self.network else None
        if near is None or not 0 <= index < near.scans.num_rows:
            raise ProblemError("not-found", f"no training scan {index}")
        return self.pictures.scan(near.scans.slice(index, 1), 192)

    def add(self, change: Change) -> dict[str, Any]:
        """Store a change to a scan; it is on the disk when this returns."""
        if change.results not in (None, self.name):  # 'right' would be of another prediction
            raise ProblemError(
                "not-ready", "the label is of other results; it waits until their review is back"
            )
        row = self.row(change.scan)
        path, frame = self.scans.keys[row]
        facts = self.scans.rows.slice(row, 1).to_pylist()[0]
        known = {n: facts[n] for n in ("scan_id", "pixel_sha256", "predicted_class")}
        known |= {"path": path, "frame": frame}
        known["bundle"] = self.scans.folder.meta["bundle_fingerprint"]
        try:
            event = change.event(known, self.scans.class_names, self.reviewer)
        except ValueError as error:
            raise ProblemError("parameter", str(error)) from error
        after, before = self.log.add(event)
        return {"review": _plain(after), "before": before and _plain(before), **self.progress()}


def _plain(seen: Reviewed) -> dict[str, Any]:
    names = ("verdict", "label", "boxes", "note", "reviewer", "time")
    return {name: getattr(seen, name) for name in names}


def create_app(review: Review, digest: str | None = None, host: str = "127.0.0.1") -> ASGIApp:
    """The application.

    Args:
        review: what it shows.
        digest: SHA-256 of the token in hex; None: no token is asked for.
        host: the name by which it is reached, besides addresses and `localhost`.
    """
    app = Starlette(routes=[*_static(), *_reading(review), *_writing(review)])
    add_problems(app)
    app.add_exception_handler(NoPicture, _no_picture)
    app.add_exception_handler(UsageError, _unusable)
    return OwnPage(AccessMiddleware(app, digest, STATIC), host)


class OwnPage:
    """Refuses requests that another web page makes the browser send here.

    Without a token, what protects the labels is that only this machine reaches the address. A page
    from elsewhere could still use the browser: by a name that it makes point here (DNS rebinding),
    or by a form. So a host must be an address or the known name, and an origin must be this page.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app, self._host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on one request."""
        if scope["type"] == "http" and (cause := self._refused(dict(scope["headers"]))):
            await ProblemError("bad-request", cause).response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refused(self, headers: Mapping[bytes, bytes]) -> str | None:
        host = headers.get(b"host", b"").decode("latin-1")
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if name not in ("localhost", self._host) and not _is_address(name.strip("[]")):
            return f"host '{name[:60]}' is not this server; open it by its address"
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and origin.split("://", 1)[-1] != host:
            return f"origin '{origin[:60]}' is another page; labels are given on this one"
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _static() -> list[Route]:
    return [
        Route(path, _of_request(static_route((PAGE / name).read_bytes(), kind)))
        for path, (name, kind) in STATIC.items()
    ]


def _of_request(answer: Any) -> Callable[[Request], Any]:  # noqa: ANN401 - an endpoint
    async def endpoint(_: Request) -> Response:
        found: Response = await answer()
        return found

    return endpoint


def _reading(review: Review) -> list[Route]:
    def listed(request: Request) -> Any:  # noqa: ANN401 - JSON
        query = request.query_params
        order, wanted = query.get("order", review.order), query.get("filter", "all")
        start, count = _whole(query, "start", 0), _whole(query, "count", 100)
        as_of = _whole(query, "as_of", review.log.count)
        return review.listed(order, wanted, start, count, as_of)  # type: ignore[arg-type]

    def heat(request: Request) -> Encoded:
        query = request.query_params
        name = request.path_params["scan"]
        return review.heat(name, query.get("method", ""), query.get("class", ""))

    def picture(request: Request) -> Encoded:
        size = _whole(request.query_params, "size", LARGEST)
        return review.picture(request.path_params["scan"], size)

    def table(_: Request) -> Encoded:
        review.log.refresh()
        return Encoded(table_of(review.log.states()).encode(), "text/csv; charset=utf-8")

    answers: dict[str, Callable[[Request], Any]] = {
        "/v1/review": lambda _: review.about(),
        "/v1/progress": lambda _: review.progress(),
        "/v1/scans": listed,
        "/v1/scans/{scan}": lambda request: review.facts(request.path_params["scan"]),
        "/v1/scans/{scan}/picture": picture,
        "/v1/scans/{scan}/map": heat,
        "/v1/scans/{scan}/neighbors": lambda r: review.neighbors(r.path_params["scan"]),
        "/v1/neighbors/{index:int}": lambda r: review.neighbor_picture(r.path_params["index"]),
        "/v1/labels.csv": table,
    }
    return [Route(path, _answered(answer)) for path, answer in answers.items()]


def _answered(answer: Callable[[Request], Any]) -> Callable[[Request], Any]:
    """An endpoint that works in a thread: decoding takes long, and others must not wait."""

    async def endpoint(request: Request) -> Response:
        found = await run_in_threadpool(answer, request)
        if not isinstance(found, Encoded):
            return JSONResponse(found)
        return Response(found.content, media_type=found.media_type)

    return endpoint


def _writing(review: Review) -> list[Route]:
    async def add(request: Request) -> Response:
        kind = request.headers.get("content-type", "").split(";")[0]
        if kind != "application/json":  # a form of another page cannot send that
            raise ProblemError("bad-request", f"'{kind[:40]}' is not application/json")
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _MOST_BODY:
                raise ProblemError("too-large", f"over {_MOST_BODY} bytes for one label")
        return JSONResponse(await run_in_threadpool(review.add, _change(body)))

    return [Route("/v1/labels", add, methods=["POST"])]


def _change(body: bytes) -> Change:
    try:
        return Change.model_validate(json.loads(body))
    except ValidationError as error:
        raise ProblemError("parameter", describe_validation(error)) from error
    except ValueError as error:
        raise ProblemError("bad-request", "the body is no JSON object") from error


def _whole(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise ProblemError("parameter", f"{name}='{text[:40]}' is no whole number")
    return int(text)


async def _no_picture(_: Request, error: Exception) -> Response:
    return ProblemError("unreadable", str(error)).response()


async def _unusable(_: Request, error: Exception) -> Response:
    assert isinstance(error, BrainTumorError)
    return ProblemError("parameter", str(error)).response()
