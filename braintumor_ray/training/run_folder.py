"""The folder of a run, local or on an object store: its note, and what it ends in."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from braintumor_ray.errors import TrainingError, UsageError
from braintumor_ray.recipes.schema import Recipe
from braintumor_ray.storage import Folder, is_local, local_path, write_atomically

NOTE = "run.json"
_OTHERS = "other data, labels, weights, truth or number of folds"


class RunFolder(Folder):
    """The folder of one run; a local one by its absolute path."""

    def note(self) -> dict[str, Any]:
        """What is trained here and how far it is; empty for a new folder.

        Raises:
            UsageError: the note is damaged.
        """
        try:
            return self.read_json(NOTE)
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise UsageError(f"'{self.at(NOTE)}' is damaged: {error}; remove the folder") from error

    def write_note(self, **values: Any) -> None:  # noqa: ANN401 - JSON values
        """Add to the note."""
        self.write_json(self.note() | values, NOTE)

    def refuse_other(self, recipe: Recipe, fingerprint: str) -> None:
        """Refuse a folder in which something else is trained.

        Args:
            recipe: what is to be trained.
            fingerprint: of it and all that it is trained on (`fingerprint_of`).

        Raises:
            TrainingError: the folder's note has another fingerprint.
        """
        known = self.note()
        if not known or known.get("fingerprint") == fingerprint:
            return
        wanted, had = recipe.model_dump(mode="json"), known.get("recipe", {})
        changed = [key for key in wanted if wanted[key] != had.get(key)]
        what = f"another recipe field '{changed[0]}'" if changed else _OTHERS
        raise TrainingError(
            f"'{self.location}' holds a run with {what}; choose another --output, or remove the "
            "folder"
        )

    def claim(self, recipe: Recipe, fingerprint: str) -> None:
        """Note what is trained here.

        Raises:
            TrainingError: something else is.
        """
        self.refuse_other(recipe, fingerprint)
        noted = recipe.model_dump(mode="json")
        self.write_note(fingerprint=fingerprint, recipe=noted, status="training")

    @contextmanager
    def staging_folder(self) -> Iterator[Path]:
        """A local folder for files of the run; they are there when the block has ended.

        On an object store the bundle is copied last: where it is, the rest is.
        """
        if is_local(self.location):
            yield local_path(self.location)
            return
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
            self._upload(Path(folder))

    def refuse_finished(self) -> None:
        """Refuse a folder whose run is finished, before anything is decoded.

        Raises:
            TrainingError: it is.
        """
        # A finished cross-validation has its bundles in its folds, and may be asked for again.
        if self.note().get("status") == "finished" and "bundle" in self.names():
            raise TrainingError(
                f"'{self.location}' holds a finished run (bundle at '{self.at('bundle')}'); "
                "training it again would change nothing: choose another --output"
            )

    def refuse_foreign_bundle(self) -> None:
        """Refuse a folder whose bundle training would replace, before anything is decoded.

        Raises:
            TrainingError: the bundle belongs to no run.
        """
        if not self.note() and "bundle" in self.names():
            raise TrainingError(
                f"'{self.at('bundle')}' exists and '{self.location}' has no {NOTE}: the bundle is "
                "not of a run in this folder, and training would replace it; choose another "
                "--output"
            )

    def drop_unfinished_bundle(self) -> None:
        """Remove the bundle of a run that ended between writing it and noting so.

        Only where the note shows that a run was at work: any other bundle is not ours to remove.
        On an object store it is written over.
        """
        if is_local(self.location) and self.note().get("status") == "training":
            shutil.rmtree(local_path(self.at("bundle")), ignore_errors=True)

    def _upload(self, folder: Path) -> None:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in sorted(files, key=lambda p: p.relative_to(folder).parts[0] == "bundle"):
            write_atomically(self.at(path.relative_to(folder).as_posix()), path.read_bytes())


def fingerprint_of(parts: Sequence[Any]) -> str:
    """A digest of JSON values."""
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def run_folder(output: str | Path) -> RunFolder:
    """The folder at a path or URI; a local one is made."""
    text = str(output)
    if not is_local(text):
        return RunFolder(text.rstrip("/"))
    path = local_path(text).resolve()
    path.mkdir(parents=True, exist_ok=True)
    return RunFolder(str(path))
