"""halonet explain: the pictures and numbers that it leaves."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

import halonet
from halonet import cli
from halonet.data.image_files import find_images
from halonet.data.sources import load_data


@pytest.fixture
def photos(tmp_path):
    """Two real photos of solar cells, one in a folder."""
    folder = tmp_path / "photos"
    (folder / "inner").mkdir(parents=True)
    sources = load_data("elpv").validation.sources
    shutil.copy(sources[0], folder / "a.png")
    shutil.copy(sources[1], folder / "inner" / "a.png")
    return folder


def test_relevance_of_photos(capsys, whole_run, photos, tmp_path):
    output = tmp_path / "found"
    cli.main(["explain", str(whole_run.folder), str(photos), "--output", str(output), "--curves"])
    shown = capsys.readouterr()
    assert shown.err == ""
    assert len(shown.out.splitlines()) == 4
    entries = json.loads((output / "explanations.json").read_text())
    assert [Path(entry["image"]).name for entry in entries] == ["a.png", "a.png"]
    for entry, picture in zip(entries, ["a.png.png", "inner/a.png.png"], strict=True):
        assert entry["class"] in ("red", "green")
        assert 0.5 <= entry["probability"] <= 1
        assert entry["deletion"][0] == pytest.approx(entry["probability"], abs=1e-3)
        assert len(entry["relevance"]) == 32
        assert len(entry["relevance"][0]) == 32
        with Image.open(output / picture) as drawn:
            assert drawn.size[0] > 600
    # Nothing of it is taken for a photo later.
    assert find_images(output)[0] == []


def test_method_and_class(capsys, whole_run, photos, tmp_path):
    words = ["explain", str(whole_run.folder), str(photos / "a.png"), "--class", "red"]
    found = {}
    for method in ("gradcam", "rollout", "integrated_gradients", "occlusion"):
        output = tmp_path / method
        cli.main([*words, "--method", method, "--output", str(output)])
        (entry,) = json.loads((output / "explanations.json").read_text())
        assert (entry["class"], entry["method"]) == ("red", method)
        assert "deletion" not in entry
        found[method] = entry["relevance"]
    assert found["gradcam"] != found["rollout"]


def test_attention_of_a_place(capsys, monkeypatch, whole_run, photos, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = ["explain", str(whole_run.folder), "photos/a.png", "--at", "150,140", "--stage=3"]
    cli.main([*words, "--head", "1"])
    cli.main(words)
    assert "stage" in capsys.readouterr().out
    (entry,) = json.loads(Path("explanations", "explanations.json").read_text())
    assert (entry["stage"], entry["layer"], entry["head"], entry["at"]) == (3, 1, 1, [150, 140])
    assert sum(map(sum, entry["weights"])) == pytest.approx(1, abs=1e-4)
    left, top, right, bottom = entry["window"]
    assert left <= 16 < right  # the middle of 32 pixels
    assert top <= 16 < bottom
    assert Path("explanations-2", "a.png.png").is_file()


def test_tables_and_receptive_field(capsys, monkeypatch, whole_run, photos, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = ["explain", str(whole_run.folder), "photos"]
    cli.main([*words, "--tables"])
    numbers = json.loads(Path("explanations", "explanations.json").read_text())
    assert numbers["images"] == 2
    assert [(one["stage"], one["layer"]) for one in numbers["layers"]] == [(3, 1), (4, 1)]
    cli.main([*words, "--receptive-field", "--beside", str(whole_run.folder / "best.safetensors")])
    first, second = json.loads(Path("explanations-2", "explanations.json").read_text())
    assert second["model"].endswith("best.safetensors")
    assert len(first["side_of_50_percent"]) == 4
    for picture in ("explanations/tables.png", "explanations-2/receptive_field.png"):
        with Image.open(picture) as drawn:
            assert drawn.width > 200
    assert len(capsys.readouterr().out.splitlines()) == 11


@pytest.mark.parametrize(
    ("words", "status", "named"),
    [
        (["--class", "blue"], 1, "class must be one of green, red, got 'blue'"),
        (["--method", "magic"], 2, "magic"),
        (["--method=gradcam", "--stage", "5"], 1, "stage must be from 1 to 4, got 5"),
        (["--method", "rollout", "--stage", "3"], 1, "stage is for method gradcam"),
        (["--at", "here"], 2, "--at must be X,Y in pixels of the image, as 120,80, got 'here'"),
        (["--at", "1,1,1"], 2, "--at must be X,Y"),
        (["--at", "5000,1"], 1, "5000,1 is outside what the model sees of"),
        (["--at", "150,150", "--stage", "1"], 1, "no attention at stage 1"),
        (["--at", "150,150", "--head", "9"], 1, "head must be from 1 to 1"),
        (["--at", "150,150", "--class", "red"], 2, "--class goes without --at"),
        (["--head", "1"], 2, "--head goes with --at"),
        (["--tables", "--at", "1,1"], 2, "--at goes without --tables"),
        (["--receptive-field", "--curves"], 2, "--curves goes without --receptive-field"),
        (["--receptive-field", "--tables"], 2, "--receptive-field goes without --tables"),
        (["--beside", "run"], 2, "--beside goes with --receptive-field"),
        (["photos/none.png", "--tables"], 1, "no image at photos/none.png"),
    ],
)
def test_what_does_not_fit_leaves_nothing(
    fails, monkeypatch, whole_run, photos, tmp_path, words, status, named
):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert named in fails(["explain", whole_run.folder, "photos/a.png", *words], status)
    assert sorted(tmp_path.rglob("*")) == before


def test_broken_images_and_taken_folders(capsys, fails, whole_run, photos, tmp_path):
    (photos / "broken.jpg").write_bytes(b"no image")
    output = tmp_path / "found"
    with pytest.raises(SystemExit):
        cli.main(["explain", str(whole_run.folder), str(photos), "--output", str(output)])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "broken.jpg is not an image" in lines[0]
    assert "1 of 3 images can't be read" in lines[1]
    assert len(json.loads((output / "explanations.json").read_text())) == 2
    words = ["explain", whole_run.folder, photos, "--output", output]
    assert "isn't an empty folder" in fails(words)
    assert "no checkpoint" in fails(["explain", tmp_path / "none", photos / "a.png"])


def test_explanation_needs_classes(tmp_path, fails, photos):
    from tests.pictures import SMALL_MODEL

    model = halonet.create_model("halonet_tiny", num_classes=0, **SMALL_MODEL)
    halonet.save_model(model, tmp_path / "model.safetensors")
    words = ["explain", tmp_path / "model.safetensors", photos / "a.png"]
    assert "no classes to explain" in fails(words)
