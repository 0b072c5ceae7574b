"""How an archive job runs."""

from dataclasses import dataclass, field

from braintumor_ray.scoring.decode_stage import DecodeSettings
from braintumor_ray.scoring.layout import Request
from braintumor_ray.scoring.predict_stage import PredictSettings


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
