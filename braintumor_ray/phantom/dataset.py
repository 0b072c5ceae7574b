"""Phantom data sets: synthetic scans with masks, patients, a split and planted bad files."""

import csv
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from braintumor_ray.errors import UsageError
from braintumor_ray.phantom.lesion import CLASS_NAMES
from braintumor_ray.phantom.planted import (
    Planted,
    encode,
    plant_bad_files,
    plant_duplicates,
    write_file,
)
from braintumor_ray.phantom.slices import Slice, draw_patient_slice, sample_patient
from braintumor_ray.types import Progress

_FORMAT_STREAM = 1  # keeps the draw of file formats apart from the draw of anatomy
_README = """\
Synthetic phantom scans
=======================

These images are SYNTHETIC: drawn by a program (braintumor-ray phantom), not acquired from people.
They resemble axial brain MR slices closely enough to test software with. They are not medical
data, and no figure measured on them says anything about real scans.

scans/{Training,Testing}/CLASS/   the images; every patient is in one of the two only
masks/tumour/, masks/skull/       the same paths with .png: 255 inside, 0 outside, exact
                                  (a glioma's mask leaves out its oedema)
scans.csv                         one row per scan; path is relative to scans/
planted.csv                       files put there to be found: unreadable ones, and copies of
                                  Training scans in Testing; they are not in scans.csv
"""


@dataclass(frozen=True)
class ScanRow:
    """A row of `scans.csv`; width and height are in pixels."""

    path: str
    label: str
    patient_id: str
    slice: int
    split: str
    width: int
    height: int


@dataclass(frozen=True)
class PhantomSummary:
    """What `write_phantoms` wrote."""

    directory: Path
    patients: int
    scans: int
    training: int
    testing: int
    scans_per_class: dict[str, int]
    planted: tuple[Planted, ...]


def patient_slices(number: int, *, seed: int = 0, slices: tuple[int, int] = (2, 5)) -> list[Slice]:
    """Draw all slices of one patient, lowest first.

    Patient `number` has class `CLASS_NAMES[number % 4]` and depends on `seed` and `number` alone,
    not on how many patients there are.

    Args:
        number: The patient, from 0.
        seed: The data set's seed.
        slices: Fewest and most slices of a patient.
    """
    low, high = slices
    draw = np.random.default_rng(np.random.SeedSequence((seed, number, 0)))
    count = low + int(draw.random() * (high - low + 1))
    levels = np.linspace(0.08, 0.92, count) if count > 1 else np.array([0.5])
    drawn = sample_patient((seed, number), CLASS_NAMES[number % len(CLASS_NAMES)])
    return [
        draw_patient_slice(drawn, float(level), patient=f"p{number:04d}", slice_index=index)
        for index, level in enumerate(levels)
    ]


def write_phantoms(
    directory: str | Path,
    *,
    patients: int = 40,
    seed: int = 0,
    slices: tuple[int, int] = (2, 5),
    bad_files: bool = True,
    duplicates: bool = True,
    progress: Progress | None = None,
) -> PhantomSummary:
    """Write a synthetic data set: scans, masks, `scans.csv`, `planted.csv` and `README.txt`.

    Every fifth patient of each class is in Testing (the second, the seventh, ...). Memory does not
    grow with the number of patients. `scans.csv` is there when all else is: scans that were left
    by an interrupted attempt are drawn again.

    Args:
        directory: Folder to write to; must not hold scans yet.
        patients: Number of patients, spread evenly over the four classes.
        seed: Seed, 0 or more; the same seed gives the same bytes.
        slices: Fewest and most slices of a patient.
        bad_files: Plant five unreadable files.
        duplicates: Plant two copies of Training scans in Testing.
        progress: Called with (patients done, patients) after each patient.

    Raises:
        UsageError: If an argument is out of range or the folder holds scans already.
    """
    _check(patients, seed, slices)
    root = Path(directory)
    scans = root / "scans"
    _make_room(root)
    (root / "README.txt").write_text(_README, encoding="utf-8")
    scans.mkdir()
    counts, originals = Counter[str](), list[str]()
    with _csv_rows(root / "scans.csv", ScanRow) as write_row:
        for number in range(patients):
            for row in _write_patient(root, number, seed, slices):
                write_row(row)
                counts.update((row.split, row.label))
                # The first scans of the first two patients, to be copied into Testing.
                if row.split == "Training" and row.slice == 0 and len(originals) < 2:
                    originals.append(row.path)
            if progress is not None:
                progress(number + 1, patients)
        planted = plant_bad_files(scans, seed) if bad_files else []
        planted += plant_duplicates(scans, originals) if duplicates else []
        with _csv_rows(root / "planted.csv", Planted) as write_planted:
            for copy in planted:
                write_planted(copy)
    return PhantomSummary(
        directory=root,
        patients=patients,
        scans=counts["Training"] + counts["Testing"],
        training=counts["Training"],
        testing=counts["Testing"],
        scans_per_class={name: counts[name] for name in CLASS_NAMES},
        planted=tuple(planted),
    )


def _check(patients: int, seed: int, slices: tuple[int, int]) -> None:
    if patients < len(CLASS_NAMES):
        raise UsageError(f"{patients} patients: give at least 4, one of each class")
    if seed < 0:
        raise UsageError(f"seed {seed}: give 0 or more")
    low, high = slices
    if not 1 <= low <= high:
        raise UsageError(f"slices {low} to {high}: give fewest and most, from 1 up")


def _make_room(root: Path) -> None:
    """Make the folder; refuse one with scans, unless an interrupted attempt has left them."""
    readme = root / "README.txt"
    if (root / "scans").exists():
        ours = readme.is_file() and readme.read_bytes() == _README.encode()
        if not ours or (root / "scans.csv").exists():
            raise UsageError(f"{root} already holds scans: give another folder or remove it first")
        for name in ("scans", "masks"):
            shutil.rmtree(root / name, ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True)


def _split_of(number: int) -> str:
    """Testing for every fifth patient of a class, whatever the number of patients."""
    return "Testing" if number // len(CLASS_NAMES) % 5 == 1 else "Training"


def _write_patient(
    root: Path, number: int, seed: int, slices: tuple[int, int]
) -> Iterator[ScanRow]:
    """Write a patient's scans and masks, one row each."""
    formats = np.random.default_rng(np.random.SeedSequence((seed, number, 0, _FORMAT_STREAM)))
    split = _split_of(number)
    for drawn in patient_slices(number, seed=seed, slices=slices):
        suffix = ".jpg" if formats.random() < 0.7 else ".png"
        color = formats.random() < 0.08
        stem = f"{split}/{drawn.class_name}/{drawn.patient}_s{drawn.slice_index}"
        image = cv2.cvtColor(drawn.image, cv2.COLOR_GRAY2RGB) if color else drawn.image
        write_file(root / "scans" / (stem + suffix), encode(suffix, image))
        for kind, mask in (("tumour", drawn.tumor_mask), ("skull", drawn.skull_mask)):
            pixels = mask.astype(np.uint8) * np.uint8(255)
            write_file(root / "masks" / kind / f"{stem}.png", encode(".png", pixels))
        height, width = drawn.image.shape
        label, patient, index = drawn.class_name, drawn.patient, drawn.slice_index
        yield ScanRow(stem + suffix, label, patient, index, split, width, height)


@contextmanager
def _csv_rows(path: Path, kind: type[ScanRow] | type[Planted]) -> Iterator[Callable[[Any], None]]:
    """A function that writes one row of a dataclass to a CSV with its fields as columns.

    The file gets its name when it is whole.
    """
    work = path.with_suffix(".tmp")
    with work.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([field.name for field in fields(kind)])
        yield lambda row: table.writerow(astuple(row))
    work.replace(path)
