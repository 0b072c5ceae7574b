"""Bundles in the layout of the Hugging Face Hub, in a folder or on the Hub.

`README.md` (the model card under a block of metadata), `model.safetensors`, `bundle.json`, and the
graph of a quantized bundle. The metadata has the bundle's fingerprint, which is compared when the
bundle is read back.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from braintumor_ray import __version__
from braintumor_ray.errors import BundleError, first_line
from braintumor_ray.extras import require
from braintumor_ray.models.bundle import (
    CARD,
    DESCRIPTION,
    Bundle,
    BundleFields,
    bundle_files,
    copy_bundle,
    load_bundle,
    read_bundle_fields,
)
from braintumor_ray.storage import Folder, is_uri, read_bytes, write_atomically

README = "README.md"
HUB = "hf://"
TAGS = ("medical-imaging", "mri", "brain-tumor", "grad-cam", "research-only")
# Our name of a figure: the Hub's type.
FIGURES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced_accuracy",
    "macro_f1": "f1",
    "macro_auroc": "roc_auc",
}
_FINGERPRINT = re.compile(r"^bundle_fingerprint: *['\"]?(\w+)", re.MULTILINE)
_METADATA = re.compile(r"\A---\r?\n(.*?)\r?\n---\r?\n+", re.DOTALL)
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_TOKEN = re.compile(r"hf_\w+")


def hub_id(place: str) -> str | None:
    """The repository of `hf://OWNER/NAME` or `OWNER/NAME`; None: it is a folder or another URI.

    `OWNER/NAME` is a folder where `OWNER` is one here; `./OWNER/NAME` always is.
    """
    if place.startswith(HUB):
        return place.removeprefix(HUB).strip("/")
    if is_uri(place) or place.startswith((".", "~")) or not _REPOSITORY.fullmatch(place):
        return None
    return None if os.path.isdir(place.partition("/")[0]) else place


def push_bundle(
    bundle: str | Path, place: str, *, license_id: str = "unknown", public: bool = False
) -> str:
    """Write a bundle in the Hub's layout, to a folder or URI, or to a repository of the Hub.

    Args:
        bundle: folder or URI.
        place: see `hub_id`. A new repository is private; a folder must not hold anything.
        license_id: of the weights, as the Hub names licenses.
        public: allow a repository that everybody can read.

    Returns:
        Where it is.

    Raises:
        BundleError: no bundle, a folder that is not empty, a public repository without `public`,
            or the Hub does not take it.
        UsageError: huggingface_hub is not installed.
    """
    repository = hub_id(place)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        fields = copy_bundle(bundle, folder)
        card = (folder / CARD).read_text(encoding="utf-8")
        (folder / CARD).unlink()
        fingerprint = load_bundle(folder).fingerprint
        text = f"---\n{metadata(fields, fingerprint, license_id)}\n---\n\n{card}"
        (folder / README).write_text(text, encoding="utf-8")
        if repository is None:
            return _to_folder(folder, place, (README, *bundle_files(fields)))
        return _to_hub(folder, repository, fields, public)


def pull_bundle(
    place: str,
    bundle: str | Path,
    *,
    revision: str | None = None,
    fingerprint: str | None = None,
) -> Bundle:
    """Read a bundle from the Hub's layout; it appears whole or not at all.

    Args:
        place: as for `push_bundle`.
        bundle: folder to write, which must not exist.
        revision: branch, tag or commit of a repository.
        fingerprint: the bundle must have it; None: the one of the metadata, if there is one.

    Raises:
        BundleError: something is missing or changed, or the fingerprint differs.
        UsageError: huggingface_hub is not installed.
    """
    target = Path(bundle)
    if target.exists():
        raise BundleError(f"bundle '{target}' exists already; choose another directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    repository = hub_id(place)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        if repository is None:
            _fetch(lambda name: _from_folder(place, name), work)
        else:
            with _hub_errors(repository) as hub:
                api = hub.HfApi()
                _fetch(lambda name: _from_hub(api, repository, revision, name), work)
        found = _checked(place, work, fingerprint)
        _without_metadata(work)
        work.chmod(0o755)
        os.replace(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return found


def metadata(fields: BundleFields, fingerprint: str, license_id: str) -> str:
    """The Hub's metadata of a bundle as YAML: license, tags, task and measured figures."""
    hub = require("huggingface_hub")
    name = str(fields.recipe.get("name", "bundle"))
    measured = fields.metrics.get("validation", {})
    known = {k: measured[k] for k in FIGURES if isinstance(measured.get(k), int | float)}
    results = [
        hub.EvalResult(
            task_type="image-classification",
            dataset_type="validation-split",
            dataset_name="validation split of the run",
            metric_type=FIGURES[key],
            metric_name=key,
            metric_value=float(value),
        )
        for key, value in known.items()
    ]
    about = hub.ModelCardData(
        license=license_id,
        library_name="braintumor-ray",
        pipeline_tag="image-classification",
        tags=[*TAGS, fields.architecture.backbone],
        metrics=[FIGURES[key] for key in known] or None,
        **({"model_name": name, "eval_results": results} if results else {}),
        bundle_fingerprint=fingerprint,
        braintumor_ray_version=__version__,
    )
    return str(about.to_yaml()).strip()


def _to_folder(folder: Path, place: str, names: Sequence[str]) -> str:
    target = Folder(place.rstrip("/"))
    try:
        if target.names():
            raise BundleError(f"'{place}' is not empty; choose another folder")
        for name in names:  # bundle.json is the last: where it is, the rest is
            write_atomically(target.at(name), (folder / name).read_bytes())
    except OSError as error:
        raise BundleError(
            f"'{place}' cannot be written: {error.strerror or error}; choose another folder"
        ) from error
    return target.location


def _fetch(read: Callable[[str], bytes], work: Path) -> None:
    """All files; bundle.json is read first, as it lists them."""
    for name in (README, DESCRIPTION):
        (work / name).write_bytes(read(name))
    for name in bundle_files(read_bundle_fields(work)):
        if name != DESCRIPTION:
            (work / name).write_bytes(read(name))


def _from_folder(place: str, name: str) -> bytes:
    try:
        return read_bytes(f"{place.rstrip('/')}/{name}")
    except OSError as error:
        raise BundleError(
            f"'{place}' is not a bundle in the Hub's layout: {name} cannot be read "
            f"({error.strerror or error}); 'braintumor-ray bundle push' writes one"
        ) from error


def _from_hub(api: Any, repository: str, revision: str | None, name: str) -> bytes:  # noqa: ANN401
    return Path(api.hf_hub_download(repository, name, revision=revision)).read_bytes()


def _to_hub(folder: Path, repository: str, fields: BundleFields, public: bool) -> str:
    with _hub_errors(repository) as hub:
        api = hub.HfApi()
        if api.repo_exists(repository):
            if not (public or api.repo_info(repository).private):
                raise BundleError(
                    f"'{repository}' is public: everybody could read the bundle; give --public if "
                    "that is meant, or another name"
                )
        else:
            api.create_repo(repository, private=not public)
        name = fields.recipe.get("name", "bundle")
        api.upload_folder(
            repo_id=repository, folder_path=str(folder), commit_message=f"Bundle of recipe {name}"
        )
    return f"{HUB}{repository}"


@contextmanager
def _hub_errors(repository: str) -> Iterator[Any]:
    """The library; its errors become one line, without a token."""
    hub = require("huggingface_hub")
    # Its versions differ in their HTTP library, whose own error is a base of this one.
    own = require("huggingface_hub.errors").HfHubHTTPError
    failures = (*own.__bases__, OSError, ValueError)
    try:
        yield hub
    except BundleError:
        raise
    except failures as error:
        cause = _TOKEN.sub("hf_***", first_line(error))
        raise BundleError(
            f"the Hub does not give or take '{repository}': {cause[:300]}; check the name, and log "
            "in with 'hf auth login' or HF_TOKEN"
        ) from error


def _checked(place: str, work: Path, expected: str | None) -> Bundle:
    """The bundle, if it is the one that was pushed."""
    found = load_bundle(work)
    block = _METADATA.match((work / README).read_text(encoding="utf-8"))
    noted = _FINGERPRINT.search(block[1]) if block else None
    wanted = expected or (noted and noted[1])
    if wanted and found.fingerprint != wanted:
        said = "--fingerprint" if expected else f"its {README}"
        raise BundleError(
            f"the bundle at '{place}' has fingerprint {found.fingerprint}, {said} says {wanted}; "
            "it was changed after it was pushed: get it anew from who made it"
        )
    return found


def _without_metadata(work: Path) -> None:
    """README.md becomes the model card."""
    text = (work / README).read_text(encoding="utf-8")
    (work / CARD).write_text(_METADATA.sub("", text), encoding="utf-8")
    (work / README).unlink()
