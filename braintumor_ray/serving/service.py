"""How a request is answered: body, decoder, model, answer. No routes and no Ray here."""

import asyncio
import functools
import itertools
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from braintumor_ray.decode.head import WHOLE, Box
from braintumor_ray.extras import EXTRAS, is_installed
from braintumor_ray.serving.answers import answer
from braintumor_ray.serving.archives import MOST_RATIO, Unpack, Unpacked, is_zip
from braintumor_ray.serving.body import (
    Budget,
    Buffer,
    Part,
    Share,
    is_multipart,
    parse_files,
    read_body,
)
from braintumor_ray.serving.decoders import DecoderPool
from braintumor_ray.serving.model import Model, ModelCard, Row, placed
from braintumor_ray.serving.objects import (
    DICOM,
    MOST_PIXELS,
    Form,
    answer_form,
    make_maps,
    related,
)
from braintumor_ray.serving.problems import ProblemError, busy
from braintumor_ray.serving.schemas import PredictQuery
from braintumor_ray.serving.settings import ServingSettings
from braintumor_ray.serving.upload import Upload, UploadOptions

_GROUP = 8  # files that one decoding process takes at a time: fewer wakings, and a short queue


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
        """Whether a predictor answers now, or starts with the first request.

        Raises:
            ProblemError: 'not-ready'.
        """
        if self.settings.replicas == 0:  # asking would start one, and asking often would keep it
            return
        try:
            await asyncio.wait_for(self._model.card(), wait_s)
        except asyncio.TimeoutError as error:
            raise not_ready() from error

    async def predict(self, request: Request, query: PredictQuery) -> Response:
        """Answer one upload, as JSON or with the maps as DICOM objects.

        Raises:
            ProblemError: whatever is wrong with it, or with the service.
        """
        form = wanted_form(request, query)
        content_type = request.headers.get("content-type", "")
        async with self._body(request, self.settings.max_bytes) as (body, share):
            is_form = is_multipart(content_type)
            data = parse_files(body, content_type, most=1)[0].data if is_form else body
            if form != "json":
                return await self._objects(data, query, form, share)
            (found,) = await self._answers([data], query)
            if isinstance(found, ProblemError):
                raise found
            return json_response(found)

    async def predict_batch(self, request: Request, query: PredictQuery) -> Response:
        """Answer several uploads, each with its own result or problem.

        Raises:
            ProblemError: what is wrong with the request as a whole.
        """
        if wanted_form(request, query) != "json":
            raise ProblemError(
                "not-acceptable", "several scans are answered as JSON; send each of them alone"
            )
        content_type = request.headers.get("content-type", "")
        async with self._body(request, self.settings.max_batch_bytes) as (body, share):
            if is_multipart(content_type):
                parts = parse_files(body, content_type, self.settings.max_batch_files)
            elif is_zip(body):
                parts = [Part("", body)]
            else:
                raise ProblemError(
                    "not-an-image",
                    "several files come as multipart/form-data, field 'files', or as a zip",
                )
            opened, skipped = await self._open_zips(parts, share)
            return json_response(
                {"results": await self._entries(opened, query), "skipped": skipped}
            )

    async def _open_zips(self, parts: list[Part], share: Share) -> tuple[list[Part], int]:
        """The files with members in the place of each zip, and how many entries were skipped."""
        zips = [at for at, part in enumerate(parts) if is_zip(part.data)]
        opened = [[] if at in zips else [part] for at, part in enumerate(parts)]
        skipped, sent = 0, sum(len(part.data) for part in parts)
        for at in zips:
            here = list(itertools.chain.from_iterable(opened))
            unpacked = await self._unpack(parts[at], here, sent, share)
            opened[at] = _members(parts[at], unpacked, alone=len(parts) == 1)
            skipped += unpacked.skipped
        return list(itertools.chain.from_iterable(opened)), skipped

    async def _unpack(self, part: Part, here: list[Part], sent: int, share: Share) -> Unpacked:
        """Open a zip within what the other files leave of the limits of a request."""
        settings, taken = self.settings, sum(len(other.data) for other in here)
        room = max(0, settings.max_batch_bytes - taken)
        share.reserve(sent + taken + min(room, MOST_RATIO * len(part.data)))
        work = Unpack(max(0, settings.max_batch_files - len(here)), settings.max_bytes, room)
        unpacked: Unpacked = await self._decoders.run(part.data, work)
        inflated = sum(len(m.data) for m in unpacked.members if m.data is not None)
        share.settle(sent + taken + inflated)
        return unpacked

    async def _entries(self, parts: list[Part], query: PredictQuery) -> list[dict[str, Any]]:
        """One entry of the answer per file, in order."""
        checked = [(part, part.problem or self._too_large(len(part.data))) for part in parts]
        sound = [part for part, problem in checked if not problem]
        groups = [sound[at : at + _GROUP] for at in range(0, len(sound), _GROUP)]
        answered = await asyncio.gather(
            *(self._answers([part.data for part in group], query) for group in groups)
        )
        found = iter(itertools.chain.from_iterable(answered))
        return [
            {"index": index, "name": part.name} | _outcome(problem or next(found))
            for index, (part, problem) in enumerate(checked)
        ]

    def _too_large(self, n_bytes: int) -> ProblemError | None:
        limit = self.settings.max_bytes
        if n_bytes <= limit:
            return None
        return ProblemError(
            "too-large", f"{n_bytes} bytes, the limit for one file is {limit}; send a smaller"
        )

    async def _answers(
        self, files: Sequence[Buffer], query: PredictQuery
    ) -> list[dict[str, Any] | ProblemError]:
        """The answer to each file, or its problem, in order."""
        card = await self._card_for(query)
        options = _options(self.settings, card, query)
        with self._model.coming(len(files)):
            uploads = await self._decoders.decode_all(files, options)
        return await asyncio.gather(*(self._answer(upload, card, query) for upload in uploads))

    async def _answer(
        self, upload: Upload, card: ModelCard, query: PredictQuery
    ) -> dict[str, Any] | ProblemError:
        try:
            row = await self._row(upload, card, query)
        except ProblemError as problem:
            return problem
        if query.wants_picture:  # drawing takes milliseconds: not on the event loop
            return await asyncio.to_thread(answer, upload, row, card, query)
        return answer(upload, row, card, query)

    async def _objects(
        self, data: Buffer, query: PredictQuery, form: Form, share: Share
    ) -> Response:
        """The maps of one upload as DICOM objects: one, or all that are asked for."""
        card = await self._card_for(query)
        (upload,) = await self._decoders.decode_all([data], _options(self.settings, card, query))
        row = await self._row(upload, card, query)
        methods = query.methods if form == "related" else query.methods[:1]
        share.reserve(len(data) + 2 * len(methods) * 4 * _mappable_pixels(upload))
        scan = {"frame": query.frame, "pixel_sha256": upload.pixel_sha256}
        made = await self._decoders.run(data, make_maps(row, methods, scan, card))
        if isinstance(made, str):
            raise _no_object(made)
        body, media_type = related(made) if form == "related" else (made[0], DICOM)
        return Response(body, media_type=media_type)

    async def _row(self, upload: Upload, card: ModelCard, query: PredictQuery) -> Row:
        """The predictor's columns for an upload, its maps over the whole picture."""
        if upload.image is None:
            raise _refused(upload)
        wanted = bool(query.methods) and (query.cam_class or True)
        row = await self._model.predict(upload.image, explain=wanted)
        return placed(row, upload.box or WHOLE, Box(*card.map_frame))

    async def _card_for(self, query: PredictQuery) -> ModelCard:
        """The card, which must know the class that the query names."""
        card = await self.card()
        if query.cam_class is not None and query.cam_class not in card.class_names:
            raise ProblemError(
                "parameter",
                f"cam_class='{query.cam_class[:40]}' is no class; use "
                f"{', '.join(card.class_names)}",
            )
        return card

    @asynccontextmanager
    async def _body(self, request: Request, limit: int) -> AsyncIterator[tuple[bytearray, Share]]:
        """An admitted request's body; refused before a byte of it is read where all are taken."""
        if self._in_hand >= self.settings.queue_per_front:
            raise busy(f"{self._in_hand} requests are in hand, as many as may be; try again")
        self._in_hand += 1
        try:
            with self._budget.share() as share:
                yield await read_body(request, limit, share, self.settings.body_timeout_s), share
        finally:
            self._in_hand -= 1


def wanted_form(request: Request, query: PredictQuery) -> Form:
    """What the Accept header asks for, which the options must allow.

    Raises:
        ProblemError: 'parameter' for options that contradict each other or the header,
            'not-installed' where nothing here writes DICOM.
    """
    check_query(query)
    form = answer_form(request.headers.get("accept", ""))
    if form == "json":
        return form
    if not query.methods:
        raise ProblemError(
            "parameter", "explain=none makes no map to answer as DICOM; ask for one, or for JSON"
        )
    if not is_installed("highdicom"):
        raise ProblemError(
            "not-installed",
            "DICOM answers need the package highdicom where the service runs: "
            f"pip install 'braintumor-ray[{EXTRAS['highdicom']}]'; JSON is answered without it",
        )
    return form


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


@functools.lru_cache(64)  # the same object again is not sent to the decoding process again
def _options(settings: ServingSettings, card: ModelCard, query: PredictQuery) -> UploadOptions:
    return UploadOptions(
        frames=(query.frame,),
        volumes=query.volumes,
        limits=settings.limits,
        preprocessing=card.preprocessing,
        picture=query.wants_picture,
    )


def _outcome(found: dict[str, Any] | ProblemError) -> dict[str, Any]:
    if isinstance(found, ProblemError):
        return {"error": found.document()}
    return {"result": found}


def _members(part: Part, unpacked: Unpacked, alone: bool) -> list[Part]:
    """The files of an opened zip, named by it where there are others.

    Raises:
        ProblemError: that of the zip, where it is all that was sent.
    """
    prefix = "" if alone else f"{part.name}/"
    if unpacked.kind is not None:
        problem = ProblemError(unpacked.kind, unpacked.detail)
        if alone:
            raise problem
        return [Part(part.name, problem=problem)]
    return [
        Part(
            prefix + member.name,
            memoryview(member.data) if member.data is not None else b"",
            ProblemError(member.kind, member.detail) if member.kind else None,
        )
        for member in unpacked.members
    ]


def _mappable_pixels(upload: Upload) -> int:
    """Pixels of an upload of which a Parametric Map can be made.

    Raises:
        ProblemError: 'not-acceptable'.
    """
    if upload.format != "dicom":
        raise _no_object(f"the upload is {upload.format}, and has no patient or place")
    pixels = (upload.height or 0) * (upload.width or 0)
    if pixels > MOST_PIXELS:
        raise _no_object(f"{pixels} pixels, maps are made of at most {MOST_PIXELS}")
    return pixels


def _no_object(cause: str) -> ProblemError:
    return ProblemError(
        "not-acceptable", f"no DICOM map of this upload: {cause}; ask for application/json"
    )


def _refused(upload: Upload) -> ProblemError:
    hints = {
        "unreadable": "the file is damaged or of a kind not read here; export it again",
        "not-an-image": "send JPEG, PNG, TIFF, BMP, DICOM or NIfTI; "
        "a zip of them goes to /v1/predict/batch",
        "too-many-pixels": "send it at a lower resolution",
        "not-scored": "send a slice that shows a head",
        "parameter": "ask for a frame or volume that the file has; they count from 0",
    }
    kind = upload.kind or "unreadable"
    known = {"frames": upload.frames} if (upload.frames or 1) > 1 else {}
    extra = {"reason": upload.reason, **known}
    return ProblemError(kind, f"{upload.reason}; {hints[kind]}", extra=extra)
