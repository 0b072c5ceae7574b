"""The commands of docs/datasets.md on tiny folders laid out as the public sets are."""

import csv
import re
import shlex
from collections import Counter

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from braintumor_ray.catalog.schema import read_catalog
from braintumor_ray.cli import app
from tests.conftest import PROJECT
from tests.decode.mutations import slice_like
from tests.decode.volume_files import dicom_bytes

PAGE = (PROJECT / "docs" / "datasets.md").read_text(encoding="utf-8")
COMMANDS = {
    re.search(r"--output (\w+)\.parquet", block)[1]: block.replace("\\\n", " ")
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
}
FOUR = ("glioma", "meningioma", "no_tumor", "pituitary")


def scan(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    gray = slice_like(np.random.default_rng(seed), 64, 64)
    cv2.imwrite(str(path), gray)
    return gray


def convert(name):
    """Run the page's Python block of that name, here."""
    (code,) = re.findall(rf"```python {name}\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, f"docs/datasets.md {name}", "exec"), {})


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRAINTUMOR_HASH_KEY", "a key of our own")
    return tmp_path


def catalog(name):
    """What the page's command writes."""
    arguments = shlex.split(COMMANDS[name])
    assert arguments[:2] == ["braintumor-ray", "catalog"]
    found = CliRunner().invoke(app, arguments[1:])
    assert found.exit_code == 0, found.output
    return read_catalog(f"{name}.parquet")


def labels(table):
    return Counter(table["label"].to_pylist())


def test_sartaj(here):
    for split in ("Training", "Testing"):
        for label in ("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor"):
            scan(here / "brain-tumor-classification-mri" / split / label / "image(1).jpg")
    table = catalog("sartaj")
    assert set(labels(table)) == {
        "glioma_tumor",
        "meningioma_tumor",
        "no_tumor",
        "pituitary_tumor",
    }
    assert Counter(table["official_split"].to_pylist()) == {"train": 4, "test": 4}


def test_br35h(here):
    for name in ("yes/y1.jpg", "no/no1.jpg", "no/No12.jpg", "pred/pred0.jpg"):
        scan(here / "br35h" / name)
    scan(here / "br35h" / "yes" / "y2.png").tobytes()
    (here / "br35h" / "yes" / "y2.png").rename(here / "br35h" / "yes" / "y2.jpg")  # PNG inside
    table = catalog("br35h")
    assert labels(table) == {"yes": 2, "no": 2, None: 1}
    assert Counter(table["format"].to_pylist()) == {"jpeg": 4, "png": 1}


@pytest.mark.parametrize("header", ["ID,Image,Format,Mode,Shape", ",image,format,mode,shape"])
def test_the_binary_set_with_its_table(here, header):
    root = here / "brian-tumor-dataset" / "Brain Tumor Data Set" / "Brain Tumor Data Set"
    scan(root / "Brain Tumor" / "Cancer (1).jpg")
    scan(root / "Brain Tumor" / "Cancer (2).jpg")
    scan(root / "Healthy" / "Not Cancer  (1).jpg")
    rows = [
        '0,Cancer (1).jpg,JPEG,RGB,"(512, 512, 3)"',
        '1,Cancer (2).jpg,JPEG,L,"(64, 64)"',
        '2,Not Cancer  (1).jpg,JPEG,L,"(64, 64)"',
    ]
    table_file = here / "brian-tumor-dataset" / "metadata.csv"
    table_file.write_text("\n".join([header, *rows]) + "\n")
    table = catalog("binary")
    assert labels(table) == {"Brain Tumor": 2, "Healthy": 1}
    assert table["format"].to_pylist() == ["jpeg"] * 3
    shape = "Shape" if "Shape" in header else "shape"
    assert table[shape].to_pylist()[0] == "(512, 512, 3)"
    assert table["size"].null_count == 0


def test_nickparvar(here):
    for split in ("Training", "Testing"):
        for label in ("glioma", "meningioma", "notumor", "pituitary"):
            scan(here / "brain-tumor-mri-dataset" / split / label / f"{split[:2]}-gl_0010.jpg")
    table = catalog("nickparvar")
    assert set(labels(table)) == {"glioma", "meningioma", "notumor", "pituitary"}
    assert Counter(table["official_split"].to_pylist()) == {"train": 4, "test": 4}


def test_cheng(here):
    h5py = pytest.importorskip("h5py", reason="reads MATLAB 7.3 files; not needed otherwise")
    images = [slice_like(np.random.default_rng(k), 64, 64).astype(np.int16) * 9 for k in range(2)]
    for number, (image, label, patient) in enumerate(
        zip(images, (1, 3), ("100360", "MR0402"), strict=True), start=1
    ):
        path = here / "cheng" / "brainTumorDataPublic_1-766" / f"{number}.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file["cjdata/image"] = image.T
            file["cjdata/label"] = np.array([[label]], float)
            file["cjdata/PID"] = np.array([[ord(letter)] for letter in patient], np.uint16)
    table = catalog("cheng")
    assert table["label"].to_pylist() == ["meningioma", "pituitary"]
    assert len(set(table["patient_key"].to_pylist())) == 2
    assert "100360" not in str(table.to_pydict())
    assert table["mode"].to_pylist() == ["int16", "int16"]


def test_a_mat_file_of_before_says_what_to_do():
    from braintumor_ray.decode.decode import decode

    reason = decode(b"MATLAB 5.0 MAT-file, Platform: PCWIN64" + bytes(500)).reason
    assert "docs/datasets.md" in reason


def test_brisc(here):
    root = here / "brisc2025"
    for split in ("train", "test"):
        for label in FOUR:
            name = f"brisc2025_{split}_00001_{label[:2]}_ax_t1.jpg"
            scan(root / "classification_task" / split / label / name)
        scan(root / "segmentation_task" / split / "masks" / "brisc2025_00001.png")
    table = catalog("brisc")
    assert labels(table) == dict.fromkeys(FOUR, 2)
    assert Counter(table["official_split"].to_pylist()) == {"train": 4, "test": 4}


def test_lgg_by_its_conversion(here):
    root = here / "lgg-mri-segmentation" / "kaggle_3m"
    root.mkdir(parents=True)
    (root / "data.csv").write_text("Patient,RNASeqCluster\nTCGA_CS_4941,2\n")
    for patient in ("TCGA_CS_4941_19960909", "TCGA_DU_5849_19950405"):
        for number in (1, 2):
            stem = root / patient / f"{patient}_{number}"
            gray = scan(stem.with_suffix(".tif"), number)
            cv2.imwrite(str(stem.with_suffix(".tif")), np.dstack([gray, gray // 2, gray]))
            mask = np.zeros((64, 64), np.uint8)
            mask[20:30, 20:30] = 255 * (number == 2)
            cv2.imwrite(f"{stem}_mask.tif", mask)
    convert("lgg")
    table = catalog("lgg")
    assert labels(table) == {"tumor": 2, "no_tumor": 2}
    assert len(set(table["patient_key"].to_pylist())) == 2
    assert not [path for path in table["path"].to_pylist() if "mask" in path]
    assert set(table["format"].to_pylist()) == {"tiff"}
    with open(root / "slices.csv", newline="") as file:
        assert {row["patient_id"] for row in csv.DictReader(file)} == {
            "TCGA_CS_4941",
            "TCGA_DU_5849",
        }


def test_a_hospital_export(here):
    (here / "key").write_text("another key")
    (here / "export" / "ST0").mkdir(parents=True)
    gray = slice_like(np.random.default_rng(0), 64, 48)
    (here / "export" / "ST0" / "IM0").write_bytes(dicom_bytes(gray))
    table = catalog("archive")
    assert table["modality"].to_pylist() == ["MR"]
    assert table["patient_key"].null_count == 0


def test_every_set_of_the_page_is_tested():
    tested = {"sartaj", "br35h", "binary", "nickparvar", "cheng", "brisc", "lgg", "archive"}
    assert set(COMMANDS) == tested
