"""Names, tables, labels and trees as people have them; each test builds its own files."""

import codecs
import json
import os
import shutil
import socket
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.catalog.folders import folder_labels
from braintumor_ray.catalog.identity import IdentityHash
from braintumor_ray.catalog.labels import (
    ClassMap,
    parse_groups,
    read_spec,
    recorded_groups,
    remarks,
    with_named_folders,
    write_groups,
)
from braintumor_ray.catalog.listing import (
    Listing,
    files_below,
    left_out_of,
    list_files,
    stat_files,
)
from braintumor_ray.catalog.options import CatalogOptions
from braintumor_ray.catalog.redaction import UriRedaction, redact_catalog
from braintumor_ray.catalog.schema import read_catalog, write_catalog
from braintumor_ray.catalog.tables import read_records
from braintumor_ray.cli import app
from braintumor_ray.decode.files import read_file
from braintumor_ray.decode.types import DecodeLimits
from braintumor_ray.errors import CatalogError, UsageError
from braintumor_ray.evaluation.selection import bundle_classes, mapped_labels, true_classes
from braintumor_ray.storage import is_uri, local_path, read_bytes, spelled, split_uri
from tests.builders import make_fields, make_model

KEY = CatalogOptions(identity=IdentityHash(b"secret"))
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010800000000"
    "3a7e9b550000000a49444154789c63600000000200014892a4280000000049454e44ae426082"
)


def put(root, *paths, content=PNG):
    for path in paths:
        target = os.path.join(os.fsencode(root), os.fsencode(path))
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "wb") as file:
            file.write(content)


def column(table, name, key="path"):
    return dict(zip(table[key].to_pylist(), table[name].to_pylist(), strict=True))


def labels(source, options=KEY):
    return column(load_catalog(source, options), "label")


def left_out(source):
    return dict(left_out_of(load_catalog(source).schema).left_out)


def cli(*arguments):
    found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found


class TestNames:
    @pytest.mark.parametrize(
        "name", [b"M\xfcller.png", b"\xff\xfe", "\uef81x.png".encode(), "\uefff".encode() + b"\xe4"]
    )
    def test_a_name_that_is_no_utf8_comes_back_from_parquet(self, tmp_path, name):
        put(tmp_path / "archive", b"a/" + name, content=PNG + name)
        put(tmp_path / "archive", "a/ok.png")
        write_catalog(load_catalog(tmp_path / "archive"), tmp_path / "c.parquet")
        table = read_catalog(tmp_path / "c.parquet")
        assert table.num_rows == 2
        contents = {read_file(uri, DecodeLimits()).data for uri in table["uri"].to_pylist()}
        assert contents == {PNG, PNG + name}
        assert {
            os.fsencode(local_path(uri)).rsplit(b"/", 1)[1] for uri in table["uri"].to_pylist()
        } == {
            name,
            b"ok.png",
        }

    @given(st.lists(st.binary(min_size=1, max_size=12), min_size=2, max_size=2, unique=True))
    @settings(max_examples=300)
    def test_no_two_names_are_spelled_alike(self, names):
        texts = [
            spelled(os.fsdecode(name.replace(b"\0", b"").replace(b"/", b""))) for name in names
        ]
        for name, text in zip(names, texts, strict=True):
            text.encode()
            if text and not text.startswith("~"):
                raw = name.replace(b"\0", b"").replace(b"/", b"")
                assert os.fsencode(local_path(f"/x/{text}")) == b"/x/" + raw or raw in (b".", b"..")

    def test_a_class_folder_and_a_source_whose_names_are_no_utf8(self, tmp_path):
        put(tmp_path, b"arch\xefv/gl\xefome/1.png", b"arch\xefv/no/2.png")
        source = os.fsdecode(os.fsencode(tmp_path) + b"/arch\xefv")
        found = cli("catalog", source, "-o", tmp_path / "c.parquet", "--json")
        assert found.exit_code == 0, found.output
        assert sorted(json.loads(found.stdout)["labels"].values()) == [1, 1]

    def test_the_other_kinds_of_names_stay_as_they_are(self, tmp_path):
        names = ["a b.png", "100%25.png", "#1?.png", "脑.png", "a\nb.png", "IMG~1.PNG", "=1+1.png"]
        put(tmp_path, *(f"x/{name}" for name in names))
        assert {*labels(tmp_path)} == {f"x/{name}" for name in names}


class TestTrees:
    def test_a_link_that_leads_nowhere_keeps_its_row(self, tmp_path):
        put(tmp_path, "a/ok.png")
        os.symlink("../.git/annex/objects/x/y.nii.gz", tmp_path / "a" / "sub-01_T1w.nii.gz")
        os.symlink("self.png", tmp_path / "a" / "self.png")
        assert column(load_catalog(tmp_path), "size") == {
            "a/ok.png": len(PNG),
            "a/self.png": None,
            "a/sub-01_T1w.nii.gz": None,
        }

    def test_loops_of_links_add_nothing_and_are_counted(self, tmp_path):
        put(tmp_path / "outer" / "archive", "a/ok.png", "b/2.png")
        put(tmp_path / "outer", "elsewhere.png")
        for name, target in (("up", ".."), ("here", "."), ("root", "/"), ("above", "../..")):
            os.symlink(target, tmp_path / "outer" / "archive" / "a" / name)
        os.symlink("../a", tmp_path / "outer" / "archive" / "b" / "other")
        source = tmp_path / "outer" / "archive"
        assert [*labels(source)] == ["a/ok.png", "b/2.png"]
        assert left_out(source) == {"links to a folder that is listed already": 5}

    def test_a_linked_folder_elsewhere_is_followed_once(self, tmp_path):
        put(tmp_path / "store", "1.png")
        (tmp_path / "archive").mkdir()
        for name in ("glioma", "glioma again"):
            os.symlink(tmp_path / "store", tmp_path / "archive" / name)
        assert labels(tmp_path / "archive") == {"glioma/1.png": "glioma"}

    def test_what_a_file_server_keeps_is_counted(self, tmp_path):
        put(tmp_path, "glioma/1.jpg", "no/3.jpg")
        system = [
            *("glioma/@eaDir/1.jpg/SYNOPHOTO_THUMB_XL.jpg", "#recycle/2.jpg", "@Recycle/4.jpg"),
            *("$RECYCLE.BIN/5.jpg", "lost+found/6.jpg", "System Volume Information/x"),
        ]
        put(tmp_path, *system, ".Trash-1000/files/1.jpg", "glioma/._1.jpg", "glioma/Thumbs.db")
        put(tmp_path, "scans.zip", "more.tar.gz", "glioma/1.jpg~", "no/2.jpg.part")
        assert labels(tmp_path) == {"glioma/1.jpg": "glioma", "no/3.jpg": "no"}
        found = cli("catalog", tmp_path, "-o", tmp_path / "c.parquet", "--json")
        assert json.loads(found.stdout)["left_out"] == {
            "thumbnails and bins": len(system),
            "hidden": 2,
            "tables and texts": 1,
            "archives to unpack": 2,
            "backups and partial files": 2,
        }
        (tmp_path / "c.parquet").unlink()
        lines = cli("catalog", tmp_path, "-o", tmp_path / "c.parquet").output
        assert "archives to unpack 2" in lines
        assert "(more.tar.gz, scans.zip)" in lines

    def test_a_folder_of_archives_only_says_so(self, tmp_path):
        put(tmp_path, "scans.zip", content=b"PK")
        with pytest.raises(CatalogError, match=r"archives to unpack 1 \(scans.zip\)"):
            load_catalog(tmp_path)

    def test_an_unreadable_folder_is_counted(self, tmp_path, monkeypatch):
        put(tmp_path, "a/1.png", "closed/2.png")
        scandir = os.scandir

        def refusing(path):
            if str(path).endswith("closed"):
                raise PermissionError(13, "Permission denied", path)
            return scandir(path)

        monkeypatch.setattr("os.scandir", refusing)  # root may read everything
        assert left_out(tmp_path) == {"folders that cannot be read": 1}
        assert [*labels(tmp_path)] == ["a/1.png"]
        with pytest.raises(CatalogError, match="cannot be listed: Permission denied"):
            load_catalog(tmp_path / "closed")

    def test_a_folder_that_is_deleted_meanwhile_is_counted(self, tmp_path):
        put(tmp_path, "1.png", "a/2.png", "gone/3.png")
        listing = Listing([])
        found = files_below(str(tmp_path), listing)
        first = next(found).path
        shutil.rmtree(tmp_path / "gone")
        assert [first, *(file.path for file in found)] == ["1.png", "a/2.png"]
        assert listing.left_out == {"folders that cannot be read": 1}

    @pytest.mark.parametrize("source", ["", " "])
    def test_an_empty_source_is_not_the_root_of_the_machine(self, tmp_path, source):
        output = str(tmp_path / "c.parquet")
        with pytest.raises(UsageError, match="the source is empty"):
            load_catalog(source)
        found = CliRunner().invoke(app, ["catalog", source, "--output", output])
        assert found.exit_code == 2
        assert "the source is empty" in found.stderr

    def test_pipes_and_sockets_are_not_opened(self, tmp_path, monkeypatch):
        put(tmp_path, "a/1.png")
        os.mkfifo(tmp_path / "a" / "pipe.png")
        monkeypatch.chdir(tmp_path)  # the path of a socket is short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("a/socket")
            assert left_out(tmp_path) == {"pipes, sockets and devices": 2}

    def test_a_source_that_is_a_file_is_one_line(self, tmp_path):
        put(tmp_path, "1.png", "scans.zip")
        for name in ("1.png", "scans.zip"):
            found = cli("catalog", tmp_path / name, "-o", tmp_path / "c.parquet")
            assert found.exit_code == 1
            assert found.output.count("\n") == 1

    def test_the_home_directory(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        put(tmp_path, "data/a/1.png")
        assert labels("~/data") == {"a/1.png": "a"}
        assert read_bytes(load_catalog("~/data")["uri"][0].as_py()) == PNG
        monkeypatch.chdir(tmp_path / "data")
        put(tmp_path / "data", "~/b/2.png")  # a folder of that name comes first
        assert labels("~") == {"b/2.png": "b"}

    def test_file_uris_may_be_percent_encoded(self, tmp_path):
        put(tmp_path, "scan set #1/a/1.png", "100%25/b/2.png")
        assert labels(f"file://{tmp_path}/scan%20set%20%231") == {"a/1.png": "a"}
        assert labels(f"file://{tmp_path}/100%25") == {"b/2.png": "b"}
        assert labels(f"file://localhost{tmp_path}/scan set #1") == {"a/1.png": "a"}

    def test_ids_are_those_of_arrow(self, tmp_path):
        put(tmp_path, *(f"a/{number}.png" for number in range(20)))
        for number in range(20):
            when = 1_700_000_000_123_456_789 + number * 987_654_321
            os.utime(tmp_path / f"a/{number}.png", ns=(when, when))
        found = list_files(str(tmp_path)).files
        assert found == stat_files(str(tmp_path), [file.path for file in found])

    def test_redaction_forgets_what_was_left_out(self, tmp_path):
        put(tmp_path, "Smith/1.png", "Smith/Smith.zip")
        hidden = redact_catalog(load_catalog(tmp_path), UriRedaction(b"key"))
        assert "Smith" not in str(hidden.schema.metadata) + str(hidden.to_pylist())


def test_a_uri_is_taken_apart_without_losing_anything():
    assert split_uri("s3://b/a #1?x=%20+//c;d") == ("s3", "b", "a #1?x=%20+//c;d")
    assert split_uri("s3://bucket").store == "s3://bucket"
    assert not is_uri("dir/a://b")
    assert not is_uri("/data/s3://b")


def table(root, text, name="t.csv", **options):
    data = text if isinstance(text, bytes) else text.encode()
    (root / name).write_bytes(data)
    return load_catalog(root / name, CatalogOptions(identity=IdentityHash(b"k"), **options))


WANTED = {"img/1.png": "glioma", "img/2.png": "no"}


class TestTables:
    @pytest.fixture
    def root(self, tmp_path):
        put(tmp_path, "img/1.png", "img/2.png")
        return tmp_path

    @pytest.mark.parametrize(
        "text",
        [
            "path, label\nimg/1.png, glioma\nimg/2.png, no\n",
            '"path" , "label"\n"img/1.png" , "glioma "\n"img/2.png", "no"\n',
            "path;label\nimg/1.png;glioma\nimg/2.png;no\n",
            "path\tlabel\r\nimg/1.png\tglioma\r\nimg/2.png\tno\r\n",
            "path|label\nimg/1.png|glioma\nimg/2.png|no\n",
            "sep=;\r\npath;label\r\nimg/1.png;glioma\r\nimg/2.png;no\r\n",
            "path,label\rimg/1.png,glioma\rimg/2.png,no\r",
            "\n\npath,label\n\nimg/1.png,glioma\n,\nimg/2.png,no\n\n",
            "Path,LABEL,\nimg/1.png,glioma,\nimg/2.png,no,\n",
            "note;path;label\na,b,c;img/1.png;glioma\nd,e;img/2.png;no\n",
            'note,path,label\n"one, ""two"",\nthree",img/1.png,glioma\nx,img/2.png,no\n',
            "path,label\nimg\\1.png,glioma\n.\\img\\2.png,no\n",
            "File Name,Class_Name\nimg/1.png,glioma\nimg/2.png,no\n",
            "path,label\n/other/machine/set/img/1.png,glioma\n/other/machine/set/img/2.png,no\n",
            "path,label\nC:\\set\\img\\1.png,glioma\nC:\\set\\img\\2.png,no\n",
            codecs.BOM_UTF8 + b"path,label\nimg/1.png,glioma\nimg/2.png,no\n",
            "\ufeffpath\tlabel\r\nimg/1.png\tglioma\r\nimg/2.png\tno\r\n".encode("utf-16-le"),
        ],
    )
    def test_however_it_is_written(self, root, text):
        assert column(table(root, text), "label") == WANTED

    def test_absolute_paths_below_the_root(self, root):
        for base in (root, f"file://{root}", os.path.join(root, "img", "..")):
            text = f"path,label\n{base}/img/1.png,glioma\n{base}/img/2.png,no\n"
            assert column(table(root, text), "label") == WANTED

    def test_absolute_paths_elsewhere_are_those_files(self, root, tmp_path_factory):
        there = tmp_path_factory.mktemp("there")
        put(there, "1.png")
        found = table(root, f"path,label\n{there}/1.png,a\nimg/1.png,b\n")
        assert found["uri"].to_pylist() == [f"{there}/1.png", f"{root}/img/1.png"]
        assert found["size"].null_count == 0

    def test_numbers_are_labels(self, root):
        found = table(root, "path,label,age\nimg/1.png,1,63\nimg/2.png,0,\n")
        assert column(found, "label") == {"img/1.png": "1", "img/2.png": "0"}
        assert found["age"].to_pylist() == ["63", None]

    def test_spaces_around_a_label_make_no_class(self, root):
        put(root, "3.png")
        found = table(root, "path,label\nimg/1.png,glioma\nimg/2.png,glioma \n3.png,no\n")
        assert {*found["label"].to_pylist()} == {"glioma", "no"}

    def test_a_patient_column_is_found_behind_spaces(self, root):
        found = table(root, "path, Patient ID\nimg/1.png, P1\nimg/2.png, P1 \n")
        assert found["patient_key"].null_count == 0
        assert len({*found["patient_key"].to_pylist()}) == 1

    @pytest.mark.parametrize(
        ("missing", "other"),
        [("glioma/1.png", "no/1.png"), ("glioma/1.png", "1.png"), ("7.png", "no/7.png")],
    )
    def test_a_namesake_never_takes_the_place_of_a_missing_file(self, tmp_path, missing, other):
        put(tmp_path, other, "2.png")
        found = table(tmp_path, f"path,label\n{missing},glioma\n2.png,no\n")
        assert column(found, "size") == {missing: None, "2.png": len(PNG)}
        assert column(found, "label")[missing] == "glioma"

    @pytest.mark.parametrize("path", ["x" * 300 + ".png", "a/" * 3000 + "1.png", "loop.png"])
    def test_a_path_that_no_file_can_have_is_a_row_without_a_size(self, tmp_path, path):
        put(tmp_path, "2.png")
        (tmp_path / "loop.png").symlink_to("loop.png")
        found = table(tmp_path, f"path,label\n{path},glioma\n2.png,no\n")
        assert column(found, "size") == {path: None, "2.png": len(PNG)}

    def test_nor_where_every_file_is_missing(self, tmp_path):
        put(tmp_path, "no/1.png", "1.png")
        found = table(tmp_path, "path,label\nglioma/1.png,glioma\n")
        assert column(found, "size") == {"glioma/1.png": None}
        found = table(tmp_path, "path,label\ntrain/no/1.png,no\n")
        assert column(found, "size") == {"train/no/1.png": None}

    def test_paths_from_above_and_from_below_the_root(self, tmp_path):
        put(tmp_path / "set", "glioma/1.png", "no/1.png", "no/2.png")
        text = "path,label\nset/glioma/1.png,a\nset/no/1.png,b\nset/no/gone.png,b\n"
        found = table(tmp_path / "set", text)
        assert column(found, "size")["set/no/gone.png"] is None
        assert {*found["path"].to_pylist()} == {"glioma/1.png", "no/1.png", "set/no/gone.png"}
        put(tmp_path / "two", "archive/glioma/1.png", "archive/no/1.png")
        found = table(tmp_path / "two", "path\nglioma/1.png\nno/1.png\n")
        assert {*found["path"].to_pylist()} == {"archive/glioma/1.png", "archive/no/1.png"}

    def test_two_places_that_would_do_are_refused(self, tmp_path):
        put(tmp_path, "a/glioma/1.png", "b/glioma/1.png")
        with pytest.raises(CatalogError, match="2 files there"):
            table(tmp_path, "path\nglioma/1.png\n")

    def test_columns_named_like_ours_are_renamed(self, root):
        ours = [
            "class_name",
            "duplicate_group",
            "pixel_sha256",
            "status",
            "split",
            "uri",
            "scan_id",
        ]
        text = f"path,label,{','.join(ours)}\nimg/1.png,a,{','.join('xxxxxxx')}\n"
        found = table(root, text)
        assert [f"csv_{name}" for name in ours] == found.column_names[-len(ours) :]
        assert found["label"].to_pylist() == ["a"]

    def test_columns_of_one_name_are_all_kept(self, root):
        found = table(root, "path,site,site,csv_uri,uri\nimg/1.png,a,b,c,d\n")
        row = found.to_pylist()[0]
        assert (row["site"], row["site_2"], row["csv_uri"], row["uri_2"]) == ("a", "b", "c", "d")

    def test_decomposed_names(self, tmp_path):
        nfc, nfd = (unicodedata.normalize(form, "tête/é.png") for form in ("NFC", "NFD"))
        put(tmp_path, nfd)
        found = table(tmp_path, f"path,label\n{nfc},a\n")
        assert found["path"].to_pylist() == [nfd]
        put(tmp_path, unicodedata.normalize("NFC", "tête/2.png"))
        assert {*labels(tmp_path).values()} == {"tête"}

    def test_a_table_in_the_encoding_of_its_files(self, tmp_path):
        put(tmp_path, b"M\xfcller.png", "Köhler.png")
        text = "path,label\nMüller.png,Gliom groß\nKöhler.png,no\n".encode("cp1252")
        found = table(tmp_path, text)
        assert found["size"].null_count == 0
        assert {*found["label"].to_pylist()} == {"Gliom groß", "no"}

    def test_a_frame_that_pandas_wrote(self, root):
        assert table(root, "path,frame\nimg/1.png,0.0\nimg/2.png,\n")["frame"].to_pylist() == [0, 0]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("path,label\nimg/1.png,a,b\n", "has 3 cells, the header 2"),
            ('path,label\nimg/1.png,"a\nimg/2.png,b\n', "never closed"),
            ("path,label\n,a\n", "without a path"),
            ("path,frame\nimg/1.png,2147483648\n", "is not a number from 0"),
            ("", "no rows"),
            ("\0\0", "no rows"),
        ],
    )
    def test_what_cannot_be_meant_is_one_line(self, root, text, words):
        with pytest.raises(CatalogError, match=words):
            table(root, text)

    @given(st.data())
    @settings(max_examples=400, deadline=None)
    def test_changed_bytes_never_crash(self, tmp_path_factory, data):
        text = bytearray(b'path, label;x\n"img/1.png",glioma\nimg/2.png,no\r\na\t"b""c",\xff\n')
        for _ in range(data.draw(st.integers(1, 6))):
            at = data.draw(st.integers(0, len(text) - 1))
            text[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
        file = tmp_path_factory.getbasetemp() / "mutated.csv"
        file.write_bytes(text)
        try:
            found = read_records(str(file))
            rows = list(found.rows())
        except CatalogError:
            return  # one line for the user
        else:
            assert {len(row) for row in rows} == {len(found.columns)}


ODD = ["a, b", "IDH+", "x=y", 'say "no"', "脑瘤", "опухоль", "@home", "{1}", "[2]", '5" lesion']


class TestLabels:
    @given(
        st.dictionaries(
            st.text(min_size=1, max_size=6),
            st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=3),
            min_size=1,
            max_size=4,
        )
    )
    @settings(max_examples=500)
    def test_any_mapping_is_read_as_it_was_written(self, groups):
        assert parse_groups(write_groups(groups)) == groups

    def test_a_simple_mapping_is_written_as_ever(self):
        classes = ClassMap.parse("tumor=a+b c,no", ["a", "b c", "no"], ["no"])
        assert classes.to_spec() == "no=no,tumor=a+b c"

    def test_what_a_bundle_remembers_is_read_back(self):
        classes = ClassMap.parse(None, ODD)
        fields = make_fields(
            make_model(classes=len(ODD)).architecture,
            classes=classes.classes,
            positive_classes=classes.positive,
            recipe={"data": {"classes": classes.to_spec()}},
        )
        assert mapped_labels(ODD, bundle_classes(fields)) == ODD

    def test_what_older_bundles_remember_is_read_back(self):
        assert recorded_groups("a=a,b=b+c", ("a", "b")) == {"a": ["a"], "b": ["b", "c"]}
        odd = ("IDH+", "a, b", "x=y")
        spec = ",".join(f"{name}={name}" for name in odd)  # as it was written without quotes
        assert recorded_groups(spec, odd) == {name: [name] for name in odd}
        with pytest.raises(UsageError, match="not those of its recipe"):
            recorded_groups("a=a", ("b", "c"))

    @pytest.mark.parametrize(
        "spec",
        [
            'tumor="a, b"+"IDH+",no',
            ' tumor = "a, b" + "IDH+" , no ',
            '{"tumor": ["a, b", "IDH+"], "no": "no"}',
        ],
    )
    def test_labels_are_named_in_quotes_or_json(self, tmp_path, spec):
        wanted = {"a, b": "tumor", "IDH+": "tumor", "no": "no"}
        present = ["a, b", "IDH+", "no", "other"]
        assert ClassMap.parse(spec, present).of_label == wanted
        (tmp_path / "classes").write_text(spec, encoding="utf-8-sig")
        assert ClassMap.parse(read_spec(f"@{tmp_path}/classes"), present).of_label == wanted

    @pytest.mark.parametrize("spec", ["{", '{"a": 1}', "[[1]]", "@nowhere", '["a", ""]'])
    def test_what_is_no_mapping_is_one_line(self, spec):
        with pytest.raises(UsageError, match="--classes"):
            ClassMap.parse(read_spec(spec), ["a", "b"])

    def test_labels_that_differ_in_case_or_separators_are_one_class(self):
        found = ["glioma_tumor", "Glioma Tumor", "glioma-tumor ", "glioma_tumor", "No Tumor"]
        classes = ClassMap.parse(None, found, ["no_tumor"])
        assert classes.classes == ("No Tumor", "glioma_tumor")
        assert classes.positive == ("glioma_tumor",)
        (line,) = classes.merged()
        assert "'Glioma Tumor'" in line
        assert "--classes" in line
        named = ClassMap.parse("a=glioma_tumor,b=Glioma Tumor,c=no_tumor", found)
        assert named.of_label["Glioma Tumor"] == "b"

    def test_signs_are_no_separators(self):
        assert len(ClassMap.parse(None, ["IDH+", "IDH-", "IDH", "1-2", "12"]).classes) == 5

    def test_another_set_may_write_them_otherwise(self):
        groups = parse_groups("glioma=glioma_tumor,no=no_tumor")
        assert mapped_labels(["Glioma Tumor", "NO-TUMOR", "x", None], groups) == [
            "glioma",
            "no",
            None,
            None,
        ]

    def test_a_class_name_of_another_is_not_believed(self, tmp_path):
        put(tmp_path, "glioma_tumor/1.png", "no_tumor/2.png")
        fields = make_fields(make_model().architecture)
        catalog = load_catalog(tmp_path).append_column("class_name", [["stage 1", "stage 2"]])
        assert true_classes(catalog, fields).names == ["glioma_tumor", "no_tumor"]


class TestNumberedFolders:
    def test_they_are_classes_where_they_are_named(self, tmp_path):
        put(tmp_path, "Training/1/a.png", "Training/2/a.png", "Training/3/a.png", "4/a.png")
        catalog = load_catalog(tmp_path)
        assert {*catalog["label"].to_pylist()} == {None}
        (line,) = remarks(catalog)
        assert "--classes 1,2,3,4" in line
        named = with_named_folders(catalog, parse_groups("1,2,tumor=3"))
        assert column(named, "label") == {
            "4/a.png": None,
            "Training/1/a.png": "1",
            "Training/2/a.png": "2",
            "Training/3/a.png": "3",
        }

    def test_the_command_says_that_they_are_none(self, tmp_path):
        put(tmp_path, "set/1/a.png", "set/2/a.png")
        found = cli("catalog", tmp_path, "-o", tmp_path / "c.parquet")
        assert "taken for no class" in found.output

    def test_labels_of_a_table_stay(self, tmp_path):
        put(tmp_path, "1/a.png", "2/b.png")
        catalog = table(tmp_path, "path,label\n1/a.png,x\n2/b.png,\n")
        named = with_named_folders(catalog, parse_groups("1,2"))
        assert named["label"].to_pylist() == ["x", "2"]


@pytest.mark.parametrize(
    ("paths", "wanted"),
    [
        ("glioma/1.png no/1.png pred/1.png 1.png", "glioma no - -"),
        ("Training/glioma/1.png Testing/no/1.png", "glioma no"),
        ("archive/Training/glioma/1.png archive/Testing/no/1.png", "glioma no"),
        ("x/y/Training/aa/1.png x/y/Testing/bb/1.png", "aa bb"),
        (
            "yes/1.jpg no/1.jpg brain_tumor_dataset/yes/1.jpg brain_tumor_dataset/no/1.jpg",
            "yes no yes no",
        ),
        ("glioma/patient12/1.png no/patient3/1.png", "glioma no"),
        ("glioma/patient12/1.png glioma/patient13/1.png", "glioma glioma"),
        ("glioma/Smith/1.png no/Meyer/1.png", "glioma no"),
        ("set/aa/p1/1.png set/bb/p1/1.png", "aa bb"),
        ("aa/x1/1.png bb/x1/1.png", "aa bb"),
        ("glioma/ses-01/T1/1.png no/ses-01/T1/1.png", "glioma no"),
        ("images/glioma/1.png images/no/1.png", "glioma no"),
        ("glioma/images/1.png no/images/1.png", "glioma no"),
        ("glioma/axial/1.png glioma/sagittal/1.png no/axial/1.png", "glioma glioma no"),
        ("archive/grade1/1.png archive/grade2/1.png", "grade1 grade2"),
        ("grade1/1.png grade2/1.png", "grade1 grade2"),
        ("A/glioma/1.png B/glioma/1.png B/no/1.png", "glioma glioma no"),
        ("images/1.png", "-"),
        ("1/1.png 2/1.png", "- -"),
    ],
)
def test_the_class_is_the_folder_next_to_the_scans(paths, wanted):
    expected = [None if name == "-" else name for name in wanted.split()]
    assert folder_labels(paths.split()) == expected


def test_a_level_of_many_names_below_few_holds_patients():
    paths = [f"{kind}/{name}/1.png" for kind in ("aa", "bb") for name in map(chr, range(97, 123))]
    assert {*folder_labels(paths)} == {"aa", "bb"}
