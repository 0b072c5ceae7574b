"""What a job asks Ray for, and what `score --plan` says of it."""

from dataclasses import replace

import pytest

from braintumor_ray.errors import UsageError
from braintumor_ray.models.bundle import load_bundle
from braintumor_ray.scoring.estimate import Costs, ask, estimate, sample_of
from braintumor_ray.scoring.layout import Cluster, allocate
from braintumor_ray.scoring.options import PredictSettings, Request, ScoreOptions
from braintumor_ray.scoring.scans import scans_in_table
from tests.builders import write_archive


class TestLayout:
    def test_a_laptop_gets_one_predictor_with_all_cores(self):
        layout = allocate(Request(), Cluster(cpus=4, cores=2))
        assert (layout.predictors, layout.decoders, layout.torch_threads) == ((1, 1), (1, 1), 2)

    def test_gpus_are_all_used_and_every_other_cpu_decodes(self):
        cluster = Cluster(cpus=72, gpus=8, nodes=3, cores=16)
        layout = allocate(Request(gpus_per_predictor=1.0), cluster)
        assert (layout.predictors, layout.decoders) == ((1, 8), (1, 62))
        assert (layout.gpus_per_predictor, layout.torch_threads) == (1.0, None)

    def test_several_predictors_share_a_gpu(self):
        layout = allocate(Request(gpus_per_predictor=0.25), Cluster(cpus=40, gpus=2))
        assert layout.predictors == (1, 8)
        thirds = allocate(Request(gpus_per_predictor=1 / 3), Cluster(cpus=40, gpus=1))
        assert thirds.predictors == (1, 3)

    def test_a_share_that_ray_does_not_take_is_refused_at_once(self):
        with pytest.raises(UsageError, match=r"--gpus-per-predictor 1\.5 is neither a share"):
            Request(gpus_per_predictor=1.5)
        assert Request(gpus_per_predictor=2.0).gpus_per_predictor == 2.0

    def test_cpu_nodes_get_a_predictor_each(self):
        layout = allocate(Request(), Cluster(cpus=24, nodes=3, cores=8))
        assert (layout.predictors, layout.torch_threads) == ((1, 3), 8)

    def test_predictors_on_cpus_keep_freed_memory(self, monkeypatch):
        for name in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES"):
            monkeypatch.delenv(name, raising=False)
        on_cpu = allocate(Request(), Cluster(cpus=4, cores=2)).runtime_env()
        assert on_cpu["env_vars"]["MALLOC_MMAP_MAX_"] == "0"
        on_gpu = allocate(Request(gpus_per_predictor=1.0), Cluster(cpus=8, gpus=1))
        assert on_gpu.runtime_env() == {}

    def test_heavier_decoders_are_fewer(self):
        layout = allocate(Request(cpus_per_decode=2.0), Cluster(cpus=16))
        assert (layout.decoders, layout.cpus_per_decode) == ((1, 6), 2.0)

    def test_what_is_said_is_done(self):
        layout = allocate(Request(predictors=(2, 3), decoders=(4, 5)), Cluster(cpus=32))
        assert (layout.predictors, layout.decoders) == ((2, 3), (4, 5))

    def test_too_few_cpus_are_refused_instead_of_hanging(self):
        with pytest.raises(UsageError, match="2 CPUs and the job needs 4"):
            allocate(Request(), Cluster(cpus=2))
        with pytest.raises(UsageError, match="4 CPUs and the job needs 6"):
            allocate(Request(predictors=(3, 3)), Cluster(cpus=4))

    def test_missing_gpus_are_named(self):
        with pytest.raises(UsageError, match="1 GPUs and 2 predictors need 2"):
            allocate(Request((2, 2), gpus_per_predictor=1.0), Cluster(cpus=8, gpus=1))


class TestPlan:
    def options(self, **changes):
        return ScoreOptions(PredictSettings("bundle"), **changes)

    def test_cpus_that_one_gpu_needs(self):
        costs = Costs(decode_s=0.004, predict_s=1 / 5000, device="cuda", block_bytes=10_000_000)
        found = ask(costs, 18_000_000, self.options(request=Request(gpus_per_predictor=0.5)))
        assert found["decoders_per_gpu"] == pytest.approx(20)
        assert found["cpus_per_gpu"] == pytest.approx(22)
        assert found["hours"] == pytest.approx(1.0)
        assert found["object_store_bytes"] == 10_000_000 * 44 / 0.5
        assert any("20.0 decoders, 22.0 CPUs" in line for line in found["lines"])

    def test_a_sample_is_measured(self, tmp_path, bundle_path):
        from braintumor_ray.catalog.build import load_catalog

        write_archive(tmp_path / "archive", 24)
        scans = scans_in_table(load_catalog(tmp_path / "archive"))
        options = ScoreOptions(PredictSettings(str(bundle_path), device="cpu"))
        bundle = load_bundle(bundle_path)
        found = estimate(scans, 24, bundle, options)
        assert found["device"] == "cpu"
        assert 0 < found["decode_ms"] < 1000
        assert 0 < found["predict_ms"] < 1000
        shared = replace(options, request=Request(gpus_per_predictor=0.5))
        given = estimate(scans, 24, bundle, shared, gpu_scans_per_s=1000.0)
        assert given["predict_ms"] == pytest.approx(1.0)
        assert (given["device"], given["predictors_per_gpu"]) == ("given", 2)

    def test_a_sample_is_spread_over_the_catalog(self):
        import pyarrow as pa

        table = pa.table({"scan_id": list(range(1000))})
        ids = sample_of(scans_in_table(table), 10)["scan_id"].to_pylist()
        assert ids == list(range(0, 1000, 100))

    def test_the_command_prints_it_and_writes_nothing(self, tmp_path, bundle_path):
        import json

        from typer.testing import CliRunner

        from braintumor_ray.cli import app

        write_archive(tmp_path / "archive", 12)
        words = ["score", tmp_path / "archive", "-b", bundle_path, "-o", tmp_path / "results"]
        words += ["--plan", "--device", "cpu", "--gpu-scans-per-s", "500", "--json"]
        found = CliRunner().invoke(app, [str(word) for word in words])
        assert found.exit_code == 0, found.output
        told = json.loads(found.stdout)
        assert (told["remaining"], told["device"]) == (12, "given")
        assert told["cpus_per_gpu"] == pytest.approx(told["decoders_per_gpu"] + 1)
        assert not (tmp_path / "results").exists()
