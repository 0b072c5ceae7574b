"""Dependencies run one way; light things stay light."""

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from braintumor_ray.extras import EXTRAS

PACKAGE = Path(__file__).resolve().parent.parent / "braintumor_ray"
LAYERS = [  # each imports from those above it only
    {"errors", "choices", "types", "progress", "extras", "recipes", "hash_key"},
    {"options"},
    {"storage", "monitoring"},
    {"lease"},
    {"dicomweb"},
    {"decode", "phantom", "parquet_dataset"},
    {"catalog", "splits"},
    {"models"},
    {"explain", "metrics"},
    {"engines"},
    {"predict", "localization", "faithfulness", "pages"},
    {"training", "scoring", "evaluation", "audit", "worklist", "neurons", "publishing"},
    {"tracking", "serving"},
    {"archive", "review"},
    {"cli", "client", "local_ray"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
RAY_MODULES = {
    "parquet_dataset.py",
    "training/shards.py",
    "training/trainer.py",
    "training/uneven.py",
    "training/worker.py",
    "scoring/job.py",
    "scoring/pipeline.py",
    "audit/job.py",
    "serving/app.py",
    "local_ray.py",
    "monitoring/meters.py",
}
# Short modules with one importer, and why each is a module of its own.
SHORT = 60
ALONE = {
    "audit/job.py": "Ray at the edges only: an audit runs without it",
    "training/uneven.py": "imported by a process of Ray's that has no use for torch",
    "cli/hospital.py": "commands are grouped by subject; publishing has one command",
    "cli/serving.py": "commands are grouped by subject; serving has one command",
    "cli/network.py": "commands are grouped by subject; networks have one command",
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
        if parts[0] != "braintumor_ray" or len(parts) < 2:
            continue
        if parts[1] in ("errors", "choices", own):
            continue
        target = parts[1]
        below = LEVEL[target] < LEVEL[own]
        top_floor = LEVEL[target] == LEVEL[own] == len(LAYERS) - 1
        assert below or top_floor, f"{own} must not import {module}"


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
    [
        "import braintumor_ray",
        "from braintumor_ray.cli import app; app(['--help'])",
        "from braintumor_ray.cli import app; app(['score', '--help'])",
    ],
)
def test_import_and_help_load_nothing_heavy(code):
    probe = (
        "import sys\n"
        f"try:\n    {code}\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'ray', 'cv2', 'timm', 'sklearn', 'matplotlib', "
        "'numpy', 'pyarrow') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr.strip().endswith("[]")


@pytest.mark.parametrize(
    ("modules", "spared"),
    [
        # There are many decoding actors, and torch costs each a second and 200 MB.
        (
            "braintumor_ray.scoring.decode_stage, braintumor_ray.decode.sandbox_child",
            ("torch", "timm", "ray"),
        ),
        # Fronts of a service do not predict.
        ("braintumor_ray.serving.app", ("torch", "timm")),
        # It has no network.
        ("braintumor_ray.review.command", ("torch", "timm", "ray")),
        # They read files of an archive, as often as every night, and have no use for a network.
        (
            "braintumor_ray.scoring.verify, braintumor_ray.archive.compact, "
            "braintumor_ray.archive.register, braintumor_ray.archive.query",
            ("torch", "timm", "ray"),
        ),
        # What Ray starts for each training besides the workers.
        ("braintumor_ray.training.uneven, braintumor_ray.training.shards", ("torch", "timm")),
        # Every actor of a job or a service is a process of its own that imports the predictor.
        (
            "braintumor_ray.scoring.predict_stage, braintumor_ray.scoring.summary",
            ("sklearn", "scipy.stats", "pandas", "matplotlib"),
        ),
    ],
)
def test_processes_load_only_what_they_use(modules, spared):
    probe = f"import sys, {modules}\nprint([m for m in {spared} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph():
    """Module -> modules of the package that it imports, anywhere in the file."""
    names = {module_name(path): path for path in FILES}
    graph = {}
    for name, path in names.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= inner & names.keys() or {node.module}
        graph[name] = (found & names.keys()) - {name}
    return graph


def test_no_two_modules_import_each_other_in_a_circle():
    waiting = import_graph()
    front_door = "braintumor_ray"  # lazy; everything may ask it for the version
    waiting.pop(front_door)
    while waiting:
        free = {name for name, uses in waiting.items() if not uses & waiting.keys()}
        assert free, f"a circle among {sorted(waiting)}"
        waiting = {name: uses for name, uses in waiting.items() if name not in free}


def test_a_short_module_has_more_than_one_importer_or_a_reason():
    graph = import_graph()
    alone = set()
    for path in FILES:
        importers = [other for other, uses in graph.items() if module_name(path) in uses]
        short = len(path.read_text(encoding="utf-8").splitlines()) < SHORT
        if short and len(importers) == 1 and not path.name.startswith("__"):
            alone.add(str(path.relative_to(PACKAGE)))
    assert not alone - ALONE.keys(), "merge each into its importer, or give a reason"
    assert not ALONE.keys() - alone, "needs no reason any more"


def test_no_two_classes_share_a_name():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in FILES]
    names = Counter(n.name for tree in trees for n in ast.walk(tree) if isinstance(n, ast.ClassDef))
    assert not [name for name, times in names.items() if times > 1]


def test_the_decision_record_shows_the_layers():
    record = PACKAGE.parent / "docs" / "decisions" / "010-rooms.md"
    block = record.read_text(encoding="utf-8").split("```")[1]
    shown, level = {}, len(LAYERS)
    for line in block.strip().splitlines():
        names = re.match(r"(\d*) +((?:[a-z_]+\*? {1,2})*[a-z_]+\*?)", line)
        level = int(names[1]) if names[1] else level
        shown.setdefault(level, set()).update(names[2].replace("*", "").split())
    assert shown == dict(enumerate(LAYERS))


def test_every_optional_package_comes_with_an_extra():
    declared = PACKAGE.parent.joinpath("pyproject.toml").read_text(encoding="utf-8")
    for package, extra in EXTRAS.items():
        block = declared.split(f"\n{extra} = [", 1)[1].split("\n]", 1)[0]
        assert f'"{package.replace("_", "-")}' in block, package
