"""docs/explain.md: its commands and its Python, on a small run."""

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from halonet import cli
from halonet.inference.video import VideoWriter

PAGE = (Path(__file__).parents[2] / "docs" / "explain.md").read_text()
SHELL, PYTHON, *_ = re.findall(r"```(?:python)?\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line.partition("#")[0].split()[1:] for line in SHELL.splitlines()]


@pytest.fixture
def place(whole_run, images, monkeypatch, tmp_path):
    """A folder with all that the page names."""
    shutil.copytree(whole_run.folder, tmp_path / "runs" / "finetune")
    shutil.copytree(whole_run.folder, tmp_path / "runs" / "convolutions")
    shutil.copytree(images, tmp_path / "photos")
    with Image.open(images / "red" / "0.png") as image:
        photo = image.resize((200, 160))
    photo.save(tmp_path / "photo.jpg")
    writer = VideoWriter(tmp_path / "walk.mp4")
    for number in range(6):
        writer.write(photo, number / 10)
    writer.close()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fit(text):
    """The run's own class, and the one head that its layers have."""
    return text.replace("roses", "red").replace("--head 2", "--head 1").replace("head=2", "head=1")


def test_commands_run(capsys, place):
    assert len(COMMANDS) == 11
    for words in COMMANDS:
        if words[0] != "demo" or "--space" in words:  # else it waits for visitors, see tests/demo
            cli.main(fit(" ".join(words)).split())
    assert capsys.readouterr().err == ""
    for name in (
        "pictures/photo.jpg.png",
        "seen/walk.mp4.mp4",
        "explanations",
        "explanations-2",
        "explanations-3",
        "explanations-4/tables.png",
        "explanations-5/receptive_field.png",
        "embeddings.npz",
        "similar.png",
        "space/app.py",
    ):
        assert (place / name).exists()


def test_python_runs(capsys, place):
    exec(fit(PYTHON), {})
    assert "torch.Size([32, 32])" in capsys.readouterr().out
    assert (place / "prediction.png").is_file()
    assert (place / "why.png").is_file()
