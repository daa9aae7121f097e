"""The documents as a site; the commands and the Python of its first page and of its tutorial."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from halonet import cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
START, TUTORIAL = (
    (DOCS / name).read_text(encoding="utf-8") for name in ("index.md", "tutorial_photos.md")
)
TUTORIALS = sorted(DOCS.glob("tutorial_*.md"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def list_blocks(page: str, language: str) -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return [content for kind, content in blocks if kind == language]


@pytest.fixture
def place(whole_run, images, monkeypatch, tmp_path):
    """A folder with the runs and photos that the pages name."""
    for name in ("elpv", "finetune"):
        shutil.copytree(whole_run.folder, tmp_path / "runs" / name)
    shutil.copytree(images / "red", tmp_path / "new_photos")
    with Image.open(images / "red" / "0.png") as image:
        image.save(tmp_path / "cell.png")
        image.save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_site_builds_without_a_warning(tmp_path) -> None:
    if "CI" not in os.environ:
        pytest.importorskip("zensical")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    (tmp_path / "halonet").symlink_to(ROOT / "halonet")
    built = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    said = built.stdout + built.stderr
    assert built.returncode == 0, said
    assert "No issues found" in said
    assert "griffe" not in said
    reference = (tmp_path / "site" / "reference" / "index.html").read_text(encoding="utf-8")
    import halonet

    for name in halonet.__all__:
        assert f'id="halonet.{name}"' in reference, name


@pytest.mark.parametrize("page", [DOCS / "index.md", *TUTORIALS], ids=lambda page: page.stem)
def test_commands_are_understood(place, monkeypatch: pytest.MonkeyPatch, page: Path) -> None:
    trained = []
    for module in ("classification", "detect"):
        monkeypatch.setattr(f"halonet.cli.{module}.run_training", lambda *_: trained.append(1))
    lines = "".join(list_blocks(page.read_text(encoding="utf-8"), "")).splitlines()
    expected = 0
    for line in lines:
        words = shlex.split(line.partition(" && ")[2] or line, comments=True)
        if line.startswith("pip install"):
            assert line in README or line == "pip install '.[demo]'"
        if words[0] == "torchrun":
            assert line in README
        if words[0] == "halonet" and "train" in words[1:3]:
            cli.main(words[1:])
            expected += 1
        elif words[0] == "halonet":
            assert words[1] in cli.COMMANDS, line
    assert len(trained) == expected > 0 or page.stem == "tutorial_many_machines"


def test_tutorial_runs(capsys, place) -> None:
    ran = []
    for line in "".join(list_blocks(TUTORIAL, "")).splitlines():
        words = shlex.split(line, comments=True)
        # Training is the README's, and the page waits for visitors: see tests/demo.
        if words[0] == "halonet" and words[1] not in ("train", "demo"):
            cli.main(words[1:])
            ran.append(words[1])
    assert ran == ["explain", "predict", "export"]
    assert capsys.readouterr().err == ""
    assert list((place / "explanations").glob("*.png"))
    assert (place / "runs" / "finetune" / "last.onnx").is_file()


@pytest.mark.parametrize("page", [START, TUTORIAL], ids=["start", "tutorial"])
def test_python_runs(capsys, place, page: str) -> None:
    (block,) = list_blocks(page, "python")
    exec(block, {})
    said = capsys.readouterr().out
    assert re.search(r"(red|green|blue) \d", said), said


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, images: Path, tmp_path: Path) -> Path:
    """A folder with the photos that the notebooks name."""
    shutil.copytree(images, tmp_path / "photos")
    with Image.open(images / "red" / "0.png") as image:
        image.resize((64, 64)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_notebooks_run(shown: Path) -> None:
    names: dict = {}
    for notebook in ("first_run", "what_it_looked_at"):
        text = (ROOT / "docs" / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8")
        for cell in json.loads(text)["cells"]:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), names)
    assert names["result"].evaluation.accuracy >= 0
    assert (shown / "runs" / "first" / "report.html").is_file()
    assert names["explanation"].class_name in ("red", "green")
    assert names["view"].view.weights.sum().item() == pytest.approx(1)
