"""The command line as a whole: its options, and one clear line for each mistake."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from halonet import cli
from halonet.cli import check, classification, compare, detect, models, recipes, shards

TRAIN_OPTIONS = [
    "accumulation_steps",
    "allow_changed_data",
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
    "class_weights",
    "classifier_rate",
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
    "focal_loss",
    "fold",
    "fold_seed",
    "freeze",
    "group",
    "help",
    "image_size",
    "in_channels",
    "init",
    "pretrained",
    "label_smoothing",
    "layer_decay",
    "learning_rate",
    "log_with",
    "mixed_precision",
    "mixup",
    "model",
    "model_options",
    "optimizer",
    "output",
    "patience",
    "recipe",
    "resume",
    "schedule",
    "seed",
    "shard_weights",
    "task",
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
            [
                "data",
                "data_root",
                "device",
                "group",
                "help",
                "mirror",
                "neighbours",
                "output",
                "split",
                "validation_data",
                "validation_share",
            ],
        ),
        (
            classification.make_predict_parser(),
            [
                *("device", "every", "format", "help", "mirror", "output", "save_pictures"),
                *("threshold", "top_k"),
            ],
        ),
        (
            models.make_models_parser(),
            ["format", "help", "image_size", "max_flops", "max_image_size", "max_parameters"],
        ),
        (
            shards.make_shards_parser(),
            ["data_root", "help", "shard_size", "skip_broken", "validation_share"],
        ),
        (recipes.make_recipes_parser(), ["format", "help"]),
        (check.make_check_parser(), ["device", "help", "json", "thorough"]),
        (compare.make_compare_parser(), ["format", "help", "output", "score"]),
        (
            detect.make_evaluate_parser(),
            ["data", "device", "help", "masks", "max_detections", "output", "split"],
        ),
        (
            detect.make_predict_parser(),
            ["data_set", "device", "every", "help", "output", "score_threshold"],
        ),
    ],
    ids=[
        *("train", "evaluate", "predict", "models", "shards", "recipes", "check", "compare"),
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


def test_what_only_tells_needs_no_training_library():
    code = """
import sys
from halonet.cli import classification, detect, recipes

heavy = {"torchvision", "timm", "accelerate", "matplotlib", "sklearn", "PIL"}
for name, show in {
    "train --help": classification.make_train_parser("elpv").format_help,
    "detect train --help": detect.make_train_parser("coco").format_help,
    "recipes": lambda: recipes.recipes_command([]),
}.items():
    show()
    print(name, sorted(heavy & set(sys.modules)))
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert [line for line in found.stdout.splitlines() if line.endswith("]")] == [
        "train --help []",
        "detect train --help []",
        "recipes []",
    ]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["trian"], 2, "'trian' is not a command; there are train, evaluate, predict,"),
        (["train", "--epoch-count", "3"], 2, "--epoch-count"),
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
        (
            ["train", "--optimizer", "nadamv", "--data", "folder:absent"],
            1,
            "optimizer must be one of timm's",
        ),
        (["train", "--model", "halonet_h9", "--data", "folder:absent"], 1, "model must be one of"),
        (["train", "--backend", "guess", "--data", "folder:absent"], 1, "backend must be one of"),
        (
            ["train", "--pretrained", "weights.safetensors", "--data", "folder:absent"],
            1,
            "no checkpoint at weights.safetensors",
        ),
        (
            ["train", "--model-options", '{"heads": [1, 2]}', "--data", "folder:absent"],
            1,
            "heads",
        ),
        (
            ["detect", "train", "--data", "coco:.", "--backend", "guess"],
            1,
            "backend must be one of",
        ),
        (["train", "--image-size", "33.5"], 2, "--image-size must be a whole number, got 33.5"),
        (
            ["train", "--augmentation.crop-share", "0.9,0.1"],
            2,
            "--augmentation.crop-share must be a list, as [0.5,1.0], got 0.9,0.1",
        ),
        (
            ["evaluate", "absent", "--split", "dev"],
            2,
            "--split must be one of 'train', 'val', 'test', 'all', got dev",
        ),
        (["train", "--init", "absent.safetensors"], 1, "no checkpoint at absent.safetensors"),
        (["train", "--resume", "absent"], 1, "no run at absent"),
        (["train", "--resume", "absent", "--epochs", "3"], 2, "allows no other option than"),
        (["evaluate", "absent"], 1, "no checkpoint at absent"),
        (["predict", "absent.safetensors", "a.png"], 1, "no checkpoint at absent.safetensors"),
        (["predict", "absent", "a.png", "--top-k", "0"], 2, "--top-k must be 1 or more"),
        (["predict", "absent", "a.png", "--format", "xml"], 2, "'table', 'json'"),
        (["evaluate", "absent", "--device", "gpu"], 1, "device must be one of auto, cpu"),
        (["predict", "absent", "a.png", "--device", "cuda:99"], 1, "got 'cuda:99'"),
        (["detect", "evaluate", "absent", "--device", "gpu"], 1, "got 'gpu'"),
        (["detect", "predict", "absent", "a.png", "--device", "gpu"], 1, "got 'gpu'"),
        (["check", "--device", "gpu"], 1, "got 'gpu'"),
        (["train", "--schedule", "linear"], 2, "'cosine', 'steps'"),
        (["train", "--log-with", "paper"], 2, "'tensorboard'"),
        (["train", "--recipe", "imagenet_h0"], 1, "no folder at imagenet"),
        (["train", "--recipe", "pretrain_h4_base128"], 1, "imagenet21k"),
        (["recipes", "imagenet_h"], 1, "got 'imagenet_h'; near it are imagenet_h"),
        (["recipes", "--format", "xml"], 2, "'table', 'json'"),
        (["compare"], 2, "runs"),
        (["compare", "absent"], 1, "no run at absent: it has no config.json"),
        (["compare", "absent", "--format", "xml"], 2, "'table', 'json'"),
        (["compare", "absent", "--output", "absent/curves.png"], 1, "no folder at absent"),
        (
            ["models", "--max_parameters", "few"],
            2,
            "--max-parameters: expected a number such as 10M",
        ),
    ],
)
def test_mistake_is_one_line(fails, monkeypatch, tmp_path, words, status, said):
    monkeypatch.chdir(tmp_path)
    if (
        words[0] == "train"
        and "--data" not in words
        and said not in ("no folder at imagenet", "imagenet21k")
    ):
        from tests.pictures import draw_folder

        if "--resume" not in words:
            words = [*words, "--data", f"folder:{draw_folder(tmp_path / 'images', images=2)}"]
    assert said in fails(words, status)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("words", [["explain", "a.png"], ["export"], ["benchmark"]])
def test_exported_file_is_no_checkpoint(fails, tmp_path, words):
    path = tmp_path / "a.onnx"
    path.write_bytes(bytes(100))
    said = fails([words[0], path, *words[1:]])
    assert f"{path} is an exported file, where a checkpoint is needed" in said


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
