"""A run whose source, decoded shards and folder are in an object store."""

import pytest
from pyarrow.fs import FileSelector
from typer.testing import CliRunner

from braintumor_ray.cli import app
from braintumor_ray.predict.predictor import Predictor
from braintumor_ray.storage import open_filesystem, read_bytes
from tests.builders import disc_scan, write_archive
from tests.command import PROJECT
from tests.s3 import upload
from tests.training.test_run import QUICK


def train_by_command(source, output, *more):
    settings = [part for setting in QUICK for part in ("--set", setting)]
    where = ("--recipe", "demo", "--weights", "none", "--output", output)
    return CliRunner().invoke(app, ["train", source, *where, *settings, *more])


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_on_a_store_ends_in_a_bundle_there(cluster, s3, tmp_path, monkeypatch):
    bucket, faults = s3
    monkeypatch.chdir(tmp_path)
    write_archive(tmp_path / "archive", 40)
    upload(tmp_path / "archive", bucket, "archive")
    source, output = f"s3://{bucket}/archive", f"s3://{bucket}/runs/first"
    with faults.busy_at_first(4, "runs/"):
        done = train_by_command(source, output, "--cache", f"s3://{bucket}/cache")
    assert done.exit_code == 0, done.output[-3000:]
    assert faults.refused == 4

    columns = Predictor.from_bundle(f"{output}/bundle")([disc_scan(1)])
    assert columns["probabilities"].shape == (1, 4)
    for name in ("run.json", "history.json", "curves.png", "phases.json", "catalog.parquet"):
        assert read_bytes(f"{output}/{name}"), name
    filesystem, base = open_filesystem(f"s3://{bucket}/cache")
    names = [info.path for info in filesystem.get_file_info(FileSelector(base, recursive=True))]
    assert any(name.endswith(".parquet") for name in names)

    again = train_by_command(source, output, "--cache", f"s3://{bucket}/cache")
    assert again.exit_code == 1
    assert "finished run" in again.stderr
    assert not any((folder / "s3:").exists() for folder in (tmp_path, PROJECT))
