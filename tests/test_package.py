"""The package as a whole: its version, its public list, and which way imports run."""

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import halonet

ROOT = Path(halonet.__file__).parent
PROJECT = Path(__file__).parents[1]
# A layer may import from itself and those before it.
ORDER = [
    "openmp",
    "allocator",
    "files",
    "devices",
    "ops",
    "layers",
    "models",
    "check",
    "data",
    "training",
    "explain",
    "classification",
    "detection",
    "integrations",
    "export",
    "inference",
    "runs",
    "demo",
    "cli",
    "__main__",
]
# Tasks, which know nothing of each other.
SIBLINGS = {"classification", "detection"}
# What only some layers import.
LEAVES = {
    "timm": ["layers", "models", "data", "training", "detection", "integrations", "export"],
    "huggingface_hub": ["integrations", "inference"],
}


def test_version_and_its_date_are_the_same_everywhere() -> None:
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text())
    unreleased, latest, *_ = re.findall(r"^## (.+)$", (PROJECT / "CHANGELOG.md").read_text(), re.M)
    assert unreleased == "Unreleased"
    assert latest == f"{version} - {citation['date-released']}"
    assert citation["version"] == version
    assert citation["preferred-citation"]["doi"] == "10.48550/arXiv.2103.12731"


def test_public_list_is_frozen() -> None:
    assert sorted(halonet.__all__) == [
        "AttentionWeights",
        "BackendChoice",
        "Classifier",
        "EvaluatedRun",
        "ExportReport",
        "HaloAttention",
        "HaloNet",
        "LoadReport",
        "LoadedClassifier",
        "LoadedDetector",
        "Preprocessing",
        "Variant",
        "attention_weights",
        "count_flops",
        "create_model",
        "evaluate",
        "explain_backend",
        "export_model",
        "get_variant",
        "halo_attention",
        "list_backends",
        "list_models",
        "load_model",
        "load_run",
        "load_weights",
        "replace_timm_layers",
        "restore_timm_layers",
        "save_model",
        "train",
    ]
    for name in halonet.__all__:
        assert getattr(halonet, name).__doc__, f"{name} has no docstring"


def imported_modules(path: Path) -> list[str]:
    """All that a file imports, in functions too."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            # Of a package, a name may be a module.
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return names


@pytest.mark.parametrize(
    "path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_imports_run_one_way(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for name in imported_modules(path):
        parts = name.split(".")
        assert own in LEAVES.get(parts[0], [own]), f"{path.name} imports {name}"
        if parts[:2] == ["halonet", "integrations"]:
            assert own == "integrations", f"{path.name} imports {name}"
        if {own, *parts[1:2]} == SIBLINGS:
            raise AssertionError(f"{path.name} imports {name}, of the other task")
        if parts[0] == "halonet" and len(parts) > 1:
            assert ORDER.index(parts[1]) <= ORDER.index(own), f"{path.name} imports {name}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = {
        ".".join(["halonet", *path.relative_to(ROOT).with_suffix("").parts]): path
        for path in ROOT.rglob("*.py")
        if path.name != "__init__.py"
    }
    imports = {name: set(imported_modules(path)) & set(modules) for name, path in modules.items()}
    assert imports["halonet.data.sources"] >= {"halonet.data.shards", "halonet.data.hub"}
    order = graphlib.TopologicalSorter(imports)
    order.prepare()  # raises CycleError, which names the circle


def test_the_core_imports_torch_and_little_else() -> None:
    heavy = [
        "accelerate",
        "huggingface_hub",
        "matplotlib",
        "onnx",
        "onnxruntime",
        "numpy.testing",
        "PIL",
        "timm",
        "torch._dynamo",
        "torchmetrics",
        "torchvision",
        "triton",
    ]
    code = f"import sys, torch; before = set(sys.modules); import halonet; print([name for name in {heavy} if name in set(sys.modules) - before])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
