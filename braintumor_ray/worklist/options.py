"""How explanations are drawn."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, get_args

from braintumor_ray.options import FIRST, CamClassOption, Device, EngineOption, Option

LOOK = "Look"  # a panel in `--help`
Order = Literal["urgency", "usefulness"]
ORDERS: tuple[Order, ...] = get_args(Order)
Sets = Literal["all", "single", "several", "empty", "unsure"]
SETS: tuple[Sets, ...] = get_args(Sets)


@dataclass(frozen=True)
class ExplainOptions:
    """How explanations are made and drawn; see `explain.overlay.panel`.

    Attributes:
        methods: of `explain.cam` or of the grad-cam library; stored ones for results.
        layer: module of the backbone, for methods of the grad-cam library.
        layout: 'full' (a row per method), 'compact', or 'compare' (sheets with a row per scan).
        colormap: a name in `explain.overlay.COLORMAPS`.
        alpha: opacity of the heatmap, 0 to 1.
        mask_head: draw heat inside the head only.
        limit: at most so many rows of results, or files of a folder.
        of_classes: a map of each of these classes, in place of `cam_class`; of files.
        cam_class: whose map, as for `Predictor`; of files.
        device, engine: as for `Predictor`; of files.
    """

    PANEL: ClassVar = LOOK

    methods: Annotated[
        tuple[str, ...],
        Option(
            "gradcam, gradcam_pp, ... or one of the grad-cam library, such as scorecam. "
            "gradcam_abs, gradcam_loss: variants of notebooks, to compare with.",
            "METHOD",
            flags=("--method",),
            panel=FIRST,
        ),
    ] = ("gradcam", "gradcam_pp")
    of_classes: Annotated[
        tuple[str, ...],
        Option(
            "Map of this class, or 'all': one of each; may be repeated. For files.",
            "NAME|all",
            flags=("--class",),
            panel=FIRST,
        ),
    ] = ()
    limit: Annotated[
        int,
        Option("At most so many rows of --results, or files of a folder.", least=1, panel=FIRST),
    ] = 24
    layout: Annotated[
        Literal["full", "compact", "compare"],
        Option("A row per method, one row, or sheets of 20 scans, a row for each."),
    ] = "full"
    colormap: Annotated[str, Option("Or turbo, inferno, viridis, ...", "NAME")] = "jet"
    alpha: Annotated[float, Option("Opacity of the heatmap.", least=0, most=1)] = 0.4
    mask_head: Annotated[bool, Option("Draw heat inside the head only, and write so.")] = False
    device: Device = "auto"
    engine: EngineOption = "torch"
    cam_class: CamClassOption = "predicted"
    layer: Annotated[
        str | None,
        Option(
            "Module of the backbone, for methods of the grad-cam library.", "MODULE", panel="Model"
        ),
    ] = None
