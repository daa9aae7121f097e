"""halonet train, evaluate and predict: what they print and leave."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from halonet import cli
from halonet.classification.recipes import choose_config
from halonet.cli import classification


def elpv_folder(folder: Path) -> Path:
    """A few real photos of solar cells, in a folder for each class."""
    from halonet.data.sources import load_data

    data = load_data("elpv")
    for label, name in enumerate(data.class_names):
        (folder / name).mkdir(parents=True)
        paths = [
            path
            for path, own in zip(data.training.sources, data.training.labels, strict=True)
            if own == label
        ]
        for path in paths[:8]:
            shutil.copy(path, folder / name)
    return folder


def test_train_evaluate_predict_on_photos(capsys, tmp_path):
    from tests.pictures import SMALL_MODEL

    cells, run = elpv_folder(tmp_path / "cells"), tmp_path / "run"
    words = ["--data", f"folder:{cells}", "--output", run, "--epochs", 1, "--batch-size=4"]
    words += ["--image-size", 32, "--validation_share", 0.25]
    words += ["--model-options", json.dumps(SMALL_MODEL)]
    cli.main(["train", *map(str, words)])
    shown = capsys.readouterr()
    assert "epoch 1/1" in shown.out
    assert "on 4 images" in shown.out
    assert "majority-class baseline 50.0 %" in shown.out
    assert shown.err == ""

    cli.main(["evaluate", str(run)])
    shown = capsys.readouterr()
    summary = json.loads((run / "summary.json").read_text())
    again = json.loads((run / "evaluation" / "summary.json").read_text())
    assert again["accuracy"] == summary["accuracy"]
    assert f"accuracy {100 * summary['accuracy']:.1f} % on 4 images" in shown.out

    cli.main(["predict", str(run), str(cells / "intact")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["image", "predictions"]
    assert len(lines) == 9


@pytest.fixture
def photos(images, tmp_path):
    """Two images that can be read, and a broken one between them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "c.png"):
        shutil.copy(images / "red" / "0.png", folder / name)
    (folder / "b.png").write_bytes(b"broken")
    return folder


def test_broken_image_among_good_ones(capsys, whole_run, photos):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["predict", str(whole_run.folder), str(photos), "--format=json", "--top-k=1"])
    shown = capsys.readouterr()
    assert stopped.value.code == 1
    assert shown.err.splitlines() == [
        f"halonet: {photos / 'b.png'} is not an image",
        "halonet: 1 of 3 images can't be read",
    ]
    entries = json.loads(shown.out)
    assert [Path(entry["image"]).name for entry in entries] == ["a.png", "c.png"]
    assert all(len(entry["predictions"]) == 1 for entry in entries)


def test_nothing_that_can_be_read_has_no_table(capsys, whole_run, photos):
    with pytest.raises(SystemExit):
        cli.main(["predict", str(whole_run.folder), str(photos / "b.png"), "--top-k", "5"])
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[0] == "halonet: --top-k 5: the model has 2 classes"


def test_predictions_to_a_file(fails, capsys, whole_run, photos, tmp_path):
    output = tmp_path / "predictions.json"
    words = ["predict", whole_run.folder, photos / "a.png", "--format", "json", "--output", output]
    cli.main([str(word) for word in words])
    assert capsys.readouterr().out == ""
    predictions = json.loads(output.read_text())[0]["predictions"]
    assert {one["class"] for one in predictions} == {"green", "red"}
    assert sum(one["probability"] for one in predictions) == pytest.approx(1, abs=1e-5)
    words[-1] = tmp_path / "absent" / "predictions.json"
    assert "no folder at" in fails(words)


def test_folder_without_images(fails, whole_run, tmp_path):
    assert "holds no images" in fails(["predict", whole_run.folder, tmp_path])


def test_evaluate_refuses_other_classes(fails, whole_run, tmp_path):
    cells = elpv_folder(tmp_path / "cells")
    words = ["evaluate", whole_run.folder, "--data", f"folder:{cells}"]
    assert "the model's classes ['green', 'red'] aren't those of" in fails(words)


def test_checkpoint_outside_a_run_needs_data(fails, capsys, whole_run, images, tmp_path):
    weights = shutil.copy(whole_run.folder / "last.safetensors", tmp_path)
    assert "say which --data" in fails(["evaluate", weights])
    cli.main(["evaluate", str(weights), "--data", f"folder:{images}"])
    assert "open" in capsys.readouterr().out
    assert (tmp_path / "evaluation" / "confusion_matrix.png").is_file()


def test_damaged_metadata_is_not_the_users_problem(capsys, whole_run, tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "odd.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    cli.main(["predict", str(whole_run.folder), str(tmp_path / "odd.jpg")])
    shown = capsys.readouterr()
    assert "odd.jpg" in shown.out
    assert shown.err == ""


@pytest.mark.parametrize(
    ("words", "recipe"),
    [
        ([], "elpv"),
        (["--data", "folder:a"], "finetune"),
        (["--data", "folder:a", "--pretrained", "false"], "small"),
        (["--data", "folder:a", "--pretrained=no"], "small"),
        (["--data", "folder:a", "--model", "halonet_h1"], "small"),
        (["--data", "folder:a", "--model-options", '{"layers": [1, 2, 3, 2]}'], "small"),
        (["--data", "folder:a", "--model-options", '{"block_size": 6}'], "finetune"),
        (["--data", "folder:a", "--model-options={dropout: 0.1}"], "finetune"),
        (["--data", "folder:a", "--model_options.halo-size=1"], "finetune"),
        (["--data", "folder:a", "--model-options", "{"], "small"),  # the whole parser says so
        (["--data", "folder:a", "--model-options.layers", "[1,2,3,2]"], "small"),
        (["--data", "folder:a", "--model", "halonet50ts", "--pretrained"], "finetune"),
        (["--data", "folder:a", "--model", "halonet_h1", "--init", "a"], "finetune"),
        (["--data=folder:a", "--recipe=elpv"], "elpv"),
        (["--recipe", "small"], "small"),
        (["--recipe", "elpv", "--recipe=small"], "small"),
        (["--output", "a --recipe small --data folder:a"], "elpv"),
        (["--output=--recipe=small"], "elpv"),
        (["--rec", "small"], "small"),  # an abbreviation, as the whole parser takes it
        (["--recipe"], "elpv"),  # the whole parser says what is missing
    ],
)
def test_recipe_follows_the_data(words, recipe):
    assert choose_config(classification.find_decisive(words)).recipe == recipe


@pytest.mark.parametrize("recipe", ["imagenet_h7_conv12", "finetune_h4_base128_512", "sasa_mask"])
def test_parser_takes_all_of_a_recipe(recipe):
    from halonet.classification.config import make_config
    from halonet.classification.recipes import get_recipe

    fields = classification.make_train_parser(recipe).parse_words(["--epochs", "2"]).as_dict()
    for name in ("output", "resume", "allow_changed_data"):
        del fields[name]
    assert make_config(fields) == dataclasses.replace(get_recipe(recipe), epochs=2)


def test_recipe_of_the_paper_trains(capsys, images, tmp_path):
    from tests.pictures import SMALL_MODEL

    words = [
        "train",
        "--recipe=imagenet_h4",
        f"--data=folder:{images}",
        f"--output={tmp_path / 'run'}",
    ]
    words += [
        "--epochs=1",
        "--batch_size=4",
        "--image_size=32",
        "--workers=0",
        "--model=halonet_tiny",
    ]
    words += [f"--model_options={json.dumps(SMALL_MODEL | {'stochastic_depth': 0.1})}"]
    cli.main(words)
    assert "epoch 1/1" in capsys.readouterr().out
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["recipe"], config["augmentation"]["randaugment"]) == ("imagenet_h4", 17)
