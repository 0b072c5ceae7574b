"""Compaction changes files, never rows: before, during, after, and after kills."""

import json
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from braintumor_ray.archive.compact import _Writer, compact
from braintumor_ray.archive.options import CompactOptions
from braintumor_ray.cli import app
from braintumor_ray.errors import ResultsError
from braintumor_ray.lease import lease_on
from braintumor_ray.predict.results import current_files, read_results, results_folder
from braintumor_ray.scoring.nightly import last_summaries
from braintumor_ray.scoring.plan import make_plan
from braintumor_ray.scoring.scans import scans_in_table
from braintumor_ray.scoring.verify import verify
from braintumor_ray.worklist.worklist import run_shifts
from tests.archive.nights import add_night, by_the_readme, current, digest, make_nights

NOW = CompactOptions(expire=True, grace_hours=0)


@pytest.fixture
def nights(tmp_path):
    return make_nights(tmp_path / "results")


def files(root):
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


def check_same(root, before, scans):
    """All readers find the same rows, and the folder is whole."""
    assert (current(root), by_the_readme(root)) == before
    report = verify(str(root))
    assert (report.differences, report.scans) == ([], scans)


def test_all_readers_find_the_same_rows_before_and_after_compaction_and_expiry(nights):
    before, scans = (current(nights), by_the_readme(nights)), 12 * 20 - 22
    check_same(nights, before, scans)
    done = compact(str(nights))
    assert (done.compactions, done.generations, done.rows) == (1, 12, 240)
    assert (done.files_before, done.files_after, done.expired) == (24, 2, 0)
    check_same(nights, before, scans)
    assert compact(str(nights), NOW).expired == 24 + 12
    check_same(nights, before, scans)
    assert len(files(nights / "rows")) == 2
    assert len(files(nights / "manifests")) == len(files(nights / "catalogs")) == 1
    assert compact(str(nights), NOW).compactions == 0


def test_all_readers_find_each_row_once_while_replaced_manifests_are_still_there(tmp_path):
    """As between the commit of a compaction and the end of its deletions: each row is listed twice.

    With more rows than DuckDB handles as one piece, so that its order of equal rows is by chance.
    """
    root = make_nights(tmp_path / "results", nights=30, rows=100, files=1)
    before = (current(root), by_the_readme(root))
    replaced = {path: path.read_bytes() for path in (root / "manifests").iterdir()}
    compact(str(root))
    for path, manifest in replaced.items():
        if not path.exists():
            path.write_bytes(manifest)
    check_same(root, before, 30 * 100 - 2 * 29)


def test_rows_are_sorted_by_patient_and_superseded_ones_are_apart(nights):
    compact(str(nights), CompactOptions(target_mb=0.02))
    (manifest,) = results_folder(nights).manifests()
    old = manifest["superseded_files"]
    kept = [file["path"] for file in manifest["files"] if file["path"] not in old]
    assert len(kept) > 2
    keys = [k for p in kept for k in pq.read_table(nights / p)["patient_key"].to_pylist()]
    assert keys == sorted(keys, key=lambda key: key or "")
    assert sum(pq.read_metadata(nights / path).num_rows for path in old) == 22


def test_superseded_rows_are_dropped_only_when_asked(nights):
    before = (current(nights), by_the_readme(nights))
    compact(str(nights))
    done = compact(str(nights), CompactOptions(drop_superseded=True, expire=True, grace_hours=0))
    assert done.dropped == 22
    check_same(nights, before, 218)
    assert sum(pq.read_metadata(p).num_rows for p in nights.glob("rows/*/*.parquet")) == 218


def test_nights_go_on_after_compaction(nights):
    twin = make_nights(nights.parent / "twin")
    for number in range(13, 17):
        compact(str(nights), NOW)
        add_night(nights, number)
        add_night(twin, number)
        assert current(nights) == current(twin)
        assert by_the_readme(nights) == by_the_readme(twin)
        assert verify(str(nights)).differences == []
    folder = results_folder(nights)
    summaries = [s["generation"] for s in last_summaries(folder, 15)]
    assert summaries == [8, 9, 10, 11, 12, 13, 14]
    catalog = results_folder(twin).catalog_of(results_folder(twin).manifest(16))
    plan = make_plan(folder, scans_in_table(catalog), folder.manifests(), "fp")
    assert (plan.remaining, plan.generation.number) == (0, 17)


def test_runs_that_differ_from_training_are_told_after_compaction_as_before(nights):
    path = nights / "manifests" / "000002.json"
    manifest = json.loads(path.read_text())
    shift = {"scans": 20, "independent": 20, "distance": 0.9, "limit": 0.3, "differs": True}
    manifest["summary"]["shift"] = shift
    path.write_text(json.dumps(manifest))
    before = run_shifts(results_folder(nights))
    assert [sentence[:6] for sentence in before] == ["Run 2:"]
    for _ in range(2):  # the second time, the record of a compaction is compacted
        compact(str(nights), NOW)
        assert run_shifts(results_folder(nights)) == before
        add_night(nights, results_folder(nights).runs()[-1]["generation"] + 1)


def test_a_large_compacted_manifest_is_not_written_again_for_a_small_night(nights):
    compact(str(nights), CompactOptions(target_mb=0.01))
    for number in (13, 14):
        add_night(nights, number, rows=10)
    compact(str(nights), CompactOptions(target_mb=0.01))
    spans = [(m["first_generation"], m["generation"]) for m in results_folder(nights).manifests()]
    assert spans == [(1, 12), (13, 14)]
    assert verify(str(nights)).differences == []


def test_a_reader_that_started_before_goes_on_until_the_files_expire(nights):
    folder = results_folder(nights)
    reader = current_files(folder, folder.manifests(), None)
    first = [next(reader)]
    compact(str(nights), CompactOptions(expire=True))
    tables = [rows for _, rows in [*first, *reader]]
    assert digest(pa.concat_tables(tables)) == current(nights)


def test_a_manifest_that_vanishes_between_listing_and_reading_is_no_error(nights, monkeypatch):
    folder = results_folder(nights)
    before = current(nights)
    names = folder.names("manifests")
    compact(str(nights), NOW)
    listings = [names]
    own = type(folder).names
    monkeypatch.setattr(
        type(folder),
        "names",
        lambda self, *parts: (
            listings.pop() if parts == ("manifests",) and listings else own(self, *parts)
        ),
    )
    assert digest(read_results(nights)) == before
    assert listings == []


def test_killed_at_random_times_all_readers_agree(tmp_path):
    root = make_nights(tmp_path / "results", nights=6)
    before = current(root)
    code = "import sys; from braintumor_ray.archive.compact import compact; compact(sys.argv[1])"
    child = subprocess.Popen([sys.executable, "-c", code, str(root)])
    while not (root / "compactions").exists() and child.poll() is None:
        time.sleep(0.002)
    child.kill()
    child.wait()
    assert current(root) == before
    compact(str(root))
    assert current(root) == before


def test_a_damaged_file_stops_it_and_nothing_has_changed(nights):
    path = next(nights.glob("rows/000005/*.parquet"))
    path.write_bytes(path.read_bytes()[:-30])
    there = files(nights)
    with pytest.raises(ResultsError, match="nothing was compacted"):
        compact(str(nights))
    assert [name for name in files(nights) if "lease" not in name] == there


def test_files_that_do_not_hold_the_old_rows_are_deleted_and_nothing_is_committed(
    nights, monkeypatch
):
    from braintumor_ray.archive import compact as module

    before = current(nights)
    monkeypatch.setattr(
        module,
        "write_rows",
        lambda location, rows, own=module.write_rows: own(location, rows.slice(1)),
    )
    with pytest.raises(ResultsError, match="were deleted and nothing has changed"):
        compact(str(nights))
    assert current(nights) == before
    assert len(results_folder(nights).manifests()) == 12


def test_another_job_holds_the_folder(nights):
    with lease_on(str(nights)):
        found = CliRunner().invoke(app, ["compact", str(nights)])
    assert found.exit_code == 1
    assert "is being written by" in found.stderr
    assert len(results_folder(nights).manifests()) == 12


def test_a_full_disk_is_one_line(nights, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    before = current(nights)
    monkeypatch.setattr("braintumor_ray.archive.sorting.write_atomically", full)
    found = CliRunner().invoke(app, ["compact", str(nights)])
    assert (found.exit_code, found.stderr.count("\n")) == (1, 1)
    assert "No space left" in found.stderr
    monkeypatch.undo()
    assert current(nights) == before
    assert verify(str(nights)).differences == []


def test_after_a_kill_it_goes_on_with_less_or_more_memory(nights, monkeypatch):
    before = read_results(nights).sort_by("scan_id")
    monkeypatch.setattr(_Writer, "_write", killed_after_the_first(_Writer._write))
    with pytest.raises(KeyboardInterrupt):
        compact(str(nights), CompactOptions(memory_mb=0.1))
    monkeypatch.undo()
    compact(str(nights))
    assert read_results(nights).sort_by("scan_id").equals(before)
    assert verify(str(nights)).differences == []
    assert len(list((nights / "rows").glob("*-*"))) == 1  # the killed one left nothing


def killed_after_the_first(write):
    done = []

    def writing(self, path, rows):
        if done:
            raise KeyboardInterrupt
        done.append(path)
        return write(self, path, rows)

    return writing


def test_the_command_tells_what_it_did(nights):
    found = CliRunner().invoke(app, ["compact", str(nights), "--json"])
    assert json.loads(found.stdout)["files_after"] == 2
    again = CliRunner().invoke(app, ["compact", str(nights)])
    assert again.stdout == (
        "nothing to compact; 36 old files wait for --expire or for the grace time\n"
    )


def test_rows_and_columns_are_chosen_while_reading(nights):
    chosen = pc.field("predicted_class") == "no_tumor"
    whole = read_results(nights)
    wanted = whole.filter(pc.equal(whole["predicted_class"], "no_tumor")).select(["uri", "entropy"])
    for _ in range(2):
        found = read_results(nights, ["uri", "entropy"], chosen)
        assert found.sort_by("uri").equals(wanted.sort_by("uri"))
        compact(str(nights), CompactOptions(target_mb=0.02))


def test_nightly_compacts_when_more_runs_are_loose_than_it_may_leave(nights):
    from braintumor_ray.cli.scoring import _compact_after

    assert _compact_after(str(nights), None) is None
    assert _compact_after(str(nights), 12) is None
    assert _compact_after(str(nights), 11)["generations"] == 12
    assert _compact_after(str(nights), 1) is None
    report = verify(str(nights), 1, compacted=False)
    assert (report.rows, report.differences) == (0, [])
