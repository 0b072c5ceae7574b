"""Dependencies run one way; light things stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "braintumor_ray"
LAYERS = [
    {"errors", "recipes"},
    {"data"},
    {"models"},
    {"explain"},
    {"metrics", "predict"},
    {"training", "scoring", "evaluation", "serving"},
    {"archive_commands", "cli", "client", "commands", "console", "demo", "local_ray"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
RAY_MODULES = {
    "data/pipeline.py",
    "training/trainer.py",
    "training/worker.py",
    "scoring/job.py",
    "scoring/pipeline.py",
    "evaluation/audit_job.py",
    "scoring/preflight.py",
    "serving/app.py",
    "local_ray.py",
    "commands.py",
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_imports_from_a_layer_above_or_beside_it(path):
    own = room(path)
    if own == "__init__":
        return  # the package's lazy front door
    for module in imports(path):
        parts = module.split(".")
        if parts[0] != "braintumor_ray" or len(parts) < 2 or parts[1] in ("errors", own):
            continue
        target = parts[1]
        below = LEVEL[target] < LEVEL[own]
        same_floor = LEVEL[target] == LEVEL[own] and own in LAYERS[-1] | LAYERS[0] | LAYERS[4]
        assert below or same_floor, f"{own} must not import {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_ray_is_imported_at_the_edges_only(path):
    if str(path.relative_to(PACKAGE)) not in RAY_MODULES:
        assert not [m for m in imports(path) if m == "ray" or m.startswith("ray.")]


def test_library_code_never_starts_ray():
    for path in FILES:
        if path.name != "local_ray.py":
            assert "ray.init(" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize(
    "code",
    ["import braintumor_ray", "from braintumor_ray.cli import app; app(['--help'])"],
)
def test_import_and_help_load_nothing_heavy(code):
    probe = (
        "import sys\n"
        f"try:\n    {code}\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'ray', 'cv2', 'timm', 'sklearn', 'matplotlib') "
        "if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr.strip().endswith("[]")


def test_a_decoding_actor_does_not_load_torch():
    """It would cost each of them a second and 200 MB, and there are many."""
    probe = (
        "import sys, braintumor_ray.scoring.watchful, braintumor_ray.data.sandbox_child\n"
        "print([m for m in ('torch', 'timm', 'ray') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
