"""How an archive job runs; the parts are what travels to its actors."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from braintumor_ray.choices import EngineChoice
from braintumor_ray.errors import UsageError
from braintumor_ray.options import (
    ENGINE,
    Bundle,
    CamClassOption,
    Device,
    Option,
    PrecisionOption,
    TtaOption,
    parse_range,
)

if TYPE_CHECKING:
    from braintumor_ray.catalog.redaction import UriRedaction
    from braintumor_ray.decode.types import DecodeLimits

Range = tuple[int, int]
CLUSTER = "Cluster"


def _predictors(text: str) -> Range | None:
    if text == "auto":
        return None
    number = parse_range("--num-predictors", text)
    return (number, number) if isinstance(number, int) else number


@dataclass(frozen=True)
class Request:
    """What a job asks of a cluster; None: as the cluster has room for.

    Attributes:
        predictors: (least, most) predictor actors.
        decoders: (least, most) decoder actors.
        cpus_per_decode: logical CPUs of a decoder.
        gpus_per_predictor: 0 on CPU; fractions share a GPU.
    """

    PANEL: ClassVar = CLUSTER

    predictors: Annotated[
        Range | None,
        Option(
            "Predictors; auto: as GPUs or nodes have room.",
            "N|MIN:MAX|auto",
            flags=("--num-predictors",),
            parse=_predictors,
            typed="auto",
        ),
    ] = None
    decoders: Range | None = None
    cpus_per_decode: Annotated[float, Option("Logical CPUs that a decoder takes.", least=0.1)] = 1.0
    gpus_per_predictor: Annotated[
        float | None,
        Option("Share of a GPU, such as 0.5.", least=0.01, typed="1 where there are GPUs"),
    ] = None

    def __post_init__(self) -> None:
        share = self.gpus_per_predictor or 0.0
        if share > 1 and share % 1:  # Ray refuses it when the job has begun
            raise UsageError(
                f"--gpus-per-predictor {share:g} is neither a share of one GPU nor a whole number; "
                "a predictor needs no more than 1"
            )


@dataclass(frozen=True)
class PredictSettings:
    """How the predictor of a job is made.

    Attributes:
        engine: None, and 'auto' where there are results: as they were made; in a new folder torch.
        torch_threads: batches at a time, each on one thread; None: one at a time, torch's threads.
    """

    PANEL: ClassVar = "Model"

    bundle: Bundle
    device: Device = "auto"
    precision: PrecisionOption = "auto"
    engine: Annotated[EngineChoice | None, replace(ENGINE, typed="as the results, else torch")] = (
        None
    )
    cam_class: CamClassOption = "predicted"
    methods: tuple[str, ...] = ("gradcam", "gradcam_pp")
    batch_size: Annotated[int | None, Option("Scans per forward pass.", least=1)] = None
    tta: TtaOption = False
    torch_threads: int | None = None


def _limits() -> "DecodeLimits":
    from braintumor_ray.decode.types import DEFAULT_LIMITS

    return DEFAULT_LIMITS


def _worker() -> str:
    from braintumor_ray.decode.prepare import WORKER

    return WORKER


@dataclass(frozen=True)
class DecodeSettings:
    """How scans are decoded, and what is recorded of where they are.

    Attributes:
        limits: what a file may cost.
        timeout_s: longest time for one file, seconds.
        worker: the function that does it, `module:function`.
        redaction: replaces every URI in the rows; None: they are kept.
    """

    PANEL: ClassVar = CLUSTER

    limits: "DecodeLimits" = field(default_factory=_limits)
    timeout_s: Annotated[
        float,
        Option(
            "Seconds after which a decoder counts as stalled.",
            "SECONDS",
            flags=("--decode-timeout",),
            least=0.1,
        ),
    ] = 30.0
    worker: str = field(default_factory=_worker)
    redaction: "UriRedaction | None" = None


@dataclass(frozen=True)
class ScoreOptions:
    """How a job runs; nothing here changes a prediction but `predict`.

    Attributes:
        predict: the predictor's settings.
        decode: the decoders' settings.
        request: what it asks of the cluster.
        block_size: scans per commit: what a crash can cost; a multiple of the batch size.
        object_store_fraction: of the object store's memory that may hold scans in flight; when it
            is full, decoders wait for predictors.
        limit: at most so many new scans.
        retry_quarantined: score quarantined scans again; their newer rows become current.
        no_progress_timeout_s: the job fails instead of hanging when nothing moves so long.
    """

    PANEL: ClassVar = "Run"

    predict: PredictSettings
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    request: Request = field(default_factory=Request)
    block_size: Annotated[int, Option("Scans per commit: what a crash can cost.", least=1)] = 256
    object_store_fraction: Annotated[
        float, Option("Of Ray's memory, for scans in flight.", panel=CLUSTER, least=0.05, most=1)
    ] = 0.5
    limit: Annotated[int | None, Option("At most so many new scans.", least=1)] = None
    retry_quarantined: Annotated[
        bool, Option("Score quarantined scans again; newer rows become current.")
    ] = False
    no_progress_timeout_s: float = 600.0

    def request_for(self, gpus: float) -> Request:
        """What the job asks of a cluster with so many GPUs: whole ones if nothing was chosen."""
        predict = self.predict
        usable = gpus > 0 and predict.device != "cpu" and predict.engine in (None, "auto", "torch")
        share = self.request.gpus_per_predictor
        return replace(
            self.request, gpus_per_predictor=(1.0 if share is None else share) if usable else 0.0
        )
