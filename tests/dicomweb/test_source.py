"""A PACS as a source: listed by pages, read as stored, no UID in what is kept, errors in a line."""

import json
import shutil
from collections import Counter

import numpy as np
import pyarrow as pa
import pydicom
import pytest
from typer.testing import CliRunner

from braintumor_ray.catalog import build as parts_of
from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.catalog.identity import IdentityHash
from braintumor_ray.catalog.options import CatalogOptions
from braintumor_ray.catalog.pacs_parts import write_pacs_catalog
from braintumor_ray.catalog.schema import read_catalog
from braintumor_ray.cli import app
from braintumor_ray.decode.files import read_file
from braintumor_ray.decode.reading import hash_scans
from braintumor_ray.decode.types import DEFAULT_LIMITS
from braintumor_ray.dicomweb import filesystem, query
from braintumor_ray.dicomweb.query import parse_query
from braintumor_ray.dicomweb.uid_tokens import hide_uid, show_uid, uid_key
from braintumor_ray.errors import CatalogError, ServerError, UsageError
from braintumor_ray.predict.results import results_folder
from braintumor_ray.publishing.options import PublishOptions
from braintumor_ray.publishing.publish import publish
from braintumor_ray.scoring import pacs as nights
from braintumor_ray.scoring.plan import make_plan
from braintumor_ray.storage import is_local, read_bytes
from tests.dicomweb.pacs import Pacs, serving
from tests.evaluation.make_results import add_generation, make_results
from tests.publishing.orthanc import Orthanc, needs_orthanc
from tests.publishing.scans import (
    ORIENTATIONS,
    enhanced_dataset,
    scan_dataset,
    scored,
    uid,
    write,
)

SECRET = b"key"
OPTIONS = CatalogOptions(identity=IdentityHash(SECRET))
PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    monkeypatch.setenv("BRAINTUMOR_UID_KEYS", "")  # restored at the end: keys are added to it
    monkeypatch.setenv("BRAINTUMOR_DICOMWEB_WAIT", "0")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("BRAINTUMOR_HASH_KEY", raising=False)
    filesystem._service.cache_clear()  # credentials are those of the environment


def study_of(number):
    dataset = scan_dataset(number, ORIENTATIONS["axial"])
    dataset.StudyInstanceUID = uid("study", number // 3)
    dataset.SeriesInstanceUID = uid("series", number // 2)
    return dataset


def archive(folder, numbers):
    for number in numbers:
        write(folder, f"{number:03d}.dcm", study_of(number))
    return folder


@pytest.fixture
def scans(tmp_path):
    archive(tmp_path / "scans", range(7))
    write(tmp_path / "scans", "enhanced.dcm", enhanced_dataset(ORIENTATIONS["oblique"]))
    return tmp_path / "scans"


@pytest.fixture
def pacs(scans):
    return Pacs(scans)


@pytest.fixture
def source(pacs):
    with serving(pacs) as address:
        yield address


def by_pixels(catalog):
    hashes = hash_scans(catalog)
    assert set(hashes["status"].to_pylist()) == {"ok"}
    return sorted(hashes["pixel_sha256"].to_pylist())


def kept_columns(catalog):
    names = ("frame", "format", "mode", "height", "width", "modality", "plane", "sequence")
    keys = ("patient_key", "study_key", "series_key", "sop_key")
    rows = catalog.select([*names, *keys]).to_pylist()
    return sorted(rows, key=lambda row: (row["sop_key"], row["frame"]))


@pytest.mark.parametrize("most", [None, 1, 2])
def test_its_catalog_is_that_of_the_same_files_in_a_folder(source, pacs, scans, most):
    pacs.most = most
    found, folder = load_catalog(source, OPTIONS), load_catalog(scans, OPTIONS)
    assert found.num_rows == 9  # the enhanced object has two frames
    assert kept_columns(found) == kept_columns(folder)
    assert by_pixels(found) == by_pixels(folder)
    assert set(found["size"].to_pylist()) == set(found["label"].to_pylist()) == {None}


def test_an_object_is_read_as_stored_whatever_way_it_is_sent(source, pacs):
    stored = sorted(data for _, data in pacs.objects.values())
    uris = {*load_catalog(source, OPTIONS)["uri"].to_pylist()}
    assert not any(map(is_local, uris))
    for single in (False, True):
        pacs.single_part = single
        assert sorted(map(read_bytes, uris)) == stored
        assert sorted(read_file(uri, DEFAULT_LIMITS).data for uri in uris) == stored


def test_a_second_listing_gives_the_same_ids_and_another_key_gives_others(source):
    one, two = (load_catalog(source, OPTIONS) for _ in range(2))
    assert one["scan_id"] == two["scan_id"]
    other = load_catalog(source, CatalogOptions(identity=IdentityHash(b"other")))
    assert not {*one["scan_id"].to_pylist()} & {*other["scan_id"].to_pylist()}


def test_no_uid_and_no_name_is_in_the_catalog_unless_it_is_wanted(source, pacs):
    def text(identity):
        found = load_catalog(source, CatalogOptions(identity=identity))
        return str(found.to_pylist()) + str(found.schema.metadata)

    secrets = {part for uids in pacs.objects for part in uids} | {"PLANTED", "Planted"}
    hidden = text(IdentityHash(SECRET))
    assert not [secret for secret in secrets if secret in hidden]
    clear = text(IdentityHash(clear=True))
    assert [part for uids in pacs.objects for part in uids if part not in clear] == []


def test_a_uid_is_read_with_its_own_key_and_at_its_own_place_only(monkeypatch):
    token = hide_uid("1.2.840.10008.1", "study", uid_key(SECRET))
    assert len(token) == 64
    with pytest.raises(UsageError, match="hash key that this process does not have"):
        show_uid(token, "study")
    monkeypatch.setenv("BRAINTUMOR_HASH_KEY", SECRET.decode())
    assert show_uid(token, "study") == "1.2.840.10008.1"
    with pytest.raises(UsageError):
        show_uid(token, "sop")


def test_objects_that_are_no_images_are_left_out_and_counted(source, pacs):
    uids = (uid("study", 0), uid("maps"), uid("a map"))
    pacs.objects[uids] = (PARAMETRIC_MAP, b"")
    pacs.objects[uid("study", 0), uid("maps"), "1.2/../3"] = ("1.2.3", b"")
    found = load_catalog(source, OPTIONS)
    assert found.num_rows == 9
    note = found.schema.metadata[b"left_out"].decode()
    assert '"objects that are no images": 1' in note
    assert '"objects whose UIDs are not valid": 1' in note


@pytest.fixture
def with_ours(tmp_path, pacs, scans):
    """The service has maps, reports and captures of its scans, too; all are called MR."""
    publish(
        str(scored(tmp_path / "results", scans)),
        load_catalog(scans, OPTIONS),
        PublishOptions(str(tmp_path / "objects")),
    )
    for path in (tmp_path / "objects").rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.Modality = "MR"  # as a gateway may write
        dataset.save_as(path)
    pacs.add(tmp_path / "objects")
    assert len(pacs.objects) == 8 + 9 * 4


@pytest.mark.parametrize("tells_sizes", [False, True])
def test_what_we_published_is_not_listed_again(source, pacs, with_ours, tells_sizes):
    pacs.tells_manufacturer, pacs.tells_sizes = True, tells_sizes
    pacs.sent = 0
    found = load_catalog(source, OPTIONS)
    assert (found.num_rows, pacs.sent) == (9, 8)
    note = json.loads(found.schema.metadata[b"left_out"])
    assert note["counts"] == {"objects published by braintumor-ray": 36}


def test_what_we_published_is_not_scored_where_the_listing_does_not_tell_it(source, with_ours):
    found = load_catalog(source, OPTIONS)
    assert found.num_rows == 9 + 9  # captures: maps and reports have classes of their own
    hashes = hash_scans(found)
    assert hashes["status"].to_pylist().count("ok") == 9
    reasons = {r for r in hashes["reason"].to_pylist() if r}
    assert reasons == {"published by braintumor-ray: a map, report or capture, no scan"}


def test_what_we_published_into_the_folder_of_the_scans_is_not_scored(tmp_path, scans, with_ours):
    shutil.copytree(tmp_path / "objects", scans / "objects")
    found = load_catalog(scans, OPTIONS)
    assert Counter(hash_scans(found)["status"].to_pylist()) == {"ok": 9, "skipped": 36}


def test_an_object_that_is_gone_is_one_bad_row(source, pacs):
    catalog = load_catalog(source, OPTIONS)
    pacs.gone.add(uid("scan", 3))
    hashes = hash_scans(catalog)
    assert hashes["status"].to_pylist().count("ok") == 8
    assert [r for r in hashes["reason"].to_pylist() if r] == [
        "file not found (deleted or moved since it was catalogued)"
    ]
    gone = load_catalog(source, OPTIONS)  # between the listing and its header
    assert gone.num_rows == 9
    assert gone["format"].null_count == 1


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (401, "refuses access .HTTP 401.; set BRAINTUMOR_DICOMWEB_TOKEN"),
        (403, "refuses access .HTTP 403."),
        (404, "is no DICOMweb service .HTTP 404."),
        (500, "refuses: HTTP 500"),
        (503, "is down .HTTP 503. and was waited for 0 s"),
    ],
)
def test_a_server_that_gives_no_list_is_one_line(source, pacs, code, text):
    pacs.answers = [code]
    with pytest.raises(ServerError, match=text) as error:
        load_catalog(source, OPTIONS)
    assert "\n" not in str(error.value)


def test_a_server_that_is_busy_for_a_moment_is_waited_for(source, pacs, monkeypatch):
    monkeypatch.setenv("BRAINTUMOR_DICOMWEB_WAIT", "60")
    pacs.answers = [503]
    assert load_catalog(source, OPTIONS).num_rows == 9


def test_no_server_no_image_and_no_dicom_are_one_line_each(source, pacs):
    with pytest.raises(ServerError, match=r"is down \(ConnectionError\)"):
        load_catalog("dicomweb+http://127.0.0.1:9/dicom-web", OPTIONS)
    pacs.objects = {}
    with pytest.raises(CatalogError, match=r"\(ModalitiesInStudy, PatientID, Modality\) has no im"):
        load_catalog(f"{source}?PatientID=PLANTED77", OPTIONS)
    pacs.body = b"<html>log in</html>"
    with pytest.raises(ServerError, match="does not answer in DICOM JSON"):
        load_catalog(source, OPTIONS)


def test_a_server_without_paging_is_refused_if_it_may_have_more(source, pacs, monkeypatch):
    pacs.ignores_offset = True
    assert load_catalog(source, OPTIONS).num_rows == 9  # all on one page
    monkeypatch.setattr(query, "PAGE", 2)
    with pytest.raises(ServerError, match="it ignores 'offset'"):
        load_catalog(source, OPTIONS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dicomweb+http://pacs/dicom-web", "unencrypted"),
        ("dicomweb+https://pacs/dicom-web?Colour=red", "'Colour' is no key"),
        ("dicomweb+https://user:word@pacs/dicom-web", "credentials come from the environment"),
    ],
)
def test_a_source_that_is_not_written_well_is_refused(text, message):
    with pytest.raises(UsageError, match=message):
        load_catalog(text, OPTIONS)


def test_keys_of_a_query_are_asked_for_at_their_level(source, pacs):
    load_catalog(f"{source}?StudyDate=20261101-&SeriesDescription=t1+gd", OPTIONS)
    studies = next(path for path in pacs.asked if "/studies?" in path)
    assert "StudyDate=20261101-" in studies
    assert "ModalitiesInStudy=MR" in studies
    series = next(path for path in pacs.asked if "/series?" in path)
    assert "Modality=MR&SeriesDescription=t1%2Bgd" in series
    load_catalog(f"{source}?PatientName=D*E, J?NE", OPTIONS)
    assert any("PatientName=D*E,%20J?NE&" in path for path in pacs.asked)
    assert parse_query("dicomweb+https://h/d?Modality=CT").studies["ModalitiesInStudy"] == "CT"


def test_credentials_come_from_the_environment(source, pacs, monkeypatch):
    monkeypatch.setenv("BRAINTUMOR_DICOMWEB_TOKEN", "abc")
    uri = load_catalog(source, OPTIONS)["uri"][0].as_py()
    assert pacs.credentials == "Bearer abc"
    pacs.answers = [401]
    with pytest.raises(ServerError, match="refuses access"):  # would be so for every other object
        read_file(uri, DEFAULT_LIMITS)
    pacs.answers = [403]
    assert read_file(uri, DEFAULT_LIMITS).reason == "file not readable: permission denied"


def test_the_next_night_reads_only_what_is_new(tmp_path, source, pacs):
    first = load_catalog(source, OPTIONS)
    results = str(make_results(tmp_path / "results", first))
    pacs.sent = 0
    again = nights.open_pacs(source, results, OPTIONS)
    assert (again.num_rows, again.known, pacs.sent) == (0, 8, 0)
    pacs.add(archive(tmp_path / "more", range(7, 11)))
    later = nights.open_pacs(source, results, OPTIONS)
    assert (later.num_rows, later.known, pacs.sent) == (4, 8, 4)
    resumed = nights.open_pacs(source, results, OPTIONS)  # as after a kill
    assert (resumed.num_rows, resumed.known, pacs.sent) == (4, 8, 4)
    assert not {*later.ids.tolist()} & {*first["scan_id"].to_pylist()}
    add_generation(tmp_path / "results", 2, resumed.read())
    committed = nights.open_pacs(source, results, OPTIONS)  # killed before it removed its listing
    plan = make_plan(results_folder(results), committed, results_folder(results).manifests(), "f")
    assert (plan.work.num_rows, plan.known) == (0, 8 + 4)
    nights.drop_listing(results)
    assert not (tmp_path / "results" / nights.LISTING).exists()
    pacs.objects = {}
    assert nights.open_pacs(source, results, OPTIONS).num_rows == 0  # a quiet day


def test_a_retry_looks_again_at_an_object_of_which_a_later_frame_was_not_read(tmp_path, source):
    first = load_catalog(source, OPTIONS)
    second = int(np.flatnonzero(first["frame"].to_numpy() == 1)[0])
    results = str(make_results(tmp_path / "results", first, unreadable=[second]))
    assert nights.open_pacs(source, results, OPTIONS).num_rows == 0
    again = nights.open_pacs(source, results, OPTIONS, retry_quarantined=True)
    assert first["scan_id"][second].as_py() in again.ids.tolist()


def test_frames_of_an_object_whose_header_was_not_sent_are_found_another_night(
    tmp_path, source, pacs
):
    pacs.gone = {sop for _, _, sop in pacs.objects}
    first = load_catalog(source, OPTIONS)
    assert first.num_rows == 8  # one row each: nobody knows of frames
    pacs.gone = set()
    folder = results_folder(make_results(tmp_path / "results", first))
    again = nights.open_pacs(source, folder.location, OPTIONS)
    plan = make_plan(folder, again, folder.manifests(), "f")
    assert (plan.known, plan.work.read()["frame"].to_pylist()) == (8, [1])


def test_a_limit_does_not_cut_an_object(tmp_path, source):
    catalog = load_catalog(source, OPTIONS)
    frames = np.array(catalog["frame"].to_pylist())
    first = int(np.flatnonzero(frames == 1)[0])  # rows up to its frame 0
    plan = make_plan(results_folder(tmp_path / "none"), catalog, [], "f", limit=first)
    assert plan.work.num_rows == first + 1


def test_where_scored_objects_are_is_known_without_asking(tmp_path, source, pacs):
    catalog = load_catalog(source, OPTIONS)
    make_results(tmp_path / "results", catalog)
    pacs.asked = []
    found = nights.scored_objects(str(tmp_path / "results"), f"{source}?StudyDate=20261101-")
    assert {*found["uri"].to_pylist()} == {*catalog["uri"].to_pylist()}
    assert isinstance(found, pa.Table)
    assert pacs.asked == []


@needs_orthanc
def test_orthanc_is_listed_and_read(tmp_path, scans):
    import urllib.request

    server = Orthanc(tmp_path)
    server.start()
    try:
        for path in scans.glob("*.dcm"):
            urllib.request.urlopen(f"{server.address}/instances", path.read_bytes()).close()
        found = load_catalog(f"dicomweb+{server.dicomweb}?Modality=MR", OPTIONS)
        folder = load_catalog(scans, OPTIONS)
        assert kept_columns(found) == kept_columns(folder)
        assert by_pixels(found) == by_pixels(folder)
        results = str(scored(tmp_path / "results", scans))
        publish(results, folder, PublishOptions(to=server.dicomweb))
        assert server.instances() == 8 + 9 * 4
        every = f"dicomweb+{server.dicomweb}?Modality=*&ModalitiesInStudy=MR"
        again = load_catalog(every, OPTIONS)
        assert kept_columns(again) == kept_columns(folder)
        note = json.loads(again.schema.metadata[b"left_out"])
        assert note["counts"] == {"objects published by braintumor-ray": 36}
    finally:
        server.end()


def test_an_object_that_is_refused_is_a_bad_row_and_a_missing_key_ends_the_job(
    source, pacs, monkeypatch
):
    uri = load_catalog(source, OPTIONS)["uri"][0].as_py()
    pacs.answers = [500]
    assert read_file(uri, DEFAULT_LIMITS).reason == "file not readable: RefusedError"
    pacs.answers = [503]
    assert read_file(uri, DEFAULT_LIMITS).reason == "file not readable: OSError"  # is waited for
    monkeypatch.setenv("BRAINTUMOR_UID_KEYS", "")
    with pytest.raises(UsageError, match="hash key that this process does not have"):
        read_file(uri, DEFAULT_LIMITS)


def test_a_catalog_that_was_stopped_goes_on_and_is_the_same(tmp_path, source, pacs, monkeypatch):
    monkeypatch.setattr("braintumor_ray.catalog.pacs._FILES", 3)
    write_pacs_catalog(source, str(tmp_path / "whole.parquet"), OPTIONS)
    build, calls = parts_of.build_catalog, []

    def stopped(files, options):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(files)
        return build(files, options)

    monkeypatch.setattr(parts_of, "build_catalog", stopped)
    output = tmp_path / "catalog.parquet"
    with pytest.raises(KeyboardInterrupt):
        write_pacs_catalog(source, str(output), OPTIONS)
    assert not output.exists()
    monkeypatch.setattr(parts_of, "build_catalog", build)
    pacs.sent = 0
    write_pacs_catalog(source, str(output), OPTIONS)
    assert 0 < pacs.sent == 8 - sum(map(len, calls))
    assert read_catalog(output).equals(read_catalog(tmp_path / "whole.parquet"))
    assert not (tmp_path / "catalog.parquet.listing").exists()


def test_the_command_writes_a_catalog_that_can_be_scored(tmp_path, source, monkeypatch):
    monkeypatch.setenv("BRAINTUMOR_HASH_KEY", SECRET.decode())
    output = tmp_path / "catalog.parquet"
    told = ["--patient-pattern", "(x)", "--label-column", "class"]
    run = CliRunner().invoke(app, ["catalog", source, "-o", str(output), "--json", *told])
    assert run.exit_code == 0, run.output
    (warning,) = [line for line in run.stderr.splitlines() if "without effect" in line]
    assert "is no table; without effect: --label-column" in warning
    assert by_pixels(load_catalog(output, OPTIONS)) == by_pixels(load_catalog(source, OPTIONS))
    refused = CliRunner().invoke(
        app, ["catalog", source, "-o", str(output), "--since", str(output)]
    )
    assert refused.exit_code == 2


def test_publish_opens_the_scans_of_a_pacs_by_the_key_of_its_option(tmp_path, monkeypatch):
    token = hide_uid("1.2.840.10008.1", "study", uid_key(SECRET))
    shown = []

    def publish(*_):
        shown.append(show_uid(token, "study"))
        return {"scans": 0, "objects": 0, "sent_before": 0}

    monkeypatch.setattr("braintumor_ray.publishing.publish.publish", publish)
    monkeypatch.setattr(nights, "scored_objects", lambda *_: None)
    (tmp_path / "key").write_bytes(SECRET)
    (tmp_path / "key").chmod(0o600)
    command = ["publish", "results", "--source", "dicomweb+https://host/dicom-web"]
    command += ["--output", str(tmp_path / "objects")]
    assert CliRunner().invoke(app, command).exit_code != 0
    done = CliRunner().invoke(app, [*command, "--hash-key-file", str(tmp_path / "key")])
    assert (done.exit_code, shown) == (0, ["1.2.840.10008.1"]), done.output
