"""Planning, leases and checking, without Ray."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from braintumor_ray import lease as lease_module
from braintumor_ray.archive.compact import CompactOptions, compact
from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.catalog.schema import CATALOG_SCHEMA
from braintumor_ray.errors import CatalogError, ResultsError
from braintumor_ray.lease import FileLease, Holder, machine_identity, start_ticks
from braintumor_ray.models.bundle import load_bundle
from braintumor_ray.predict.results import read_results, results_folder
from braintumor_ray.scoring.job import ScoreOptions, score
from braintumor_ray.scoring.options import PredictSettings
from braintumor_ray.scoring.plan import make_plan, write_manifest, write_work
from braintumor_ray.scoring.result_settings import open_results
from tests.archive.nights import ids_by_the_readme
from tests.builders import write_archive


def scans(*names, version=0, start=0, root="/archive", frames=1):
    rows = [
        {
            "scan_id": start + index + 1000 * version + 100 * frame,
            "uri": f"{root}/{name}",
            "path": name,
            "frame": frame,
            "size": 10 + version,
        }
        for index, name in enumerate(names)
        for frame in range(frames)
    ]
    return pa.Table.from_pylist(rows, schema=CATALOG_SCHEMA)


def commit(plan, checkpoint="a_000000"):
    """What Ray Data leaves when the work is done, and the manifest."""
    generation = plan.generation
    catalogs = write_work(plan, "attempt")
    write_rows(plan, plan.work.read(), checkpoint)
    files = [{"path": f"{generation.rows}/{checkpoint}-0.parquet", "rows": plan.work.num_rows}]
    manifest = {
        "generation": generation.number,
        "catalogs": catalogs,
        "files": files,
        "supersedes": {str(k): v for k, v in plan.supersedes.items()},
        "retired": plan.retired,
    }
    write_manifest(plan, manifest)


def write_rows(plan, rows, checkpoint, pending=False, with_data=True):
    generation = plan.generation
    for part in (generation.rows, generation.checkpoints):
        os.makedirs(generation.folder.at(part), exist_ok=True)
    ids = rows.select(["scan_id"])
    suffix = ".pending.parquet" if pending else ".parquet"
    pq.write_table(ids, generation.folder.at(generation.checkpoints, checkpoint + suffix))
    if with_data:
        data = rows.select(["scan_id", "uri", "frame", "patient_key", "study_key", "series_key"])
        times = pa.array([generation.number] * data.num_rows, pa.timestamp("us", tz="UTC"))
        data = data.append_column("scored_at", times)
        pq.write_table(data, generation.folder.at(generation.rows, checkpoint + "-0.parquet"))


def current_ids(root):
    return sorted(read_results(root, ["scan_id"])["scan_id"].to_pylist())


def plan_for(folder, catalog, **options):
    return make_plan(folder, catalog, folder.manifests(), "fp", **options)


class TestPlan:
    def test_everything_is_new_at_first_and_nothing_afterwards(self, tmp_path):
        folder = results_folder(tmp_path)
        plan = plan_for(folder, scans("a", "b"))
        assert (plan.remaining, plan.known) == (2, 0)
        commit(plan)
        again = plan_for(folder, scans("a", "b"))
        assert (again.remaining, again.known) == (0, 2)

    def test_only_new_files_are_work(self, tmp_path):
        folder = results_folder(tmp_path)
        commit(plan_for(folder, scans("a", "b")))
        plan = plan_for(folder, scans("a", "b", "c"))
        assert plan.work.read()["path"].to_pylist() == ["c"]
        assert plan.generation.number == 2
        assert plan.supersedes == {}

    def test_a_changed_file_supersedes_its_old_row(self, tmp_path):
        folder = results_folder(tmp_path)
        commit(plan_for(folder, scans("a", "b")))
        changed = pa.concat_tables([scans("a"), scans("b", version=1, start=1)])
        plan = plan_for(folder, changed)
        assert plan.work.read()["scan_id"].to_pylist() == [1001]
        assert plan.supersedes == {1: [1]}
        commit(plan, "b_000000")
        current = read_results(tmp_path, ["scan_id"])["scan_id"].to_pylist()
        assert sorted(current) == [0, 1001]

    def test_a_file_with_fewer_frames_than_before_supersedes_all_of_them(self, tmp_path):
        folder = results_folder(tmp_path)
        commit(plan_for(folder, scans("a", "b", frames=5)))
        changed = pa.concat_tables([scans("a", version=1, frames=3), scans("b", start=1, frames=5)])
        plan = plan_for(folder, changed)
        assert plan.work.num_rows == 3
        assert plan.supersedes == {1: [0, 100, 200, 300, 400]}
        commit(plan, "b_000000")
        assert read_results(tmp_path, ["scan_id"]).num_rows == 5 + 3

    @pytest.mark.parametrize("compacted", [False, True])
    def test_a_file_that_is_again_what_it_was_is_scored_again(self, tmp_path, compacted):
        """Bad sectors or a failed copy, and then the backup with its times."""
        folder = results_folder(tmp_path)
        b = scans("b", start=1, frames=2)
        files = [
            pa.concat_tables([scans("a", version=v, frames=n), b]) for v, n in ((0, 3), (1, 1))
        ]
        commit(plan_for(folder, files[0]))
        commit(plan_for(folder, files[1]))
        if compacted:
            compact(folder.location, CompactOptions(drop_superseded=True))
        plan = plan_for(folder, files[0])
        assert sorted(plan.work.ids.tolist()) == [0, 100, 200]
        commit(plan)
        assert current_ids(tmp_path) == ids_by_the_readme(tmp_path) == [0, 1, 100, 101, 200]
        assert plan_for(folder, files[0]).remaining == 0
        commit(plan_for(folder, files[1]))
        assert current_ids(tmp_path) == ids_by_the_readme(tmp_path) == [1, 101, 1000]

    def test_a_scan_with_a_row_below_another_root_is_not_scored_again(self, tmp_path):
        folder = results_folder(tmp_path)
        commit(plan_for(folder, scans("a", root="/mnt/part")))
        commit(plan_for(folder, scans("part/a", root="/mnt", start=5)))
        assert plan_for(folder, scans("a", root="/mnt/part")).remaining == 0

    def test_frames_that_a_limit_left_supersede_no_other(self, tmp_path):
        folder = results_folder(tmp_path)
        commit(plan_for(folder, scans("a", frames=5), limit=2))
        plan = plan_for(folder, scans("a", frames=5))
        assert (plan.work.num_rows, plan.supersedes) == (3, {})

    def test_fewer_frames_between_two_attempts_leave_none_of_the_old(self, tmp_path):
        folder = results_folder(tmp_path)
        first = plan_for(folder, scans("a", frames=5))
        write_work(first, "one")
        write_rows(first, first.work.read().slice(3, 2), "x_000000")
        plan = plan_for(folder, scans("a", version=1, frames=3))
        assert plan.work.num_rows == 5
        assert plan.supersedes == {1: [300, 400]}

    def test_an_archive_that_moved_is_known_and_its_changed_files_supersede(self, tmp_path, caplog):
        folder = results_folder(tmp_path)
        commit(plan_for(folder, scans("a", "b", "c", root="/mnt/a")))
        assert plan_for(folder, scans("a", "b", "c", root="/mnt/b")).remaining == 0
        assert "/mnt/a/a" in caplog.text
        changed = [scans("a", "b", root="/mnt/b"), scans("c", version=1, start=2, root="/mnt/b")]
        plan = plan_for(folder, pa.concat_tables(changed))
        assert plan.work.read()["scan_id"].to_pylist() == [1002]
        assert (plan.supersedes, plan.retired) == ({1: [2]}, [2])
        commit(plan, "b_000000")
        assert plan_for(folder, pa.concat_tables(changed)).remaining == 0
        changed[1] = scans("c", version=2, start=2, root="/mnt/b")
        assert plan_for(folder, pa.concat_tables(changed)).supersedes == {1: [2], 2: [1002]}

    def test_another_archive_with_the_same_paths_is_refused(self, tmp_path):
        folder = results_folder(tmp_path)
        commit(plan_for(folder, scans("a", "b", "c", root="/mnt/a")))
        other = scans("a", "b", "c", version=1, root="/mnt/other")
        with pytest.raises(CatalogError, match="'/mnt/other/a', have the paths"):
            plan_for(folder, other)
        assert plan_for(folder, scans("d", version=2, root="/mnt/other")).remaining == 1

    def test_the_same_files_below_another_root_of_their_tree_supersede(self, tmp_path):
        folder = results_folder(tmp_path)
        commit(plan_for(folder, scans("a", root="/mnt/part")))
        whole = scans("part/a", version=1, root="/mnt")
        assert plan_for(folder, whole).supersedes == {1: [0]}

    def test_an_interrupted_attempt_is_taken_over(self, tmp_path):
        folder = results_folder(tmp_path)
        first = plan_for(folder, scans("a", "b", "c"))
        write_work(first, "one")
        write_rows(first, first.work.read().slice(0, 2), "x_000000")
        plan = plan_for(folder, scans("a", "b", "c"))
        assert (plan.generation.number, plan.resumed, plan.remaining) == (1, 2, 1)

    def test_a_file_deleted_after_it_was_scored_keeps_its_row(self, tmp_path):
        folder = results_folder(tmp_path)
        first = plan_for(folder, scans("a", "b", "c"))
        write_work(first, "one")
        write_rows(first, first.work.read().slice(0, 1), "x_000000")
        plan = plan_for(folder, scans("b", "c", start=1))
        assert sorted(plan.work.read()["path"].to_pylist()) == ["a", "b", "c"]

    def test_a_file_changed_between_two_attempts_is_superseded_inside(self, tmp_path):
        folder = results_folder(tmp_path)
        first = plan_for(folder, scans("a", "b"))
        write_work(first, "one")
        write_rows(first, first.work.read().slice(0, 1), "x_000000")
        changed = pa.concat_tables([scans("a", version=1), scans("b", start=1)])
        plan = plan_for(folder, changed)
        assert sorted(plan.work.read()["scan_id"].to_pylist()) == [0, 1, 1000]
        assert plan.supersedes == {1: [0]}
        assert plan.retired == [0]

    def test_files_and_checkpoints_are_made_to_agree(self, tmp_path):
        folder = results_folder(tmp_path)
        plan = plan_for(folder, scans("a", "b", "c"))
        write_rows(plan, plan.work.read().slice(0, 1), "kept_000000")
        write_rows(plan, plan.work.read().slice(1, 1), "flight_000001", pending=True)
        write_rows(plan, plan.work.read().slice(2, 1), "lost_000002", with_data=False)
        plan.generation.reconcile()
        assert folder.names(plan.generation.rows) == ["kept_000000-0.parquet"]
        assert folder.names(plan.generation.checkpoints) == ["kept_000000.parquet"]
        assert plan.generation.committed_ids().tolist() == [0]

    def test_another_model_never_inherits_what_is_done(self, tmp_path):
        folder = results_folder(tmp_path)
        first = plan_for(folder, scans("a"))
        write_rows(first, first.work.read(), "x_000000")
        other = make_plan(folder, scans("a"), [], "other model")
        assert "other model" in other.generation.checkpoints
        assert other.resumed == 0

    def test_a_limit_takes_the_first_new_scans(self, tmp_path):
        folder = results_folder(tmp_path)
        commit(plan_for(folder, scans("a", "b", "c"), limit=2))
        plan = plan_for(folder, scans("a", "b", "c"), limit=2)
        assert plan.work.read()["path"].to_pylist() == ["c"]

    def test_a_limit_cuts_no_object_of_a_pacs_that_an_attempt_has_begun(self, tmp_path):
        folder = results_folder(tmp_path)
        catalog = scans("a", "b", "c", root="dicomweb+https://pacs", frames=3)
        plan = plan_for(folder, catalog)
        write_work(plan, "interrupted")
        write_rows(plan, catalog.slice(3, 2), "a_000000")
        limited = plan_for(folder, catalog, limit=1)
        assert {*limited.work.read()["path"].to_pylist()} == {"a", "b"}
        assert (limited.work.num_rows, limited.backlog) == (3 + 3, 3)

    def test_an_id_that_collides_with_an_earlier_scan_is_refused(self, tmp_path):
        folder = results_folder(tmp_path)
        commit(plan_for(folder, scans("a")))
        with pytest.raises(CatalogError, match="collide"):
            plan_for(folder, scans("z"))

    def test_rows_in_flight_are_invisible(self, tmp_path):
        folder = results_folder(tmp_path)
        folder.write_json({}, "results.json")
        plan = plan_for(folder, scans("a"))
        write_rows(plan, plan.work.read(), "x_000000")
        with pytest.raises(ResultsError, match="no committed run"):
            read_results(tmp_path)

    def test_a_folder_that_is_no_results_folder_says_so(self, tmp_path):
        with pytest.raises(ResultsError, match="not a results folder"):
            read_results(tmp_path / "nowhere")


class TestLease:
    def holder(self, **changes):
        values = {
            "token": "t",
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process_started": 0.0,
            "heartbeat": time.time(),
            "machine": machine_identity(),
        }
        return Holder(**values | changes)

    def test_another_container_of_the_same_name_is_judged_by_its_heartbeat(self):
        now = time.time()
        other = self.holder(pid=2**22 + 1, machine="another boot/pid:[1]")  # no such process here
        assert other.is_alive(now)
        ours = Holder.this_process("t")
        twin = self.holder(
            pid=ours.pid, process_started=ours.process_started, machine="another boot/pid:[1]"
        )
        assert not replace(twin, heartbeat=now - 61).is_alive(now)  # our process is not its

    def test_a_holder_without_an_identity_is_judged_by_its_heartbeat(self):
        now = time.time()
        unknown = self.holder(pid=2**22 + 1, machine=None)
        assert unknown.is_alive(now)
        assert not replace(unknown, heartbeat=now - 61).is_alive(now)

    def test_where_there_is_no_identity_the_heartbeat_decides(self, monkeypatch):
        monkeypatch.setattr(lease_module, "machine_identity", lambda: None)
        assert self.holder(pid=2**22 + 1, machine=None).is_alive(time.time())

    def test_a_lease_of_an_earlier_version_is_read(self, tmp_path):
        old = {k: v for k, v in asdict(self.holder()).items() if k != "machine"}
        (tmp_path / "lease.json").write_text(json.dumps(old | {"heartbeat": time.time() - 61}))
        with FileLease(str(tmp_path)) as lease:
            assert lease.read().machine == machine_identity()

    def test_a_lease_of_a_later_version_is_read(self):
        later = asdict(self.holder()) | {"cluster": "c"}
        assert Holder.parse(json.dumps(later).encode(), "lease.json") == self.holder(
            **{k: later[k] for k in ("heartbeat",)}
        )

    def test_processes_of_one_machine_share_an_identity(self):
        code = "from braintumor_ray.lease import machine_identity as m; print(m())"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == machine_identity()

    def test_a_live_holder_is_named_and_refused(self, tmp_path):
        with FileLease(str(tmp_path)), pytest.raises(ResultsError, match=f"process {os.getpid()}"):
            FileLease(str(tmp_path)).__enter__()

    def test_it_is_given_back(self, tmp_path):
        with FileLease(str(tmp_path)):
            assert (tmp_path / "lease.json").exists()
        assert not (tmp_path / "lease.json").exists()
        with FileLease(str(tmp_path)):
            pass

    def test_a_dead_local_holder_is_taken_over_at_once(self, tmp_path):
        done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                              capture_output=True, text=True, check=True)  # fmt: skip
        dead = self.holder(pid=int(done.stdout))
        (tmp_path / "lease.json").write_text(json.dumps(asdict(dead)))
        with FileLease(str(tmp_path)) as lease:
            lease.check()

    def test_a_recycled_pid_is_not_the_holder(self):
        assert not self.holder(process_started=1.0).is_alive(time.time())

    def test_a_step_of_the_clock_ends_no_lease(self, tmp_path, monkeypatch):
        with FileLease(str(tmp_path)) as lease:
            started = psutil.Process().create_time()
            monkeypatch.setattr(psutil.Process, "create_time", lambda _: started + 5)
            with pytest.raises(ResultsError, match="is being written by"):
                FileLease(str(tmp_path)).__enter__()
            lease.check()

    @pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="no /proc")
    def test_a_recycled_pid_has_started_at_another_tick(self):
        ours = Holder.this_process("t")
        assert ours.is_alive(time.time())
        assert not replace(ours, process_ticks=ours.process_ticks - 1).is_alive(time.time())

    @pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="no /proc")
    def test_a_dead_holder_that_nobody_has_reaped_is_dead(self):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        holder = self.holder(pid=child.pid, process_ticks=start_ticks(child.pid))
        assert holder.is_alive(time.time())
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not holder.is_alive(time.time())
        child.communicate()

    def test_a_lease_of_a_version_without_ticks_is_judged_by_the_time_of_its_start(self):
        ours = replace(Holder.this_process("t"), process_ticks=None)
        assert ours.is_alive(time.time())
        assert not replace(ours, process_started=1.0).is_alive(time.time())

    def test_a_heartbeat_of_the_future_is_stale(self):
        now = time.time()
        assert self.holder(host="elsewhere", heartbeat=now + 59).is_alive(now)
        assert not self.holder(host="elsewhere", heartbeat=now + 61).is_alive(now)

    def test_a_remote_holder_counts_as_dead_after_sixty_seconds(self):
        now = time.time()
        assert self.holder(host="elsewhere", heartbeat=now - 59).is_alive(now)
        assert not self.holder(host="elsewhere", heartbeat=now - 61).is_alive(now)

    def test_a_lease_that_was_taken_commits_nothing(self, tmp_path):
        with FileLease(str(tmp_path)) as lease:
            other = self.holder(host="elsewhere")
            (tmp_path / "lease.json").write_text(json.dumps(asdict(other)))
            with pytest.raises(ResultsError, match="elsewhere"):
                lease.check()
        assert (tmp_path / "lease.json").exists()  # not ours to remove

    def test_a_damaged_lease_is_one_line(self, tmp_path):
        (tmp_path / "lease.json").write_text("{")
        with pytest.raises(ResultsError, match="damaged"):
            FileLease(str(tmp_path)).__enter__()


def test_a_folder_is_claimed_for_a_bundle_only_under_the_lease(tmp_path, bundle_path):
    results = tmp_path / "results"
    options = ScoreOptions(PredictSettings(str(bundle_path)))
    with FileLease(str(results)), pytest.raises(ResultsError, match="is being written by"):
        score(CATALOG_SCHEMA.empty_table(), str(results), options)
    assert not (results / "results.json").exists()


def test_results_of_another_bundle_are_refused_before_the_lease(tmp_path, bundle_path):
    results = results_folder(tmp_path / "results")
    results.write_json({"schema_version": 1, "bundle_fingerprint": "another"}, "results.json")
    with pytest.raises(ResultsError, match="another"):
        score(
            CATALOG_SCHEMA.empty_table(),
            results.location,
            ScoreOptions(PredictSettings(str(bundle_path))),
        )
    assert results.names() == ["results.json"], "no lease was taken"


def test_a_run_killed_after_its_manifest_leaves_nothing_that_verify_minds(tmp_path, bundle_path):
    options = ScoreOptions(PredictSettings(str(bundle_path)))
    results = results_folder(tmp_path / "results")
    fingerprint = open_results(results, load_bundle(bundle_path), options)
    write_archive(tmp_path / "archive", 3)
    catalog = load_catalog(tmp_path / "archive")
    plan = make_plan(results, catalog, [], fingerprint, None)
    stray = write_work(plan, "interrupted")
    commit(plan)
    rows = tmp_path / "results" / plan.generation.rows
    shutil.copy(rows / "a_000000-0.parquet", rows / "b_000000-0.parquet")  # by a late writer
    checkpoint = tmp_path / "results" / plan.generation.checkpoints / "a_000000.parquet"
    assert checkpoint.exists()
    assert score(catalog, results.location, options).generation is None
    assert not (tmp_path / "results" / stray[0]).exists()
    assert not checkpoint.exists()
    assert [path.name for path in rows.iterdir()] == ["a_000000-0.parquet"]


def test_catalogs_of_an_archive_feed_the_plan(tmp_path):
    write_archive(tmp_path / "archive", 6)
    catalog = load_catalog(tmp_path / "archive")
    assert plan_for(results_folder(tmp_path / "results"), catalog).remaining == 6
