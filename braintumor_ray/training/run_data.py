"""The data of a run: decoded once, split without leaks, and kept with the run."""

from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from braintumor_ray.catalog.labels import (
    ClassMap,
    occurring,
    parse_groups,
    read_spec,
    with_named_folders,
    write_groups,
)
from braintumor_ray.catalog.reviewed import SOURCE_LABEL, read_reviewed, with_reviewed_labels
from braintumor_ray.catalog.schema import completed, write_catalog
from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.errors import UsageError
from braintumor_ray.progress import Log, TenthLines
from braintumor_ray.recipes.schema import Recipe
from braintumor_ray.splits.splits import LeakReport
from braintumor_ray.training.loop import balanced_class_weights
from braintumor_ray.training.options import SplitOptions
from braintumor_ray.training.run_folder import RunFolder
from braintumor_ray.training.shards import Shards, decode_to_shards, known_shards, mixed
from braintumor_ray.training.split import (
    HASH_COLUMNS,
    check_counts,
    counts_by_split,
    has_own_split,
    with_splits,
)
from braintumor_ray.types import Ints


@dataclass(frozen=True)
class RunData:
    """Decoded scans and where each belongs.

    Attributes:
        catalog: all scans, with class_name, split, duplicate_group, pixel_sha256 and status.
        shards: the decoded squares.
        classes: which labels are learnt.
        leaks: of the split.
        counts: scans per split and class.
        own_split: the source's catalog named which split each scan is in.
    """

    catalog: pa.Table
    shards: Shards
    classes: ClassMap
    leaks: LeakReport
    counts: dict[str, dict[str, int]]
    own_split: bool = False

    def of(self, split: str) -> tuple[Ints, Ints]:
        """Scan ids and class indices of a split, int64 (n,) each."""
        order = {name: index for index, name in enumerate(self.classes.classes)}
        rows = self.rows_of(split)
        labels = [order[name] for name in rows["class_name"].to_pylist()]
        return rows["scan_id"].to_numpy(), np.array(labels, np.int64)

    def rows_of(self, split: str) -> pa.Table:
        """Catalog rows of a split that have a class, in the catalog's order."""
        inside = pc.fill_null(pc.equal(self.catalog["split"], split), False)
        return self.catalog.filter(pc.and_(inside, self.catalog["class_name"].is_valid()))

    def groups_of(self, scan_ids: Ints) -> Ints:
        """Duplicate and patient group of each scan, int64 (n,)."""
        known = self.catalog["scan_id"].to_numpy()
        order = np.argsort(known)
        position = order[np.searchsorted(known, scan_ids, sorter=order)]
        return np.asarray(self.catalog["duplicate_group"].to_numpy()[position], np.int64)

    @property
    def has_patients(self) -> bool:
        """Whether the source has patient ids."""
        return any(key is not None for key in self.catalog["patient_key"].to_pylist())

    def class_weights(self, recipe: Recipe, repeats: Ints | int = 1) -> npt.NDArray[np.float32]:
        """The factor of each class in the loss, from training labels, float32 (k,).

        Args:
            recipe: says whether there are any.
            repeats: how often each training scan is shown per epoch, (n,) or one for all.
        """
        k = len(self.classes.classes)
        if recipe.class_weights == "none":
            return np.ones(k, np.float32)
        return balanced_class_weights(np.repeat(self.of("train")[1], repeats), k)

    def class_weight_line(self, recipe: Recipe, repeats: Ints | int = 1) -> str:
        """The weights in words; arguments as for `class_weights`."""
        pairs = zip(self.classes.classes, self.class_weights(recipe, repeats), strict=True)
        shown = ", ".join(f"{name} {weight:.2f}" for name, weight in pairs)
        return f"class weights ({recipe.class_weights}): {shown}"

    def fingerprint(self) -> str:
        """Digest over pixels, classes and splits."""
        columns = ("pixel_sha256", "class_name", "split")
        rows = zip(*(self.catalog[name].to_pylist() for name in columns), strict=True)
        text = "\n".join(sorted(f"{a} {b} {c}" for a, b, c in rows if b is not None))
        return sha256(text.encode()).hexdigest()[:32]


def class_map(catalog: pa.Table, recipe: Recipe) -> ClassMap:
    """Which labels of a catalog are learnt, as the recipe says.

    Raises:
        UsageError: there are no two classes.
    """
    labels = [label for label in catalog["label"].to_pylist() if label is not None]
    spec = read_spec(recipe.data.classes)
    return ClassMap.parse(spec, labels, recipe.data.negative_classes)


def reviewed_catalog(catalog: pa.Table, labels: str | None, recipe: Recipe, log: Log) -> pa.Table:
    """The catalog with the labels of reviewers, where there are any.

    Raises:
        CatalogError: they cannot be read, or are of other scans.
    """
    if labels is None:
        return catalog
    spec = read_spec(recipe.data.classes)
    groups = parse_groups(spec) if spec else None
    catalog, told = with_reviewed_labels(catalog, read_reviewed(labels), labels, groups)
    log(told)
    return catalog


def source_classes(catalog: pa.Table, recipe: Recipe) -> ClassMap | None:
    """The classes of the source's own labels, by which scans were split before a review.

    None where no reviewer changed a label, or where the source's labels are no two classes.
    """
    if SOURCE_LABEL not in catalog.column_names:
        return None
    labels = [label for label in catalog[SOURCE_LABEL].to_pylist() if label is not None]
    spec = read_spec(recipe.data.classes)
    if spec is not None:  # without labels that only reviewers gave
        spec = write_groups(occurring(parse_groups(spec), labels))
    try:
        return ClassMap.parse(spec, labels, recipe.data.negative_classes)
    except UsageError:  # an archive without labels: the reviewers' are the first
        return None


def is_learnt(catalog: pa.Table, classes: ClassMap, before: ClassMap | None) -> pa.Array:
    """Scans of a class, or of one before a review, which the split depends on: bool (n,)."""
    new = [classes.apply(label) for label in catalog["label"].to_pylist()]
    old: list[str | None] = [None] * len(new)
    if before is not None:
        old = [before.apply(label) for label in catalog[SOURCE_LABEL].to_pylist()]
    return pa.array([bool(a or b) for a, b in zip(new, old, strict=True)])


def named_catalog(catalog: pa.Table, recipe: Recipe) -> pa.Table:
    """The catalog with labels from folders that the recipe's classes name, such as `1,2,3`."""
    spec = read_spec(recipe.data.classes)
    groups = parse_groups(spec) if spec else None
    for column in ("label", SOURCE_LABEL):
        if column in catalog.column_names:
            catalog = with_named_folders(catalog, groups, column)
    return catalog


def decode_run(
    catalog: pa.Table,
    learnt: pa.Array,
    folder: RunFolder,
    cache: str | None,
    preprocessing: Preprocessing,
    log: Log,
) -> Shards:
    """Decode the scans that are learnt once; later runs with the same cache reuse them.

    Args:
        catalog: n scans.
        learnt: bool (n,); the others are not read, unless they were decoded before.
        folder: of the run.
        cache: folder of shards; None: inside the run.
        preprocessing: decides the square that is kept.
        log: takes lines, and progress by tenths.
    """
    cache = cache or folder.at("cache")
    shards = known_shards(catalog, cache, preprocessing)
    kept = catalog if shards else catalog.filter(learnt)
    if shards is None:
        source = folder.at("source.parquet")
        write_catalog(mixed(kept), source)
        advance = TenthLines("decoding", log)
        shards = decode_to_shards(source, kept, cache, preprocessing, progress=advance)
    done = "found decoded in" if shards.reused else "decoded into"
    log(f"{kept.num_rows} scans {done} {cache}")
    if kept.num_rows < catalog.num_rows:
        log(f"{catalog.num_rows - kept.num_rows} scans of no class are not decoded")
    return shards


def split_run(
    catalog: pa.Table,
    folder: RunFolder,
    shards: Shards,
    classes: ClassMap,
    options: SplitOptions,
    workers: int,
    log: Log,
    before: ClassMap | None = None,
) -> RunData:
    """Find duplicates, split and check; the run is to write the catalog into its folder.

    `before` is of `source_classes`; the others are as for `decode_run` and `with_splits`.

    Raises:
        GateError: the split leaks and that was not allowed.
        UsageError: a class is missing from a split that must have it.
    """
    own = has_own_split(catalog)
    if own:
        log("splits: taken from the catalog's column 'split'")
    catalog, leaks = with_splits(catalog, shards.read(HASH_COLUMNS), classes, options, before)
    counts = counts_by_split(catalog)
    check_counts(counts, classes, workers)
    if options.leave_out is not None:
        pairs = zip(catalog["split"].to_pylist(), catalog["class_name"].to_pylist(), strict=True)
        unused = sum(split is None and name is not None for split, name in pairs)
        log(
            f"'{options.leave_out}' is the test split; {unused} scans of the other sources have a "
            "copy or a patient in it and are left out"
        )
    bad = sum(status not in ("ok", None) for status in catalog["status"].to_pylist())
    if bad:
        path = folder.at("catalog.parquet")
        log(f"{bad} scans could not be read and are left out; their reasons are in {path}")
    for split, row in counts.items():
        log(f"{split}: {sum(row.values())} scans ({_listed(row)})")
    return RunData(completed(catalog), shards, classes, leaks, counts, own)


def _listed(row: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in row.items())
