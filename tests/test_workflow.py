"""The workflow for GitHub, as far as it can be checked elsewhere."""

import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
JOBS = yaml.safe_load((ROOT / ".github" / "workflows" / "package.yml").read_text())["jobs"]


def test_every_python_that_we_name_is_tested() -> None:
    versions = JOBS["tests"]["strategy"]["matrix"]["python"]
    named = [line.split(" :: ")[-1] for line in PROJECT["classifiers"] if " :: 3." in line]
    assert versions == named
    assert PROJECT["requires-python"] == f">={versions[0]}"


def test_the_oldest_torch_that_we_name_is_tested() -> None:
    matrix = JOBS["tests"]["strategy"]["matrix"]
    packages = {row["torch"]: row["packages"].split() for row in matrix["include"]}
    requirements = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["train"]]
    for name in ("torch", "torchvision"):
        (oldest,) = (line.removeprefix(f"{name}>=") for line in requirements if f"{name}>=" in line)
        assert f"{name}=={oldest}.0" in packages["oldest"]


def test_a_tag_is_published_after_all_other_jobs() -> None:
    assert set(JOBS["publish"]["needs"]) == set(JOBS) - {"publish"}
    assert JOBS["publish"]["if"] == "startsWith(github.ref, 'refs/tags/v')"
