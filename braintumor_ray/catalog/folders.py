"""Read from a source's folders: the class of its scans, and the official split."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

SPLIT_FOLDERS = {
    "training": "train",
    "train": "train",
    "testing": "test",
    "test": "test",
    "validation": "val",
    "valid": "val",
    "val": "val",
}
UNLABELED_FOLDERS = {"pred", "predict", "unlabelled", "unlabeled", "unknown"}
# Folders named by how scans are kept or taken, never what they show.
PLAIN_FOLDERS = {
    *("images", "image", "imgs", "img", "scans", "slices", "data", "raw", "original", "processed"),
    *("jpg", "jpeg", "png", "tif", "tiff", "dcm", "dicom", "nii", "nifti", "anat", "mri", "mr"),
    *("axial", "coronal", "sagittal", "ax", "cor", "sag", "t1", "t1w", "t1c", "t1ce", "t1gd"),
    *("t2", "t2w", "flair", "dwi", "adc", "pd"),
}
# Names of folders that hold one patient, study or series; a number may be all of the name.
_ID = re.compile(
    r"(patient|pat|pt|p|subject|subj|sub|s|case|id|study|stu|st|series|ser|se|session|ses|exam|visit)?"
    r"[ _.-]*\d[\d _.-]*|.*\d{4}.*",
    re.IGNORECASE,
)
_DIAGNOSIS = re.compile(
    r"tumou?r|glio|mening|pituit|schwann|astrocyt|adenoma|lymphoma|metasta|cancer|lesion"
    r"|healthy|normal|benign|malignant|negative|positive|^(yes|no|none|[hl]gg|gbm)$",
    re.IGNORECASE,
)
MOST_CLASSES = 20  # a level with more names than that holds patients, if the one above has fewer

Chain = tuple[str, ...]


def clean_label(text: str) -> str:
    """A label without spaces around it, in Unicode's composed form (macOS decomposes names)."""
    return unicodedata.normalize("NFC", text).strip()


def folder_labels(paths: Sequence[str]) -> list[str | None]:
    """The class of each scan by the folders of the whole source; None where they give none.

    The class is the folder next to the scans. Not counted as folders are those of a split
    (`Training`), of a format, plane or sequence (`images`, `axial`, `t2`), and those that hold
    one patient, study or series: names such as `patient12`, `ses-01` or `20190212`; everything
    below two or more diagnoses (`glioma`, `healthy`); and, where at least two other folders are
    above, a level in which every name has a number, a level of one name, and a level of more than
    20 names below one of fewer. Nothing below `pred` or `unlabeled` has a class, and no class is
    a mere number (unless the user names it, see `labels.with_named_folders`).

    Args:
        paths: below the root, with slashes.
    """
    chains = {path.rpartition("/")[0]: _chain(path) for path in paths}
    chosen = _climb({chain for chain in chains.values() if chain})
    return [_label(chosen, chains[path.rpartition("/")[0]]) for path in paths]


def official_split_of(path: str) -> str | None:
    """'train', 'val' or 'test' where a folder says so."""
    for part in path.split("/")[:-1]:
        if part.lower() in SPLIT_FOLDERS:
            return SPLIT_FOLDERS[part.lower()]
    return None


def folders_of(path: str) -> set[str]:
    """Names of the folders that a path lies in, as labels."""
    return {clean_label(part) for part in path.split("/")[:-1]}


def numbered_folders(paths: Iterable[str], labels: Iterable[str | None]) -> list[str]:
    """Folders next to the scans that are mere numbers, where no others name classes."""
    if len({*labels} - {None}) > 1:
        return []
    names = {clean_label(path.split("/")[-2]) for path in paths if "/" in path}
    return sorted((name for name in names if name.isdecimal()), key=int)


def _chain(path: str) -> Chain:
    """The folders that may be a class, from the root; empty where the scan has none."""
    folders = [clean_label(part) for part in path.split("/")[:-1]]
    if any(name.lower() in UNLABELED_FOLDERS for name in folders):
        return ()
    return tuple(n for n in folders if n.lower() not in SPLIT_FOLDERS.keys() | PLAIN_FOLDERS)


def _label(chosen: dict[Chain, Chain], chain: Chain) -> str | None:
    climbed = chosen.get(chain)
    return None if not climbed or climbed[-1].isdecimal() else climbed[-1] or None


def _climb(chains: set[Chain]) -> dict[Chain, Chain]:
    """Each chain of folders cut after the one that names the class."""
    diagnoses = {chain: _to_diagnosis(chain) for chain in chains}
    if all(diagnoses.values()) and len({cut[-1] for cut in diagnoses.values()}) > 1:
        return diagnoses
    chosen = {chain: _without_ids(chain) for chain in chains}
    while True:
        deeper = {chain for chain in chosen.values() if _may_climb(chain)}
        names = {chain[-1] for chain in deeper}
        above = {chain[-2] for chain in deeper} | {c[-1] for c in {*chosen.values()} - deeper}
        if not deeper or not _are_below_classes(names, above):
            return chosen
        chosen = {
            chain: _without_ids(cut[:-1]) if cut in deeper else cut for chain, cut in chosen.items()
        }


def _may_climb(chain: Chain) -> bool:
    return len(chain) > 1 and not _DIAGNOSIS.search(chain[-1])


def _are_below_classes(names: set[str], above: set[str]) -> bool:
    """Whether a level holds patients, series or the like of the classes above."""
    if len(above) < 2:
        return False  # one folder around everything is no class
    return (
        len(names) == 1
        or all(re.search(r"\d", name) for name in names)
        or len(names) > MOST_CLASSES >= len(above)
    )


def _to_diagnosis(chain: Chain) -> Chain:
    while chain and not _DIAGNOSIS.search(chain[-1]):
        chain = chain[:-1]
    return chain


def _without_ids(chain: Chain) -> Chain:
    while len(chain) > 1 and _ID.fullmatch(chain[-1]) and not _DIAGNOSIS.search(chain[-1]):
        chain = chain[:-1]
    return chain
