"""How a run is trained: recipe, data split, workers."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from braintumor_ray.catalog.options import LabelsOption
from braintumor_ray.options import FIRST, MadeOf, Option, parse_range

if TYPE_CHECKING:
    from braintumor_ray.recipes.schema import Recipe

RECIPE, DATA, CLUSTER = "Recipe", "Data", "Cluster"


@dataclass(frozen=True)
class SplitOptions:
    """How scans are shared out.

    Attributes:
        fractions: of the grouped split.
        by: 'group' (patients and duplicates stay together) or 'official' (the source's folders;
            validation is taken from its training part, by group).
        seed: of the shuffle.
        allow_leakage: train although the official split leaks.
        leave_out: the source that is tested; the others train and validate, without their scans
            that have a copy or a patient in it.
    """

    fractions: dict[str, float]
    by: str = "group"
    seed: int = 0
    allow_leakage: bool = False
    leave_out: str | None = None


@dataclass(frozen=True)
class Workers:
    """Who trains.

    Attributes:
        number: workers, or (least, most) for an elastic run.
        use_gpu: a GPU for each; None: `train` takes none, the command asks the cluster.
        max_failures: how often a dead worker is replaced before the run fails.
        threads: torch threads per worker on CPU; None: the machine's cores shared out.
    """

    PANEL: ClassVar = CLUSTER

    number: Annotated[
        int | tuple[int, int],
        Option(
            "Workers; MIN:MAX: elastic.",
            "N|MIN:MAX",
            flags=("--num-workers",),
            parse=partial(parse_range, "--num-workers"),
            typed="1",
        ),
    ] = 1
    use_gpu: Annotated[
        bool | None,
        Option("A GPU per worker; else where the cluster has GPUs.", flags=("--gpu/--no-gpu",)),
    ] = None
    max_failures: int = 3
    threads: int | None = None

    @property
    def most(self) -> int:
        """Largest number of workers."""
        return self.number if isinstance(self.number, int) else self.number[1]


@dataclass(frozen=True)
class RecipeChoice:
    """Which recipe, and what is different in it."""

    PANEL: ClassVar = RECIPE

    recipe: Annotated[
        str, Option("A name ('recipes' lists them) or a TOML file.", "NAME|FILE", panel=FIRST)
    ] = "mobilenetv2-finetune"
    settings: Annotated[
        tuple[str, ...],
        Option(
            "A field of the recipe, such as optimizer.lr=3e-4; may be repeated.",
            "KEY=VALUE",
            flags=("--set",),
        ),
    ] = ()
    classes: Annotated[
        str | None,
        Option(
            "Merge, rename, leave out: tumor=glioma_tumor+pituitary_tumor,no_tumor; or a file.",
            "MAPPING|@FILE",
        ),
    ] = None
    backbone: Annotated[
        str | None,
        Option(
            "A timm name (see docs/recipes.md), at its own input size and normalization.", "NAME"
        ),
    ] = None

    def load(self) -> "Recipe":
        """The recipe with all of it.

        Raises:
            UsageError: unknown recipe, field or backbone, or a value that does not fit.
        """
        from braintumor_ray.catalog.labels import read_spec
        from braintumor_ray.recipes.loader import load_recipe, with_backbone

        recipe = load_recipe(self.recipe, self.settings)
        if self.backbone is not None:
            from braintumor_ray.models.classifier import input_size_of

            sized = any(setting.startswith("data.image_size") for setting in self.settings)
            size = None if sized else input_size_of(self.backbone)
            recipe = with_backbone(recipe, self.backbone, size)
        if self.classes is not None:
            data = recipe.data.model_copy(update={"classes": read_spec(self.classes)})
            recipe = recipe.model_copy(update={"data": data})
        return recipe


@dataclass(frozen=True)
class TrainOptions:
    """A run.

    Attributes:
        recipe: what to train.
        output: the run's folder, a path or a URI; its bundle will be `output`/bundle.
        weights: 'imagenet', 'none' or a file.
        workers: who trains.
        split_by: 'group' or 'official'.
        allow_leakage: train although the official split leaks.
        leave_out: name of the source that is tested and neither trains nor validates.
        cache: folder of decoded shards; None: inside the run's folder.
        truth: where tumors are (masks, boxes or outlines), for guidance; None: not guided.
        labels: labels and boxes of reviewers (`catalog.reviewed`); boxes are truth.
        source: how the data is named in the model card.
        synthetic: the scans are phantoms; then missing pretrained weights are no error.
        minutes: for decoding, epochs and tuning; None: all epochs of the recipe.
        device: of the last step (temperature, threshold).
    """

    PANEL: ClassVar = DATA

    recipe: Annotated["Recipe", MadeOf(RecipeChoice, RecipeChoice.load)]
    output: Annotated[
        str | Path,
        Option(
            "Folder or URI of the run; its bundle is RUN/bundle.",
            "RUN",
            flags=("--output", "-o"),
            panel=FIRST,
        ),
    ] = "runs/latest"
    weights: Annotated[
        str,
        Option(
            "Pretrained weights; a file has timm's keys.",
            "imagenet|none|FILE.safetensors",
            panel=RECIPE,
        ),
    ] = "imagenet"
    workers: Workers = field(default_factory=Workers)
    split_by: Annotated[
        Literal["group", "official"],
        Option("Patients and duplicates stay together, or the source's folders."),
    ] = "group"
    allow_leakage: Annotated[bool, Option("Train on a split that leaks.")] = False
    leave_out: Annotated[
        str | None,
        Option("Of several sources: test on this one, train on the others.", "NAME"),
    ] = None
    cache: Annotated[
        str | None, Option("Decoded scans, shared by runs; else inside the run.", "FOLDER")
    ] = None
    truth: Annotated[
        str | None,
        Option(
            "Tumors of the scans: training guides the evidence to them.", "MASKS|BOXES|OUTLINES"
        ),
    ] = None
    labels: LabelsOption = None
    minutes: Annotated[
        float | None,
        Option(
            "Time for the run: as many epochs as fit; their schedule still ends.",
            "N",
            least=0.1,
            panel=RECIPE,
        ),
    ] = None
    source: str = ""
    synthetic: bool = False
    device: str = "auto"

    def split(self) -> SplitOptions:
        """How scans are shared out."""
        fractions = {str(name): share for name, share in self.recipe.data.fractions.items()}
        return SplitOptions(
            fractions, self.split_by, self.recipe.seed, self.allow_leakage, self.leave_out
        )
