"""The documents and docstrings say what the program does."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import typer.main

from braintumor_ray.cli import app
from braintumor_ray.predict.schema import OPTIONAL_FIELDS, result_schema

PROJECT = Path(__file__).resolve().parent.parent
PACKAGE = PROJECT / "braintumor_ray"
README = (PROJECT / "README.md").read_text(encoding="utf-8")
DATA_FILES = {"csv", "json", "parquet", "safetensors", "xml", "bin"}
FILE_ENDINGS = DATA_FILES | {"jpg", "png", "md", "py", "txt"}
SHORTENED = {"np": "numpy", "nn": "torch"}
RECIPE_AND_BUNDLE_FIELDS = {"stages.train", "preprocessing.square"}
CONTRACT = (PROJECT / "docs" / "data-contract.md").read_text(encoding="utf-8")


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 160


def test_the_readme_lists_every_command():
    for name in typer.main.get_command(app).commands:
        assert re.search(rf"^\| `{name}[ `]", README, re.MULTILINE), name


def test_links_lead_somewhere():
    elsewhere = [*(PROJECT / "docs").rglob("*.md"), PROJECT / "cluster" / "README.md"]
    for document in [PROJECT / "README.md", *elsewhere]:
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_the_contract_lists_every_column():
    for field in result_schema((7, 7), ("gradcam", "gradcam_pp"), [*OPTIONAL_FIELDS]):
        assert f"`{field.name}`" in CONTRACT, field.name


def test_research_software_is_said_to_be_so():
    for text in (README, app.info.help):
        assert "not a medical device" in text


def dotted_names(tree):
    """Names like `room.module.name` in docstrings, but for attributes of documented arguments."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        arguments = [arg.arg for arg in ast.walk(node) if isinstance(arg, ast.arg)]
        for name in re.findall(r"`([a-z_]\w*(?:\.\w+)+)`", ast.get_docstring(node) or ""):
            ending = name.rsplit(".", 1)[1]
            if name.split(".")[0] not in arguments and ending not in FILE_ENDINGS:
                yield name


def is_defined(folder, name):
    """Whether the name leads from the folder to a module, or to what a module defines."""
    first, *rest = name.split(".")
    if (folder / first).is_dir():
        return bool(rest) and is_defined(folder / first, ".".join(rest))
    module = folder / f"{first}.py"
    text = module.read_text(encoding="utf-8") if module.exists() else None
    return text is not None and all(
        re.search(rf"^\s*(?:def |class )?{part}\b *[(:=\[]", text, re.MULTILINE) for part in rest
    )


def test_docstrings_name_what_there_is():
    for path in PACKAGE.rglob("*.py"):
        for name in dotted_names(ast.parse(path.read_text(encoding="utf-8"))):
            full = name.removeprefix("braintumor_ray.")
            ours = is_defined(PACKAGE, full) or is_defined(path.parent, full)
            first = full.split(".")[0]
            theirs = find_spec(SHORTENED.get(first, first))
            assert ours or theirs or full in RECIPE_AND_BUNDLE_FIELDS, f"{path}: `{name}`"


BRITISH = re.compile(
    r"catalogu(?:e[ds]?|ing)\b|(?:un)?labell|modell|cancell|colour|grey|centre|behaviour|neighbour"
    r"|favour|normalis|initialis|randomis|optimis(?!tic)|localis|anonymis|quantis|analys(?:ed|ing)",
    re.IGNORECASE,
)
# Keys, names of methods, folders and recipes keep the spelling that they were given, and so do
# reasons that are stored in rows.
KEEP = {
    "unlabelled",
    "centre",
    "localisation",
    "changed since it was catalogued",
    "file not found (deleted or moved since it was catalogued)",
}


def test_messages_and_documents_have_one_spelling():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found = node.value not in KEEP and BRITISH.search(node.value)
                assert not found, f"{path}:{node.lineno}: {node.value}"
    for path in [PROJECT / "README.md", *(PROJECT / "docs").rglob("*.md")]:
        text = re.sub(r"`[^`]*`", "", path.read_text(encoding="utf-8"))
        found = BRITISH.search(text)
        assert not found, f"{path}: {found and found[0]}"
