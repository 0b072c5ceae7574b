"""What a review shows and where its labels go."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, get_args

from braintumor_ray.options import FIRST, Device, Option, TokenFile

Order = Literal["urgency", "uncertainty", "disagreement"]
ORDERS: tuple[Order, ...] = get_args(Order)
Export = Literal["coco", "fiftyone"]
LABELS = "review/labels.jsonl"  # below the results folder


@dataclass(frozen=True)
class ReviewOptions:
    """How a results folder is reviewed.

    Attributes:
        labels: the file that labels are appended to, local; None: `LABELS` in the results folder.
        reviewer: whose labels they are, until another name is entered on the page.
        order: the first order of the list.
        bundle: RUN/bundle, for maps of other classes and neighbors; None: stored maps only.
        device: of the bundle's network.
        token_file: as for `serve`.
        export: write labels and predictions in this format in place of starting the server.
        output: where `export` writes: a .json file, or a folder for FiftyOne.
    """

    PANEL: ClassVar = FIRST

    labels: Annotated[
        str | None,
        Option(
            "Labels are appended here; else RESULTS/review/labels.jsonl.",
            "FILE.jsonl",
            panel="Labels",
        ),
    ] = None
    reviewer: Annotated[str, Option("Your name, kept with each label.", "NAME", panel="Labels")] = (
        ""
    )
    order: Annotated[Order, Option("Which scans come first.")] = "urgency"
    bundle: Annotated[
        str | None,
        Option(
            "RUN/bundle that scored them: maps of any class, and nearest training scans.",
            "BUNDLE",
            panel="Model",
        ),
    ] = None
    device: Device = "auto"
    token_file: TokenFile = None
    export: Annotated[
        Export | None,
        Option(
            "Write predictions, labels and boxes for another tool, and end.",
            panel="Export",
        ),
    ] = None
    output: Annotated[
        str | None,
        Option(
            "Of --export: FILE.json of coco, a folder of fiftyone.",
            "FILE|FOLDER",
            flags=("--output", "-o"),
            panel="Export",
        ),
    ] = None
