"""The documents as a site, and what they show: every command is understood, most of them run."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from halonet import cli
from halonet.cli.parser import CommandParser
from halonet.detection.detector import save_detector
from halonet.inference.video import VideoWriter
from tests.detection.pictures import small_detector

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
# From top to bottom; of the rest export.md and data.md have tests in tests/cli.
RUN = [
    *(README, DOCS / "index.md", DOCS / "explain.md"),
    *sorted(DOCS.glob("tutorial_*.md")),
    *sorted(DOCS.glob("how_to_*.md")),
]
# Of the commands these have tests of their own: they take long, or other data.
ELSEWHERE = {"train", "benchmark", "check", "models"}
LEFT = {
    "explain": ["explanations-4/tables.png", "explanations-5/receptive_field.png", "why.png"],
    "how_to_demo": ["space/app.py"],
    "how_to_predict": [
        *("pictures/photo.jpg.png", "predictions.json", "seen/walk.mp4.mp4"),
        *("found/predictions.json", "prediction.png", "objects.png"),
    ],
    "how_to_search": ["embeddings.npz", "similar.png", "runs/finetune/evaluation/report.html"],
    "how_to_sizes": ["larger.safetensors", "evaluation/report.html"],
    "tutorial_boxes": ["found/predictions.json", "runs/detector/last.onnx"],
    "tutorial_export": ["photos.onnx", "small.onnx", "page/index.html"],
    "tutorial_photos": ["explanations", "runs/finetune/last.onnx"],
}


def list_blocks(text: str) -> list[tuple[str, str]]:
    """The language, none for commands, and the content of each block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def list_commands(block: str) -> list[list[str]]:
    """The words after `halonet`, whatever variable or launcher stands before."""
    lines = block.replace("\\\n", " ").replace(" && ", "\n").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines]
    return [words[words.index("halonet") + 1 :] for words in commands if "halonet" in words]


@pytest.fixture
def place(whole_run, images, monkeypatch, tmp_path):
    """A folder with the runs and photos that the pages name."""
    for name in ("elpv", "finetune", "convolutions"):
        shutil.copytree(whole_run.folder, tmp_path / "runs" / name)
    (tmp_path / "runs" / "detector").mkdir()
    detector = small_detector()
    detector.class_names = ("bar", "square")
    save_detector(detector, tmp_path / "runs" / "detector" / "last.safetensors")
    shutil.copytree(images, tmp_path / "photos")
    shutil.copytree(images / "red", tmp_path / "new_photos")
    with Image.open(images / "red" / "0.png") as image:
        photo = image.resize((200, 160))
    photo.save(tmp_path / "cell.png")
    photo.save(tmp_path / "photo.jpg")
    writer = VideoWriter(tmp_path / "walk.mp4")
    for number in range(6):
        writer.write(photo, number / 10)
    writer.close()
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


class Understood(Exception):
    """Raised where a command's options were read, before it starts."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_are_understood(monkeypatch: pytest.MonkeyPatch, page: Path) -> None:
    parse = CommandParser.parse_words

    def only_parse(parser, words):
        parse(parser, words)
        raise Understood

    monkeypatch.setattr(CommandParser, "parse_words", only_parse)
    text = page.read_text(encoding="utf-8")
    for language, content in list_blocks(text):
        for words in list_commands(content) if not language else ():
            with pytest.raises(Understood):
                cli.main(words)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for named in re.findall(r"pip install '\.\[([\w,]+)\]'", text):
        assert set(named.split(",")) <= extras.keys()
    for script in re.findall(r"python (benchmarks/\w+\.py)", text):
        assert (ROOT / script).is_file()


@pytest.mark.filterwarnings("ignore:OpenCV:UserWarning")  # supervision's, which does without
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_page_runs(capsys, place, page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if page.stem == "explain":  # what follows are the commands of its figures
        text = text.partition("\n## ")[0]
    # The run's own class, the one head that its layers have, and no weights from the Hub.
    text = text.replace("roses", "red").replace("--head 2", "--head 1").replace("head=2", "head=1")
    text = text.replace("pretrained=True", "pretrained=False").replace("--top-k 3", "--top-k 2")
    names: dict = {}
    for language, content in list_blocks(text):
        if language == "python":
            exec(content, names)
        for words in list_commands(content) if not language else ():
            waits = words[0] == "demo" and "--space" not in words  # for visitors: see tests/demo
            other = words[0] in ELSEWHERE or words[:2] in (
                ["detect", "train"],
                ["detect", "evaluate"],
            )
            if not (waits or other or "runs/*" in words):
                cli.main(words)
    assert capsys.readouterr().err == ""
    for name in LEFT.get(page.stem, []):
        assert (place / name).exists(), name


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
