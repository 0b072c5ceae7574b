"""What training finds in the folder that it is to write to, and leaves alone."""

import json

import pytest

from braintumor_ray.errors import ResultsError, TrainingError
from braintumor_ray.lease import lease_on
from braintumor_ray.training.run import check_run, train
from braintumor_ray.training.run_folder import run_folder
from tests.training.test_run import options


@pytest.fixture
def foreign(tmp_path):
    """A folder with a bundle that no run made, such as one copied from elsewhere."""
    bundle = tmp_path / "models" / "bundle"
    bundle.mkdir(parents=True)
    (bundle / "bundle.json").write_text("{}")
    return tmp_path / "models"


def test_a_bundle_of_no_run_is_refused_and_kept(foreign):
    with pytest.raises(TrainingError, match=r"has no run\.json.*choose another --output"):
        check_run(foreign)
    with pytest.raises(TrainingError, match=r"has no run\.json"):
        train(None, options(foreign), str)  # before the catalog is looked at
    assert [path.name for path in foreign.rglob("*")] == ["bundle", "bundle.json"]


def test_a_bundle_of_no_run_is_refused_on_a_store_too():
    import fsspec

    fsspec.filesystem("memory").pipe("/models/bundle/bundle.json", b"{}")
    with pytest.raises(TrainingError, match=r"has no run\.json"):
        check_run("memory:///models")


def test_only_a_run_at_work_removes_a_bundle(foreign):
    folder = run_folder(foreign)
    folder.drop_unfinished_bundle()
    assert (foreign / "bundle" / "bundle.json").exists(), "no note: not ours"
    folder.write_note(status="training")
    folder.drop_unfinished_bundle()
    assert not (foreign / "bundle").exists()


def test_an_interrupted_run_goes_on(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"status": "training"}))
    (tmp_path / "bundle").mkdir()
    check_run(tmp_path)


def test_a_folder_in_which_another_process_trains_is_refused(tmp_path):
    with lease_on(str(tmp_path)), pytest.raises(ResultsError, match="is being written by process"):
        train(None, options(tmp_path), str)  # before the catalog is looked at
