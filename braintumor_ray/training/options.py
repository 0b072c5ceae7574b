"""How a run is trained: recipe, data split, workers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from braintumor_ray.recipes.schema import Recipe


@dataclass(frozen=True)
class SplitOptions:
    """How scans are shared out.

    Attributes:
        fractions: of the grouped split.
        by: 'group' (patients and duplicates stay together) or 'official' (the source's folders;
            validation is taken from its training part, by group).
        seed: of the shuffle.
        allow_leakage: train although the official split leaks.
    """

    fractions: dict[str, float]
    by: str = "group"
    seed: int = 0
    allow_leakage: bool = False


Say = Callable[[str], None]


@dataclass(frozen=True)
class Workers:
    """Who trains.

    Attributes:
        number: workers, or (least, most) for an elastic run.
        use_gpu: a GPU for each.
        max_failures: how often a dead worker is replaced before the run fails.
        threads: torch threads per worker on CPU; None: the machine's cores shared out.
    """

    number: int | tuple[int, int]
    use_gpu: bool = False
    max_failures: int = 3
    threads: int | None = None

    @property
    def most(self) -> int:
        """Largest number of workers."""
        return self.number if isinstance(self.number, int) else self.number[1]


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
        cache: folder of decoded shards; None: inside the run's folder.
        truth: where tumors are (masks, boxes or outlines), for guidance; None: not guided.
        source: how the data is named in the model card.
        synthetic: the scans are phantoms; then missing pretrained weights are no error.
        device: of the last step (temperature, threshold).
    """

    recipe: Recipe
    output: str | Path
    weights: str = "imagenet"
    workers: Workers = field(default_factory=lambda: Workers(1))
    split_by: str = "group"
    allow_leakage: bool = False
    cache: str | None = None
    truth: str | None = None
    source: str = ""
    synthetic: bool = False
    device: str = "auto"

    def split(self) -> SplitOptions:
        """How scans are shared out."""
        fractions = {str(name): share for name, share in self.recipe.data.fractions.items()}
        return SplitOptions(fractions, self.split_by, self.recipe.seed, self.allow_leakage)
