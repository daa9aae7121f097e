"""The command line: its options, what it prints, and one clear line for each mistake."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import halonet
from halonet import cli
from halonet.cli import classification, compare, detect, models, recipes, shards

TRAIN_OPTIONS = [
    "accumulation_steps",
    "augmentation",
    "augmentation.color_jitter",
    "augmentation.crop_share",
    "augmentation.horizontal_flip",
    "augmentation.quarter_turns",
    "augmentation.randaugment",
    "augmentation.randaugment_layers",
    "augmentation.vertical_flip",
    "averaging_decay",
    "backend",
    "batch_norm",
    "batch_size",
    "broken_share",
    "central_crop_share",
    "checkpoint_steps",
    "clip_norm",
    "compile",
    "cutmix",
    "data",
    "data_root",
    "decay_everything",
    "decay_shares",
    "epochs",
    "evaluate_epochs",
    "final_learning_rate_share",
    "help",
    "image_size",
    "in_channels",
    "init",
    "label_smoothing",
    "learning_rate",
    "mixed_precision",
    "mixup",
    "model",
    "model_options",
    "optimizer",
    "output",
    "recipe",
    "resume",
    "schedule",
    "seed",
    "shard_weights",
    "tensorboard",
    "validation_data",
    "validation_share",
    "warmup_share",
    "warmup_start_share",
    "weight_decay",
    "workers",
]


@pytest.mark.parametrize(
    ("parser", "options"),
    [
        (classification.make_train_parser("elpv"), TRAIN_OPTIONS),
        (
            classification.make_evaluate_parser(),
            ["data", "data_root", "help", "output", "validation_data", "validation_share"],
        ),
        (classification.make_predict_parser(), ["format", "help", "output", "top_k"]),
        (
            models.make_models_parser(),
            ["format", "help", "image_size", "max_flops", "max_image_size", "max_parameters"],
        ),
        (
            shards.make_shards_parser(),
            ["data_root", "help", "shard_size", "skip_broken", "validation_share"],
        ),
        (recipes.make_recipes_parser(), ["format", "help"]),
        (compare.make_compare_parser(), ["format", "help", "output", "score"]),
        (detect.make_evaluate_parser(), ["data", "help", "max_detections", "output"]),
        (detect.make_predict_parser(), ["help", "output", "score_threshold"]),
    ],
    ids=[
        *("train", "evaluate", "predict", "models", "shards", "recipes", "compare"),
        *("detect evaluate", "detect predict"),
    ],
)
def test_options_are_frozen(parser, options):
    found = {
        option.removeprefix("--")
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    }
    assert sorted(found) == sorted(options)


def test_overview_names_every_command(capsys):
    cli.main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in cli.COMMANDS)


@pytest.mark.parametrize(
    "shown",
    [
        "classification.make_train_parser('elpv').format_help()",
        "detect.make_train_parser('coco').format_help()",
        "recipes.recipes_command([])",
    ],
    ids=["train --help", "detect train --help", "recipes"],
)
def test_what_only_tells_needs_no_training_library(shown):
    code = (
        f"import sys; from halonet.cli import classification, detect, recipes; {shown};"
        "heavy = {'torchvision', 'timm', 'accelerate', 'matplotlib', 'torchmetrics', 'PIL'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert found.stdout.splitlines()[-1] == "[]"


def fails(capsys, words, status=1):
    """Run a command that must fail; its one line on standard error."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(word) for word in words])
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == status, lines
    assert len(lines) == 1
    assert lines[0].startswith("halonet: ")
    return lines[0]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["trian"], 2, "'trian' is not a command; there are train, evaluate, predict,"),
        (["train", "--epoch-count", "3"], 2, "epoch_count"),
        (["train", "--epochs", "many"], 2, "epochs"),
        (["train", "--epochs", "0"], 1, "epochs must be positive, got 0"),
        (
            ["train", "--recipe", "smal"],
            1,
            "`halonet recipes` lists, got 'smal'; near it are small",
        ),
        (["train", "--recipe", "coco"], 1, "one of the command's, which `halonet recipes` lists"),
        (["train", "--data", "mnist"], 1, "got 'mnist'"),
        (["train", "--data", "folder:absent"], 1, "no folder at absent"),
        (["train", "--model", "halonet_h9"], 1, "'halonet_h9'"),
        (["train", "--optimizer", "guess"], 1, "guess"),
        (["train", "--init", "absent.safetensors"], 1, "no checkpoint at absent.safetensors"),
        (["train", "--resume", "absent"], 1, "no run at absent"),
        (["train", "--resume", "absent", "--epochs", "3"], 2, "allows no other option"),
        (["evaluate", "absent"], 1, "no checkpoint at absent"),
        (["predict", "absent.safetensors", "a.png"], 1, "no checkpoint at absent.safetensors"),
        (["predict", "absent", "a.png", "--top-k", "0"], 2, "--top_k must be 1 or more"),
        (["predict", "absent", "a.png", "--format", "xml"], 2, "table or json"),
        (["train", "--recipe", "imagenet_h0"], 1, "no folder at imagenet"),
        (["train", "--recipe", "pretrain_h4_base128"], 1, "imagenet21k"),
        (["recipes", "imagenet_h"], 1, "got 'imagenet_h'; near it are imagenet_h"),
        (["recipes", "--format", "xml"], 2, "table or json"),
        (["compare"], 2, "runs"),
        (["compare", "absent"], 1, "no run at absent: it has no config.json"),
        (["compare", "absent", "--format", "xml"], 2, "table or json"),
        (["compare", "absent", "--output", "absent/curves.png"], 1, "no folder at absent"),
        (["models", "--max_parameters", "few"], 2, "a number such as 10M"),
    ],
)
def test_mistake_is_one_line(capsys, monkeypatch, tmp_path, words, status, said):
    monkeypatch.chdir(tmp_path)
    if (
        words[0] == "train"
        and "--data" not in words
        and said not in ("no folder at imagenet", "imagenet21k")
    ):
        from tests.pictures import draw_folder

        if "--resume" not in words:
            words = [*words, "--data", f"folder:{draw_folder(tmp_path / 'images', images=2)}"]
    assert said in fails(capsys, words, status)
    assert not (tmp_path / "runs").exists()


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
    assert "of 4 images" in shown.out
    assert "always answering the most frequent class: 50.0 %" in shown.out
    assert shown.err == ""

    cli.main(["evaluate", str(run)])
    shown = capsys.readouterr()
    summary = json.loads((run / "summary.json").read_text())
    again = json.loads((run / "evaluation" / "summary.json").read_text())
    assert again["accuracy"] == summary["accuracy"]
    assert f"accuracy {100 * summary['accuracy']:.1f} % of 4 images" in shown.out

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
    answers = json.loads(shown.out)
    assert [Path(answer["image"]).name for answer in answers] == ["a.png", "c.png"]
    assert all(len(answer["predictions"]) == 1 for answer in answers)


def test_predictions_to_a_file(capsys, whole_run, photos, tmp_path):
    output = tmp_path / "answers.json"
    words = ["predict", whole_run.folder, photos / "a.png", "--format", "json", "--output", output]
    cli.main([str(word) for word in words])
    assert capsys.readouterr().out == ""
    predictions = json.loads(output.read_text())[0]["predictions"]
    assert {one["class"] for one in predictions} == {"green", "red"}
    assert sum(one["probability"] for one in predictions) == pytest.approx(1, abs=1e-5)
    words[-1] = tmp_path / "absent" / "answers.json"
    assert "no folder at" in fails(capsys, words)


def test_folder_without_images(capsys, whole_run, tmp_path):
    assert "holds no images" in fails(capsys, ["predict", whole_run.folder, tmp_path])


def test_evaluate_refuses_other_classes(capsys, whole_run, tmp_path):
    cells = elpv_folder(tmp_path / "cells")
    words = ["evaluate", whole_run.folder, "--data", f"folder:{cells}"]
    assert "the model's classes ['green', 'red'] aren't those of" in fails(capsys, words)


def test_checkpoint_outside_a_run_needs_data(capsys, whole_run, images, tmp_path):
    weights = shutil.copy(whole_run.folder / "last.safetensors", tmp_path)
    assert "say which --data" in fails(capsys, ["evaluate", weights], 2)
    cli.main(["evaluate", str(weights), "--data", f"folder:{images}"])
    assert "open" in capsys.readouterr().out
    assert (tmp_path / "evaluation" / "confusion_matrix.png").is_file()


def test_models_filter(capsys):
    cli.main(["models", "--format", "json", "--max-parameters", "9M", "--max-image-size", "256"])
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert {"halonet_h0", "halonet_h1", "halonet_tiny"} == found.keys()
    assert found["halonet_h0"]["parameters"] == 5_485_352
    cli.main(["models", "--max_flops=1"])
    assert "halonet" not in capsys.readouterr().out


def test_recipes(capsys):
    cli.main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].split() == ["halonet", "train", "--recipe", "expected"]
    place = lines.index("halonet detect train --recipe  expected")
    assert ["imagenet_h7", "84.9", "%"] in [line.split() for line in lines[:place]]
    assert "  H7 on ImageNet (table 3)" in lines[:place]
    assert "small_detector" in {line.split()[0] for line in lines[place:] if line}
    cli.main(["recipes", "--format", "json"])
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert listed["sasa_mask"]["data"] == "folder:imagenet"
    assert listed["coco"]["expected"] == "box AP 45.2, mask AP 40.3"


def test_one_recipe(capsys):
    cli.main(["recipes", "finetune_h4_base128_384"])
    lines = capsys.readouterr().out.splitlines()
    command = "halonet train --recipe finetune_h4_base128_384 --data folder:imagenet"
    assert ["command", *command.split()] in [line.split() for line in lines]
    assert ["model_options.block_size", "12"] in [line.split() for line in lines]
    assert not any("seed" in line for line in lines)
    cli.main(["recipes", "imagenet_h7", "--format=json"])
    described = json.loads(capsys.readouterr().out)
    assert described["fields"]["augmentation.randaugment"] == 31
    assert "dropout 0.5" in described["ours"]
    cli.main(["recipes", "small_detector"])
    shown = capsys.readouterr().out
    assert ["detector.image_size", "256"] in [line.split() for line in shown.splitlines()]
    assert "-m halonet detect train" in shown


def test_recipes_of_the_tasks_have_different_names():
    from halonet.classification.recipes import RECIPES
    from halonet.detection.recipes import RECIPES as DETECTION_RECIPES

    assert not RECIPES.keys() & DETECTION_RECIPES.keys()


@pytest.mark.parametrize("recipe", ["imagenet_h7_conv12", "finetune_h4_base128_512", "sasa_mask"])
def test_parser_takes_all_of_a_recipe(recipe):
    from halonet.classification.config import make_config
    from halonet.classification.recipes import get_recipe

    fields = classification.make_train_parser(recipe).parse_words(["--epochs", "2"]).as_dict()
    del fields["output"], fields["resume"]
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


def test_compare(capsys, whole_run, tmp_path):
    begun = tmp_path / "begun"
    begun.mkdir()
    config = json.loads((whole_run.folder / "config.json").read_text())
    (begun / "config.json").write_text(json.dumps(config | {"seed": 3}))
    runs = [str(whole_run.folder), str(begun)]
    cli.main(["compare", *runs, "--output", str(tmp_path / "curves.png")])
    lines = capsys.readouterr().out.splitlines()
    assert "best accuracy" in lines[0]
    assert "2/2" in lines[1].split()
    assert lines[2].endswith("seed 3")
    assert lines[3:] == [f"{begun} has no finished epoch yet", f"open {tmp_path / 'curves.png'}"]
    cli.main(["compare", *runs, "--format", "json"])
    found = json.loads(capsys.readouterr().out)
    assert [outcome["finished"] for outcome in found] == [True, False]
    assert found[1]["differences"] == {"seed": 3}
    assert "got 'box_ap'" in fails(capsys, ["compare", *runs, "--score", "box_ap"])


@pytest.mark.parametrize(
    ("words", "recipe"),
    [
        ([], "elpv"),
        (["--data", "folder:a"], "small"),
        (["--data=folder:a", "--recipe=elpv"], "elpv"),
        (["--recipe", "small"], "small"),
    ],
)
def test_recipe_follows_the_data(words, recipe):
    assert classification._recipe_name(words) == recipe


def test_reader_that_leaves_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    shown = subprocess.run(
        [sys.executable, "-m", "halonet", "models"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    os.close(writing)
    assert shown.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_full_disk_is_one_line(unbuffered):
    with open("/dev/full", "w") as full:
        shown = subprocess.run(
            [sys.executable, "-m", "halonet", "models"],
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    assert shown.returncode == 1
    assert len(shown.stderr.splitlines()) == 1, shown.stderr
    assert "No space left on device" in shown.stderr


def test_damaged_metadata_is_not_the_users_problem(capsys, whole_run, tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "odd.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    cli.main(["predict", str(whole_run.folder), str(tmp_path / "odd.jpg")])
    shown = capsys.readouterr()
    assert "odd.jpg" in shown.out
    assert shown.err == ""


def test_shards_are_written_and_trained_on(images, tmp_path, capsys):
    from tests.pictures import make_words, small_config

    cli.main(["shards", f"folder:{images}", str(tmp_path / "shards"), "--validation-share", "0.25"])
    assert "24 images in 2 shards" in capsys.readouterr().out
    config = small_config(images, data=f"shards:{tmp_path / 'shards'}", epochs=1)
    cli.main(["train", *make_words(config, tmp_path / "run")])
    assert "held-out accuracy" in capsys.readouterr().out
    cli.main(["evaluate", str(tmp_path / "run")])
    own = capsys.readouterr().out
    tars = str(tmp_path / "shards" / "{}-000000.tar")
    given = ["--data", f"shards:{tars.format('train')}"]
    given += ["--validation-data", f"shards:{tars.format('val')}"]
    model = halonet.load_model(tmp_path / "run" / "last.safetensors")
    model.class_names = None  # tar files alone don't name the classes
    halonet.save_model(model, tmp_path / "model.safetensors")
    cli.main(["evaluate", str(tmp_path / "model.safetensors"), *given])
    assert capsys.readouterr().out.splitlines()[:2] == own.splitlines()[:2]
    with pytest.raises(SystemExit):
        cli.main(["shards", f"folder:{images}", str(tmp_path / "shards")])
    assert "exists already and isn't an empty folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["shards", f"folder:{images}", str(tmp_path / "other"), "--shard-size", "many"])
    assert "--shard_size: expected a number such as 10M" in capsys.readouterr().err
