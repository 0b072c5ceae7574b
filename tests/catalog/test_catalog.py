import csv

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.catalog.identity import IdentityHash, compile_patient_pattern
from braintumor_ray.catalog.options import CatalogOptions
from braintumor_ray.catalog.schema import read_catalog, scan_id, write_catalog
from braintumor_ray.decode.types import VolumeOptions
from braintumor_ray.errors import CatalogError, UsageError
from braintumor_ray.storage import open_filesystem
from tests.builders import disc_scan
from tests.decode.volume_files import nifti_bytes


def put(path, image=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), disc_scan(1) if image is None else image)


def labels(table):
    return dict(zip(table["path"].to_pylist(), table["label"].to_pylist(), strict=True))


def write_csv(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)


KEY = IdentityHash(b"secret")


def test_class_folders_give_labels_and_split_folders_do_not(tmp_path):
    for path in ("Training/glioma/a.png", "Testing/no_tumor/b.jpg", "pred/c.png", "d.png"):
        put(tmp_path / path)
    table = load_catalog(tmp_path)
    assert labels(table) == {
        "Training/glioma/a.png": "glioma",
        "Testing/no_tumor/b.jpg": "no_tumor",
        "pred/c.png": None,
        "d.png": None,
    }
    split = dict(zip(table["path"].to_pylist(), table["official_split"].to_pylist(), strict=True))
    assert split["Training/glioma/a.png"] == "train"
    assert split["Testing/no_tumor/b.jpg"] == "test"
    assert split["d.png"] is None


def test_yes_no_and_unlabeled_folders(tmp_path):
    for path in ("yes/a.png", "no/b.png", "pred/c.png"):
        put(tmp_path / path)
    assert list(labels(load_catalog(tmp_path)).values()) == ["no", None, "yes"]


def test_format_mode_and_size_come_from_the_content(tmp_path):
    put(tmp_path / "wrong.jpg.png", disc_scan(1, (40, 30)))
    (tmp_path / "wrong.jpg.png").rename(tmp_path / "wrong.jpg")
    Image.new("RGBA", (20, 10)).save(tmp_path / "alpha.png")
    row = {r["path"]: r for r in load_catalog(tmp_path).to_pylist()}
    assert (row["wrong.jpg"]["format"], row["wrong.jpg"]["mode"]) == ("png", "L")
    assert (row["wrong.jpg"]["height"], row["wrong.jpg"]["width"]) == (40, 30)
    assert (row["alpha.png"]["mode"], row["alpha.png"]["width"]) == ("RGBA", 20)


def test_every_page_of_a_tiff_is_a_scan(tmp_path):
    pages = [Image.fromarray(disc_scan(i)) for i in range(3)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    table = load_catalog(tmp_path)
    assert table["frame"].to_pylist() == [0, 1, 2]
    assert len(set(table["scan_id"].to_pylist())) == 3


def test_unreadable_files_stay_in_the_catalog_and_sidecars_do_not(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"")
    (tmp_path / "no_extension").write_bytes(b"hello")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    table = load_catalog(tmp_path)
    assert table["path"].to_pylist() == ["a.png", "b.jpg", "no_extension"]
    assert table["height"].to_pylist()[1:] == [None, None]


def test_an_id_follows_path_frame_size_and_time_but_not_the_place():
    base = scan_id("a/b.png", 0, 10, 5)
    assert base == scan_id("a/b.png", 0, 10, 5)
    others = {
        scan_id("a/c.png", 0, 10, 5),
        scan_id("a/b.png", 1, 10, 5),
        scan_id("a/b.png", 0, 11, 5),
        scan_id("a/b.png", 0, 10, 6),
    }
    assert len(others | {base}) == 5
    assert -(2**63) <= base < 2**63


class TestTables:
    def test_path_label_and_patient_columns_and_the_others_are_kept(self, tmp_path):
        put(tmp_path / "img" / "a.png")
        put(tmp_path / "img" / "b.png")
        write_csv(
            tmp_path / "t.csv",
            [
                {"file": "img/a.png", "class": "x", "patient": "P1", "mode": "T1", "age": "7"},
                {"file": "img/b.png", "class": "", "patient": "P1", "mode": "T2", "age": ""},
            ],
        )
        table = load_catalog(tmp_path / "t.csv", CatalogOptions(identity=KEY))
        assert labels(table) == {"img/a.png": "x", "img/b.png": None}
        assert table["age"].to_pylist() == ["7", None]
        assert table["csv_mode"].to_pylist() == ["T1", "T2"]
        (key,) = set(table["patient_key"].to_pylist())
        assert key == KEY("P1")
        assert "P1" not in str(table.to_pylist())

    def test_named_columns_and_a_root(self, tmp_path):
        put(tmp_path / "images" / "a.png")
        write_csv(tmp_path / "t.csv", [{"where": "a.png", "what": "y"}])
        options = CatalogOptions(
            path_column="where", label_column="what", root=str(tmp_path / "images")
        )
        assert labels(load_catalog(tmp_path / "t.csv", options)) == {"a.png": "y"}

    def test_files_named_without_their_folder_are_found(self, tmp_path):
        put(tmp_path / "deep" / "Tumor" / "a.png")
        write_csv(tmp_path / "t.csv", [{"Image": "a.png", "Class": "Tumor"}])
        assert labels(load_catalog(tmp_path / "t.csv")) == {"deep/Tumor/a.png": "Tumor"}

    def test_a_frame_column_picks_single_frames(self, tmp_path):
        pages = [Image.fromarray(disc_scan(i)) for i in range(3)]
        pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
        whole = load_catalog(tmp_path)
        write_csv(
            tmp_path / "t.csv",
            [{"path": "stack.tif", "frame": "2"}, {"path": "stack.tif", "frame": "0"}],
        )
        table = load_catalog(tmp_path / "t.csv")
        assert table["frame"].to_pylist() == [0, 2]
        assert set(table["scan_id"].to_pylist()) < set(whole["scan_id"].to_pylist())

    def test_a_worklist_names_slices_of_a_volume_that_is_cut_otherwise(self, tmp_path):
        (tmp_path / "v.nii.gz").write_bytes(nifti_bytes(np.zeros((8, 9, 5), np.int16)))
        coronal = CatalogOptions(volumes=VolumeOptions("coronal"))
        whole = load_catalog(tmp_path, coronal).slice(3, 2)
        rows = whole.select(["path", "frame"]).append_column("label", pa.array(["a", "b"]))
        write_csv(tmp_path / "worklist.csv", rows.to_pylist())
        found = load_catalog(tmp_path / "worklist.csv", coronal)
        assert found["label"].to_pylist() == ["a", "b"]
        for name in ("scan_id", "uri", "frame", "size", "volume_plane"):
            assert found[name].equals(whole[name])
        with pytest.raises(CatalogError, match="give --plane coronal --volume 0"):
            load_catalog(tmp_path / "worklist.csv")

    def test_an_ambiguous_name_is_refused(self, tmp_path):
        put(tmp_path / "x" / "a.png")
        put(tmp_path / "y" / "a.png")
        write_csv(tmp_path / "t.csv", [{"image": "a.png"}])
        with pytest.raises(CatalogError, match="2 files"):
            load_catalog(tmp_path / "t.csv")

    def test_a_file_that_is_missing_keeps_its_row(self, tmp_path):
        put(tmp_path / "a.png")
        write_csv(tmp_path / "t.csv", [{"path": "a.png"}, {"path": "gone.png"}])
        table = load_catalog(tmp_path / "t.csv")
        assert table["size"].to_pylist()[1] is None

    def test_a_file_listed_twice_is_refused(self, tmp_path):
        put(tmp_path / "a.png")
        write_csv(tmp_path / "t.csv", [{"path": "a.png"}, {"path": "./a.png"}])
        with pytest.raises(CatalogError, match="listed twice"):
            load_catalog(tmp_path / "t.csv")

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"path_column": "nope"}, "--path-column 'nope'"),
            ({"label_column": "nope"}, "--label-column 'nope'"),
        ],
    )
    def test_a_missing_column_lists_those_there_are(self, tmp_path, options, words):
        put(tmp_path / "a.png")
        write_csv(tmp_path / "t.csv", [{"path": "a.png", "stage": "1"}])
        with pytest.raises(UsageError, match=words) as caught:
            load_catalog(tmp_path / "t.csv", CatalogOptions(**options))
        assert "stage" in str(caught.value)

    def test_an_empty_table_is_refused(self, tmp_path):
        (tmp_path / "t.csv").write_text("path,label\n")
        with pytest.raises(CatalogError, match="no rows"):
            load_catalog(tmp_path / "t.csv")


class TestIdentity:
    def test_ids_without_a_key_are_refused(self, tmp_path):
        put(tmp_path / "a.png")
        write_csv(tmp_path / "t.csv", [{"path": "a.png", "patient": "P1"}])
        with pytest.raises(CatalogError, match="BRAINTUMOR_HASH_KEY"):
            load_catalog(tmp_path / "t.csv")

    def test_a_pattern_over_the_path(self, tmp_path):
        put(tmp_path / "p0007_s1.png")
        put(tmp_path / "p0007_s2.png")
        options = CatalogOptions(
            patient_pattern=compile_patient_pattern(r"p(?P<patient>\d+)_"), identity=KEY
        )
        assert set(load_catalog(tmp_path, options)["patient_key"].to_pylist()) == {KEY("0007")}

    def test_another_key_gives_another_hash_and_kinds_do_not_meet(self):
        assert KEY("1") != IdentityHash(b"other")("1")
        assert KEY("1") != KEY("1", "study")

    def test_clear_ids_only_on_request(self):
        assert IdentityHash(clear=True)("P1") == "P1"

    @pytest.mark.parametrize("pattern", ["(", "no group"])
    def test_a_useless_pattern_is_refused(self, pattern):
        with pytest.raises(UsageError, match="--patient-pattern"):
            compile_patient_pattern(pattern)


def test_a_catalog_comes_back_as_it_was_written(tmp_path):
    put(tmp_path / "archive" / "x" / "a.png")
    table = load_catalog(tmp_path / "archive")
    write_catalog(table, tmp_path / "c.parquet")
    assert load_catalog(tmp_path / "c.parquet").equals(table)


def test_a_parquet_file_that_is_no_catalog_is_refused(tmp_path):
    write_catalog(load_catalog_of_one(tmp_path).drop_columns(["uri"]), tmp_path / "c.parquet")
    with pytest.raises(CatalogError, match="'uri' is missing"):
        read_catalog(tmp_path / "c.parquet")


def load_catalog_of_one(tmp_path):
    put(tmp_path / "archive" / "a.png")
    return load_catalog(tmp_path / "archive")


@pytest.mark.parametrize("source", ["nowhere", "nowhere.csv", "nowhere.parquet"])
def test_a_source_that_is_not_there_is_one_line(tmp_path, source):
    with pytest.raises(CatalogError, match="nowhere") as caught:
        load_catalog(tmp_path / source)
    assert "\n" not in str(caught.value).strip()


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(CatalogError, match="no files"):
        load_catalog(tmp_path)


def test_any_uri_that_fsspec_opens_will_do(tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    encoded = cv2.imencode(".png", disc_scan(1))[1].tobytes()
    memory.pipe("/archive/x/a.png", encoded)
    table = load_catalog("memory://archive")
    assert table["label"].to_pylist() == ["x"]
    assert table["height"].to_pylist() == [96]
    filesystem, path = open_filesystem(table["uri"][0].as_py())
    assert filesystem.open_input_file(path).read() == encoded


@pytest.mark.real
def test_the_real_set_is_counted_as_documented(real_data):
    table = load_catalog(real_data / "mri4")
    pairs = zip(table["official_split"].to_pylist(), table["label"].to_pylist(), strict=True)
    counts = {}
    for pair in pairs:
        counts[pair] = counts.get(pair, 0) + 1
    assert counts == {
        ("train", "glioma_tumor"): 687,
        ("train", "meningioma_tumor"): 671,
        ("train", "pituitary_tumor"): 678,
        ("train", "no_tumor"): 324,
        ("test", "glioma_tumor"): 72,
        ("test", "meningioma_tumor"): 96,
        ("test", "pituitary_tumor"): 60,
        ("test", "no_tumor"): 86,
    }
    sides = np.concatenate([table["height"].to_numpy(), table["width"].to_numpy()])
    assert (sides.min(), sides.max()) == (174, 1446)
