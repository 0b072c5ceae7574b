"""A small synthetic run: phantom scans, a catalog with splits, and an untrained bundle."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from braintumor_ray.catalog.schema import write_catalog
from tests.evaluation.make_bundle import make_bundle


@pytest.fixture(scope="session")
def run_catalog(fingerprinted, phantoms) -> pa.Table:
    """As training writes it: split by patient, pixel hashes, class names; no planted copies."""
    table = fingerprinted.filter(pc.invert(pc.match_substring(fingerprinted["path"], "copy_")))
    split = [
        None if status != "ok" else "test" if official == "test" else "val" if number > 11 else
        "train"
        for status, official, number in zip(
            table["status"].to_pylist(),
            table["official_split"].to_pylist(),
            [int((p or "p0")[1:]) for p in table["patient_key"].to_pylist()],
            strict=True,
        )
    ]  # fmt: skip
    columns = [*phantoms.column_names, "status", "reason", "pixel_sha256"]
    return (
        table.select(columns)
        .append_column("class_name", table["label"])
        .append_column("duplicate_group", pa.array(np.arange(table.num_rows)))
        .append_column("split", pa.array(split, pa.string()))
    )


@pytest.fixture(scope="session")
def run(tmp_path_factory, run_catalog) -> SimpleNamespace:
    """A finished training run: `folder`, `catalog`, `bundle`."""
    folder = tmp_path_factory.mktemp("run")
    write_catalog(run_catalog, folder / "catalog.parquet")
    history = [
        {
            "stage": stage, "epoch": epoch, "lr": 10.0**-epoch, "train_loss": 1 / epoch,
            "train_accuracy": 0.5, "val_loss": 1.1 / epoch, "val_accuracy": 0.4,
            "val_balanced_accuracy": 0.4, "val_precision": 0.3, "val_recall": 0.4,
        }
        for epoch, stage in enumerate(("head", "head", "all"), start=1)
    ]  # fmt: skip
    (folder / "history.json").write_text(json.dumps(history))
    bundle = make_bundle(folder / "bundle")
    return SimpleNamespace(folder=folder, catalog=run_catalog, bundle=bundle)


@pytest.fixture
def lone_bundle(tmp_path, run) -> Path:
    """The same bundle without the run beside it."""
    shutil.copytree(run.bundle, tmp_path / "alone" / "bundle")
    return tmp_path / "alone" / "bundle"
