"""Bundles in the Hub's layout: in a folder, and through a Hub that is played by a folder."""

import json
import shutil

import huggingface_hub
import numpy as np
import pytest
import yaml
from huggingface_hub.errors import HfHubHTTPError

from braintumor_ray import Predictor
from braintumor_ray.errors import BundleError
from braintumor_ray.models.bundle import load_bundle
from braintumor_ray.models.hub import hub_id, pull_bundle, push_bundle
from tests.builders import disc_scan, make_bundle

METRICS = {"validation": {"accuracy": 0.9, "macro_auroc": 0.95, "binary": {"f1": 0.8}}}


class FakeApi:
    """What of the Hub's client is used; repositories are folders."""

    def __init__(self, root):
        self.root, self.public, self.failure = root, set(), None

    def _try(self):
        if self.failure:
            raise self.failure

    def repo_exists(self, repo_id):
        self._try()
        return (self.root / repo_id).is_dir()

    def repo_info(self, repo_id):
        return huggingface_hub.ModelInfo(id=repo_id, private=repo_id not in self.public)

    def create_repo(self, repo_id, private):
        (self.root / repo_id).mkdir(parents=True)
        self.public |= set() if private else {repo_id}

    def upload_folder(self, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)

    def hf_hub_download(self, repo_id, filename, revision):
        self._try()
        return str(self.root / repo_id / filename)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    api = FakeApi(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    monkeypatch.chdir(tmp_path)
    return api


@pytest.fixture
def bundle(tmp_path):
    make_bundle(tmp_path / "bundle", metrics=METRICS)
    return tmp_path / "bundle"


def same(one, other):
    scans = [disc_scan(seed) for seed in range(2)]
    a, b = (Predictor.from_bundle(path)(scans) for path in (one, other))
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_a_bundle_goes_through_a_folder_and_is_the_same(bundle, tmp_path):
    push_bundle(bundle, str(tmp_path / "layout"), license_id="cc-by-4.0")
    assert {path.name for path in (tmp_path / "layout").iterdir()} == {
        "README.md",
        "model.safetensors",
        "bundle.json",
    }
    pulled = pull_bundle(str(tmp_path / "layout"), tmp_path / "back")
    assert pulled.fingerprint == load_bundle(bundle).fingerprint
    for name in ("bundle.json", "model.safetensors", "model_card.md"):
        assert (tmp_path / "back" / name).read_bytes() == (bundle / name).read_bytes()
    assert same(bundle, tmp_path / "back")


def test_the_card_has_the_metadata_that_the_hub_reads(bundle, tmp_path):
    push_bundle(bundle, str(tmp_path / "layout"), license_id="cc-by-4.0")
    card = huggingface_hub.ModelCard.load(tmp_path / "layout" / "README.md")
    assert card.text.strip() == "# card"
    about = card.data
    assert (about.license, about.library_name) == ("cc-by-4.0", "braintumor-ray")
    assert about.pipeline_tag == "image-classification"
    assert {"mri", "small-cnn"} <= {*about.tags}
    figures = {result.metric_name: result.metric_value for result in about.eval_results}
    assert figures == {"accuracy": 0.9, "macro_auroc": 0.95}
    block = yaml.safe_load((tmp_path / "layout" / "README.md").read_text().split("---")[1])
    assert block["model-index"][0]["name"] == "test"
    assert block["bundle_fingerprint"] == load_bundle(bundle).fingerprint


def test_a_bundle_without_figures_has_a_card_too(tmp_path):
    make_bundle(tmp_path / "bundle")
    push_bundle(tmp_path / "bundle", str(tmp_path / "layout"))
    assert "model-index" not in (tmp_path / "layout" / "README.md").read_text()
    assert pull_bundle(str(tmp_path / "layout"), tmp_path / "back")


def test_a_new_repository_is_private_and_gives_the_bundle_back(bundle, hub, tmp_path):
    assert push_bundle(bundle, "clinic/tumors") == "hf://clinic/tumors"
    assert not hub.public
    pull_bundle("hf://clinic/tumors", tmp_path / "back")
    assert same(bundle, tmp_path / "back")


def test_a_public_repository_must_be_meant(bundle, hub):
    push_bundle(bundle, "clinic/tumors", public=True)
    assert hub.public == {"clinic/tumors"}
    with pytest.raises(BundleError, match=r"'clinic/tumors' is public.*--public"):
        push_bundle(bundle, "clinic/tumors")


def test_a_changed_description_is_found_by_the_fingerprint(bundle, tmp_path):
    layout = tmp_path / "layout"
    push_bundle(bundle, str(layout))
    fields = json.loads((layout / "bundle.json").read_text())
    (layout / "bundle.json").write_text(json.dumps(fields | {"threshold": 0.01}))
    with pytest.raises(BundleError, match=r"has fingerprint .* README\.md says"):
        pull_bundle(str(layout), tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert not list(tmp_path.glob(".back-*"))


def test_changed_weights_and_a_fingerprint_of_another_bundle_are_refused(bundle, tmp_path):
    layout = tmp_path / "layout"
    push_bundle(bundle, str(layout))
    with pytest.raises(BundleError, match="--fingerprint says 0000"):
        pull_bundle(str(layout), tmp_path / "back", fingerprint="0000")
    weights = layout / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="do not belong together"):
        pull_bundle(str(layout), tmp_path / "back")


def test_nothing_is_overwritten(bundle, tmp_path):
    push_bundle(bundle, str(tmp_path / "layout"))
    with pytest.raises(BundleError, match="is not empty"):
        push_bundle(bundle, str(tmp_path / "layout"))
    with pytest.raises(BundleError, match="exists already"):
        pull_bundle(str(tmp_path / "layout"), bundle)


@pytest.mark.parametrize(
    "failure",
    [
        HfHubHTTPError.__bases__[0]("no route hf_AbC123\nmore"),
        OSError("hf_AbC123 refused"),
    ],
)
def test_a_hub_that_fails_is_one_line_without_the_token(bundle, hub, tmp_path, failure):
    hub.failure = failure
    for call in (
        lambda: push_bundle(bundle, "clinic/tumors"),
        lambda: pull_bundle("clinic/tumors", tmp_path / "back"),
    ):
        with pytest.raises(BundleError) as caught:
            call()
        assert "'clinic/tumors'" in str(caught.value)
        assert "AbC123" not in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "back").exists()


def test_a_file_in_place_of_the_folder_is_one_line(bundle, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="cannot be written"):
        push_bundle(bundle, str(tmp_path / "file"))


def test_a_folder_that_is_no_bundle_says_what_is_missing(tmp_path):
    with pytest.raises(BundleError, match=r"README.md cannot be read"):
        pull_bundle(str(tmp_path / "none"), tmp_path / "back")


def test_what_is_a_folder_and_what_is_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_id("owner/name") == "owner/name"
    assert hub_id("hf://owner/name") == "owner/name"
    for folder in ("./owner/name", "/owner/name", "name", "a/b/c", "s3://owner/name", "~/name"):
        assert hub_id(folder) is None
    (tmp_path / "owner").mkdir()
    assert hub_id("owner/name") is None
