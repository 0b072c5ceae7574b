"""The routes of a review, without a browser."""

import csv
import hashlib
import io
import uuid

import cv2
import nibabel
import numpy as np
import pytest
from starlette.testclient import TestClient

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.catalog.options import CatalogOptions
from braintumor_ray.decode.types import VolumeOptions
from braintumor_ray.errors import UsageError
from braintumor_ray.review.command import labels_file, opened, review_command
from braintumor_ray.review.options import ReviewOptions
from braintumor_ray.review.web import PAGE, STATIC, create_app
from braintumor_ray.worklist.worklist import make_worklist
from tests.builders import disc_scan
from tests.evaluation.make_results import CLASSES, make_results
from tests.review.conftest import write_scans

LOCAL = "http://127.0.0.1"


@pytest.fixture
def client(review):
    return TestClient(create_app(review), base_url=LOCAL, raise_server_exceptions=False)


def rows(client, **query):
    return client.get("/v1/scans", params=query).json()["rows"]


def all_facts(client, **query):
    return [client.get(f"/v1/scans/{row['scan']}").json() for row in rows(client, **query)]


def say(client, scan, **said):
    return client.post("/v1/labels", json={"id": uuid.uuid4().hex, "scan": scan, **said})


def test_scans_come_by_urgency_uncertainty_and_disagreement(client, results, tmp_path):
    make_worklist(results, tmp_path / "w")
    with (tmp_path / "w" / "worklist.csv").open() as stream:
        expected = [row["path"] for row in csv.DictReader(stream)]
    assert [row["path"] for row in rows(client)] == expected
    facts = all_facts(client, order="uncertainty")
    entropies = [fact["entropy"] for fact in facts]
    assert entropies == sorted(entropies, reverse=True)
    facts = [
        client.get(f"/v1/scans/{r['scan']}").json() for r in rows(client, order="disagreement")
    ]
    known = [fact for fact in facts if fact["known_label"]]
    assert facts[: len(known)] == known  # those without a label come last
    differs = [1 - fact["probabilities"][fact["known_label"]] for fact in known]
    assert differs == sorted(differs, reverse=True)


def test_pages_join_to_the_whole_list_and_labels_move_no_row(client):
    before = client.get("/v1/scans", params={"filter": "open", "count": 4}).json()
    say(client, before["rows"][0]["scan"], verdict="right")
    query = {"filter": "open", "as_of": before["as_of"]}
    parts = [rows(client, start=start, count=4, **query) for start in (0, 4, 8)]
    assert [row["scan"] for part in parts for row in part] == [r["scan"] for r in rows(client)]
    assert parts[0][0]["verdict"] == "right"
    assert client.get("/v1/scans", params={"filter": "open"}).json()["total"] == 11
    assert client.get("/v1/scans", params={"filter": "done"}).json()["total"] == 1


def test_filters_keep_what_they_name(client):
    assert {row["decision"] for row in rows(client, filter="positive")} == {True}
    unsure = {row["scan"] for row in rows(client, filter="unsure")}
    every = [client.get(f"/v1/scans/{row['scan']}").json() for row in rows(client)]
    assert unsure == {fact["scan"] for fact in every if len(fact["prediction_set"]) != 1}
    assert rows(client, filter="foreign") == []


def test_a_series_is_all_its_slices_in_order(client):
    fact = client.get(f"/v1/scans/{rows(client)[0]['scan']}").json()
    paths = [client.get(f"/v1/scans/{scan}").json()["path"] for scan in fact["series"]]
    folder = fact["path"].split("/")[0]
    assert paths == [f"{folder}/slice {n}.png" for n in range(4)]


def test_slices_are_in_the_order_of_their_numbers(tmp_path):
    results = make_results(tmp_path / "results", write_scans(tmp_path / "a", 12, in_series=12))
    with opened(str(results), None, ReviewOptions()) as review:
        series = review.facts(review.scans.names[0])["series"]
        paths = [review.facts(name)["path"] for name in series]
    assert paths == [f"s0000/slice {number}.png" for number in range(12)]


def test_no_answer_holds_a_patient_key(client):
    answers = [client.get("/v1/review"), client.get("/v1/scans")]
    answers += [client.get(f"/v1/scans/{row['scan']}") for row in rows(client)]
    assert not any("secret-" in answer.text for answer in answers)
    assert answers[-1].json()["patient"] in (1, 2, 3)


def test_the_picture_is_the_scan_and_the_map_its_color(client, archive):
    row = rows(client)[0]
    picture = client.get(f"/v1/scans/{row['scan']}/picture")
    gray = cv2.imdecode(np.frombuffer(picture.content, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(gray, cv2.imread(str(archive[0] / row["path"]), 0))
    small = client.get(f"/v1/scans/{row['scan']}/picture", params={"size": 28})
    assert cv2.imdecode(np.frombuffer(small.content, np.uint8), 0).shape == (24, 28)
    heats = [
        client.get(f"/v1/scans/{row['scan']}/map", params={"method": name})
        for name in ("gradcam", "gradcam_pp")
    ]
    assert heats[0].content != heats[1].content
    assert cv2.imdecode(np.frombuffer(heats[0].content, np.uint8), 1).shape == (48, 56, 3)


def test_a_changed_or_missing_file_is_told_and_its_map_still_shown(review, client, archive):
    row = rows(client)[0]
    path = archive[0] / row["path"]
    content = path.read_bytes()
    try:
        cv2.imwrite(str(path), disc_scan(999, (48, 56)))
        answer = client.get(f"/v1/scans/{row['scan']}/picture")
        assert answer.status_code == 400
        assert "has changed" in answer.json()["detail"]
        assert str(archive[0]) not in answer.text
        assert client.get(f"/v1/scans/{row['scan']}/map?method=gradcam").status_code == 200
    finally:
        path.write_bytes(content)


def test_a_verdict_becomes_a_label_as_far_as_it_tells_one(client):
    first, second = rows(client)[:2]
    right = say(client, first["scan"], verdict="right").json()["review"]
    assert (right["label"], right["reviewer"]) == (first["predicted_class"], "R. One")
    wrong = say(client, second["scan"], verdict="wrong").json()["review"]
    assert (wrong["verdict"], wrong["label"]) == ("wrong", None)
    other = next(name for name in CLASSES if name != second["predicted_class"])
    named = say(client, second["scan"], label=other, reviewer="S").json()
    assert (named["review"]["verdict"], named["review"]["label"]) == ("wrong", other)
    assert named["before"]["verdict"] == "wrong"
    assert named["done"] == 2
    cleared = say(client, second["scan"], verdict=None, label=None).json()
    assert (cleared["review"]["label"], cleared["done"]) == (None, 1)
    table = list(csv.DictReader(io.StringIO(client.get("/v1/labels.csv").text)))
    assert {row["path"]: row["label"] for row in table}[first["path"]] == first["predicted_class"]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({}, "nothing is said"),
        ({"label": "nobody"}, "no class"),
        ({"boxes": [[0.5, 0, 0.5, 1]]}, "x_min < x_max"),
        ({"boxes": [[0, 0, 1.5, 1]]}, "less than or equal"),
        ({"note": "x" * 5000}, "4000"),
        ({"verdict": "maybe"}, "'right' or 'wrong'"),
        ({"path": "../../etc"}, "not permitted"),
    ],
)
def test_what_is_not_a_label_is_refused_and_nothing_written(client, review, said, told):
    answer = say(client, rows(client)[0]["scan"], **said)
    assert answer.status_code == 422
    assert told in answer.json()["detail"]
    assert review.log.count == 0


def test_a_label_of_other_results_waits_for_their_review(archive, results, tmp_path):
    """Another bundle's results of the same scans, reviewed at the same address: 'right' differs."""
    other = make_results(tmp_path / "other", archive[1])
    with opened(str(other), None, ReviewOptions()) as review:
        name = TestClient(create_app(review), base_url=LOCAL).get("/v1/review").json()["results"]
    for location, status in ((results, 503), (other, 200)):
        with opened(str(location), None, ReviewOptions()) as review:
            client = TestClient(create_app(review), base_url=LOCAL)
            scan = rows(client)[0]["scan"]
            answer = say(client, scan, verdict="right", results=name)
            assert answer.status_code == status  # 503: the browser keeps it
            assert review.log.count == (status == 200)
            assert say(client, scan, verdict="right").status_code == 200


def test_requests_that_another_page_sends_are_refused(client):
    body = {"id": "a" * 32, "scan": rows(client)[0]["scan"], "verdict": "right"}
    for headers in (
        {"Origin": "http://evil.example"},
        {"Host": "evil.example"},
        {"Content-Type": "text/plain"},
    ):
        answer = client.post("/v1/labels", json=body, headers=headers)
        assert answer.status_code == 400, headers
    assert client.get("/v1/scans", headers={"Host": "evil.example:80"}).status_code == 400
    same = client.post("/v1/labels", json=body, headers={"Origin": LOCAL})
    assert same.status_code == 200
    assert client.post("/v1/labels", content=b"x" * 70_000, headers={
        "Content-Type": "application/json"}).status_code == 413  # fmt: skip


def test_with_a_token_only_the_page_itself_is_open(review):
    client = TestClient(create_app(review, hashlib.sha256(b"word").hexdigest()), base_url=LOCAL)
    for path in STATIC:
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert client.get("/v1/scans").status_code == 401
    assert client.post("/v1/labels", json={}).status_code == 401
    assert client.get("/v1/scans", headers={"Authorization": "Bearer word"}).status_code == 200


def test_a_slash_too_many_is_no_redirect(client):
    assert client.get("/v1/review/", follow_redirects=False).status_code == 404


def test_unknown_scans_paths_and_queries_are_problems(client):
    assert client.get("/v1/scans/0000000000000000").status_code == 404
    assert client.get("/v1/nothing").status_code == 404
    assert client.get("/v1/scans?order=name").status_code == 422
    assert client.get("/v1/scans?start=-1").status_code == 422
    scan = rows(client)[0]["scan"]
    assert client.get(f"/v1/scans/{scan}/map?method=nothing").status_code == 422
    other = "no_tumor" if rows(client)[0]["predicted_class"] != "no_tumor" else "glioma_tumor"
    answer = client.get(f"/v1/scans/{scan}/map?method=gradcam&class={other}")
    assert "--bundle" in answer.json()["detail"]
    assert "--bundle" in client.get(f"/v1/scans/{scan}/neighbors").json()["missing"]


def test_no_part_of_the_page_names_another_host():
    for name, _ in STATIC.values():
        content = (PAGE / name).read_bytes().replace(b"http://www.w3.org/", b"")
        assert content
        assert b"http:" not in content
        assert b"https:" not in content


def test_moved_scans_are_found_by_source(archive, tmp_path):
    results = make_results(tmp_path / "results", archive[1])
    moved = archive[1].set_column(
        archive[1].column_names.index("uri"), "uri", [["/nowhere/x.png"] * 12]
    )
    with opened(str(results), moved, ReviewOptions()) as review:
        assert set(review.scans.rows["uri"].to_pylist()) == {"/nowhere/x.png"}
    with (
        pytest.raises(UsageError, match="--source"),
        opened(str(results), archive[1].slice(0, 0), ReviewOptions()),
    ):
        pass


@pytest.mark.parametrize("plane", ["axial", "coronal"])
def test_all_slices_of_a_moved_volume_are_found_by_source(tmp_path, plane):
    (tmp_path / "before").mkdir()
    slices = [disc_scan(seed, (64, 72)) for seed in range(8)]
    volume = nibabel.Nifti1Image(np.stack(slices, axis=-1).astype(np.int16), np.eye(4))
    nibabel.save(volume, tmp_path / "before" / "v.nii.gz")
    options = CatalogOptions(volumes=VolumeOptions(plane, 0))
    results = make_results(tmp_path / "r", load_catalog(tmp_path / "before", options))
    (tmp_path / "before").rename(tmp_path / "after")
    # As the command reads it: headers are not, so a file has one row.
    source = load_catalog(tmp_path / "after", CatalogOptions(probe_headers=False))
    with opened(str(results), source, ReviewOptions()) as review:
        assert len(review.scans.names) > source.num_rows == 1
        for name in review.scans.names:
            review.picture(name, 64)


def test_where_labels_go_and_what_is_refused(results, tmp_path):
    assert labels_file("/r/", None) == "/r/review/labels.jsonl"
    with pytest.raises(UsageError, match="--labels"):
        labels_file("s3://b/r", None)
    with pytest.raises(UsageError, match="no token is set"):
        review_command(str(results), None, ReviewOptions(), "0.0.0.0", 8100, print)


def test_labels_of_scans_that_are_not_in_these_results_are_no_progress(results, tmp_path):
    labels = tmp_path / "of several results.jsonl"
    labels.write_text('{"path": "gone.png", "label": "no_tumor", "time": ""}\n' * 20)
    with opened(str(results), None, ReviewOptions(labels=str(labels))) as review:
        client = TestClient(create_app(review), base_url=LOCAL)
        assert client.get("/v1/progress").json() == {"events": 20, "done": 0, "total": 12}
        answer = say(client, rows(client)[0]["scan"], verdict="right").json()
        assert (answer["done"], answer["events"]) == (1, 21)


def test_the_table_of_labels_is_written_when_a_review_ends(results):
    with opened(str(results), None, ReviewOptions()) as review:
        client = TestClient(create_app(review), base_url=LOCAL)
        say(client, rows(client)[0]["scan"], verdict="right")
    assert "right" in (results / "review" / "labels.csv").read_text()
    with opened(str(results), None, ReviewOptions()) as review:
        assert review.progress()["done"] == 1
