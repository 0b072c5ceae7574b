"""How an archive job runs."""

from dataclasses import dataclass, field

from braintumor_ray.catalog.redaction import UriRedaction
from braintumor_ray.decode.prepare import WORKER
from braintumor_ray.decode.types import DecodeLimits
from braintumor_ray.recipes.schema import CamClass, Precision

Range = tuple[int, int]


@dataclass(frozen=True)
class Request:
    """What the user asked for; None: as the cluster has room for.

    Attributes:
        predictors: (least, most) predictor actors.
        decoders: (least, most) decoder actors.
        cpus_per_decode: logical CPUs of a decoder.
        gpus_per_predictor: 0 on CPU; fractions share a GPU.
    """

    predictors: Range | None = None
    decoders: Range | None = None
    cpus_per_decode: float = 1.0
    gpus_per_predictor: float = 0.0


@dataclass(frozen=True)
class PredictSettings:
    """How the predictor of a job is made.

    Attributes:
        torch_threads: batches at a time, each on one thread; None: one at a time, torch's threads.
    """

    bundle: str
    device: str = "auto"
    precision: Precision = "auto"
    cam_class: CamClass = "predicted"
    methods: tuple[str, ...] = ("gradcam", "gradcam_pp")
    batch_size: int | None = None
    torch_threads: int | None = None


@dataclass(frozen=True)
class DecodeSettings:
    """How scans are decoded, and what is told of where they are.

    Attributes:
        limits: what a file may cost.
        timeout_s: longest time for one file, seconds.
        worker: the function that does it, `module:function`.
        redaction: stands in for every URI in the rows; None: they are kept.
    """

    limits: DecodeLimits = field(default_factory=DecodeLimits)
    timeout_s: float = 30.0
    worker: str = WORKER
    redaction: UriRedaction | None = None


@dataclass(frozen=True)
class ScoreOptions:
    """How a job runs; nothing here changes a prediction but `predict`.

    Attributes:
        predict: the predictor's settings.
        decode: the decoders' settings.
        block_size: scans per commit: what a crash can cost; a multiple of the batch size.
        num_predictors: (least, most) predictor actors; None: as the cluster has room for.
        num_decoders: (least, most) decoder actors; None: as many as the cluster has room for.
        cpus_per_decode: logical CPUs that a decoder takes.
        gpus_per_predictor: 0 on CPU; 0.5 puts two predictors on a GPU.
        object_store_fraction: of the object store's memory that may hold scans in flight; when it
            is full, decoders wait for predictors.
        limit: at most so many new scans.
        retry_quarantined: score quarantined scans again; their newer rows become current.
        no_progress_timeout_s: the job fails instead of hanging when nothing moves so long.
    """

    predict: PredictSettings
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    block_size: int = 256
    num_predictors: tuple[int, int] | None = None
    num_decoders: tuple[int, int] | None = None
    cpus_per_decode: float = 1.0
    gpus_per_predictor: float = 0.0
    object_store_fraction: float = 0.5
    limit: int | None = None
    retry_quarantined: bool = False
    no_progress_timeout_s: float = 600.0

    @property
    def request(self) -> Request:
        """What the job asks of a cluster."""
        return Request(
            self.num_predictors,
            self.num_decoders,
            self.cpus_per_decode,
            self.gpus_per_predictor,
        )
