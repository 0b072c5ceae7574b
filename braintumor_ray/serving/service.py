"""How a request is answered: body, decoder, model, answer. No routes and no Ray here."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from braintumor_ray.decode.head import WHOLE, Box
from braintumor_ray.serving.answers import answer
from braintumor_ray.serving.body import Budget, Part, is_multipart, parse_files, read_body
from braintumor_ray.serving.decoders import DecoderPool
from braintumor_ray.serving.model import Model, ModelCard, placed
from braintumor_ray.serving.problems import ProblemError, busy
from braintumor_ray.serving.schemas import PredictQuery
from braintumor_ray.serving.settings import ServingSettings
from braintumor_ray.serving.upload import Upload, UploadOptions


class Service:
    """One front: answers uploads, a limited number at a time.

    Args:
        settings: limits.
        model: what predicts.
        decoders: what decodes.
    """

    def __init__(self, settings: ServingSettings, model: Model, decoders: DecoderPool) -> None:
        self.settings = settings
        self._model = model
        self._decoders = decoders
        self._budget = Budget(settings.max_inflight_bytes)
        self._in_hand = 0
        self._card: ModelCard | None = None

    async def card(self) -> ModelCard:
        """The model's card; a service never changes its bundle, so the model is asked once."""
        if self._card is None:
            self._card = await self._model.card()
        return self._card

    async def check_ready(self, wait_s: float = 2.0) -> None:
        """Whether a predictor answers now.

        Raises:
            ProblemError: 'not-ready'.
        """
        try:
            await asyncio.wait_for(self._model.card(), wait_s)
        except asyncio.TimeoutError as error:
            raise not_ready() from error

    async def predict(self, request: Request, query: PredictQuery) -> Response:
        """Answer one upload.

        Raises:
            ProblemError: whatever is wrong with it, or with the service.
        """
        check_query(query)
        content_type = request.headers.get("content-type", "")
        async with self._body(request, self.settings.max_bytes) as body:
            form = is_multipart(content_type)
            data = parse_files(body, content_type, most=1)[0].data if form else body
            return json_response(await self._predict(data, query))

    async def predict_batch(self, request: Request, query: PredictQuery) -> Response:
        """Answer several uploads, each with its own result or problem.

        Raises:
            ProblemError: what is wrong with the request as a whole.
        """
        check_query(query)
        content_type = request.headers.get("content-type", "")
        if not is_multipart(content_type):
            raise ProblemError(
                "not-an-image", "several files come as multipart/form-data, field 'files'"
            )
        async with self._body(request, self.settings.max_batch_bytes) as body:
            parts = parse_files(body, content_type, self.settings.max_batch_files)
            items = (self._item(index, part, query) for index, part in enumerate(parts))
            return json_response({"results": await asyncio.gather(*items)})

    async def _item(self, index: int, part: Part, query: PredictQuery) -> dict[str, Any]:
        entry: dict[str, Any] = {"index": index, "name": part.name}
        try:
            self._check_size(len(part.data))
            return entry | {"result": await self._predict(part.data, query)}
        except ProblemError as problem:
            return entry | {"error": problem.document()}

    def _check_size(self, n_bytes: int) -> None:
        limit = self.settings.max_bytes
        if n_bytes > limit:
            raise ProblemError(
                "too-large", f"{n_bytes} bytes, the limit for one file is {limit}; send a smaller"
            )

    async def _predict(self, data: Any, query: PredictQuery) -> dict[str, Any]:  # noqa: ANN401
        card = await self.card()
        if query.cam_class is not None and query.cam_class not in card.class_names:
            raise ProblemError(
                "parameter",
                f"cam_class='{query.cam_class[:40]}' is no class; use "
                f"{', '.join(card.class_names)}",
            )
        options = UploadOptions(
            frames=(query.frame,),
            volumes=query.volumes,
            limits=self.settings.limits,
            preprocessing=card.preprocessing,
            picture=query.wants_picture,
        )
        upload = await self._decoders.decode(data, options)
        if upload.image is None:
            raise _refused(upload)
        wanted = bool(query.methods) and (query.cam_class or True)
        row = await self._model.predict(upload.image, explain=wanted)
        row = placed(row, upload.box or WHOLE, Box(*card.map_frame))
        if query.wants_picture:  # drawing takes milliseconds: not on the event loop
            return await asyncio.to_thread(answer, upload, row, card, query)
        return answer(upload, row, card, query)

    @asynccontextmanager
    async def _body(self, request: Request, limit: int) -> AsyncIterator[bytearray]:
        """An admitted request's body; refused before a byte of it is read where all are taken."""
        if self._in_hand >= self.settings.queue_per_front:
            raise busy(f"{self._in_hand} requests are in hand, as many as may be; try again")
        self._in_hand += 1
        try:
            with self._budget.share() as reserve:
                yield await read_body(request, limit, reserve, self.settings.body_timeout_s)
        finally:
            self._in_hand -= 1


def check_query(query: PredictQuery) -> None:
    """Refuse options that contradict each other.

    Raises:
        ProblemError: 'parameter'.
    """
    if query.heatmap != "none" and not query.methods:
        raise ProblemError(
            "parameter",
            f"heatmap={query.heatmap} needs a map; add explain=gradcam, gradcam%2B%2B or both",
        )


def not_ready() -> ProblemError:
    """No predictor answers."""
    return ProblemError(
        "not-ready", "no predictor answers; it may be starting, try again", {"Retry-After": "2"}
    )


def json_response(found: dict[str, Any]) -> Response:
    """Compact JSON; NaN cannot occur in it."""
    text = json.dumps(found, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(text.encode("utf-8", errors="replace"), media_type="application/json")


def _refused(upload: Upload) -> ProblemError:
    hints = {
        "unreadable": "the file is damaged or of a kind not read here; export it again",
        "not-an-image": "send JPEG, PNG, TIFF, BMP, DICOM or NIfTI",
        "too-many-pixels": "send it at a lower resolution",
        "not-scored": "send a slice that shows a head",
        "parameter": "ask for a frame or volume that the file has; they count from 0",
    }
    kind = upload.kind or "unreadable"
    known = {"frames": upload.frames} if (upload.frames or 1) > 1 else {}
    extra = {"reason": upload.reason, **known}
    return ProblemError(kind, f"{upload.reason}; {hints[kind]}", extra=extra)
