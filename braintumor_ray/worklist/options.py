"""How explanations are drawn."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from braintumor_ray.options import FIRST, CamClassOption, Device, EngineOption, Option

LOOK = "Look"  # a panel in `--help`


@dataclass(frozen=True)
class ExplainOptions:
    """How explanations are made and drawn; see `explain.overlay.panel`.

    Attributes:
        methods: of `explain.cam` or of the grad-cam library; stored ones for results.
        layer: module of the backbone, for methods of the grad-cam library.
        layout: 'full' (a row per method) or 'compact'.
        colormap: a name in `explain.overlay.COLORMAPS`.
        alpha: opacity of the heatmap, 0 to 1.
        limit: at most so many rows of results.
        cam_class: whose map, as for `Predictor`; of files.
        device, engine: as for `Predictor`; of files.
    """

    PANEL: ClassVar = LOOK

    methods: Annotated[
        tuple[str, ...],
        Option(
            "gradcam, gradcam_pp, ... or one of the grad-cam library, such as scorecam.",
            "METHOD",
            flags=("--method",),
            panel=FIRST,
        ),
    ] = ("gradcam", "gradcam_pp")
    limit: Annotated[int, Option("At most so many rows of --results.", least=1, panel=FIRST)] = 24
    layout: Annotated[str, Option("A row per method, or one.", choices=("full", "compact"))] = (
        "full"
    )
    colormap: Annotated[str, Option("Or turbo, inferno, viridis, ...", "NAME")] = "jet"
    alpha: Annotated[float, Option("Opacity of the heatmap.", least=0, most=1)] = 0.4
    device: Device = "auto"
    engine: EngineOption = "torch"
    cam_class: CamClassOption = "predicted"
    layer: Annotated[
        str | None,
        Option(
            "Module of the backbone, for methods of the grad-cam library.", "MODULE", panel="Model"
        ),
    ] = None
