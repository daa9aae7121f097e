"""What people type, and the files that they give: as they would in other projects."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import halonet
from halonet import cli
from halonet.cli import classification, detect, training
from halonet.cli.parser import CommandParser
from halonet.data.sources import is_same_data, load_data, split_name
from halonet.detection.detector import save_detector
from halonet.integrations.hub import HubHaloNet
from tests.detection.pictures import small_detector
from tests.pictures import draw_folder


def parse(*words: str) -> dict:
    return training.parse_training(classification.make_train_parser("small"), words)


def test_short_names_and_bare_flags():
    fields = parse("--lr", "0.1", "--img-size=64", "--opt", "sgd", "--compile", "--epochs", "2")
    assert (fields["learning_rate"], fields["image_size"]) == (0.1, 64)
    assert (fields["optimizer"], fields["compile"], fields["epochs"]) == ("sgd", True, 2)
    assert parse("--smoothing=0.2", "--clip-grad", "3")["clip_norm"] == 3
    assert parse("--augmentation.horizontal-flip", "False")["augmentation"]["horizontal_flip"] is (
        False
    )
    assert parse("--shard-weights", "--compile=false")["compile"] is False
    assert parse("--compile", "no")["compile"] is False


def test_bare_flag_before_a_place():
    options = detect.make_predict_parser().parse_words(["--data-set", "run", "a.png", "--data-set"])
    assert options.data_set is True
    assert (options.checkpoint, options.images) == ("run", ["a.png"])


def test_home_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert parse("--output=~/run")["output"] == "/home/me/run"
    assert parse("--init", "~/a")["init"] == "/home/me/a"
    options = classification.make_predict_parser().parse_words(["~/run", "~/a.png", "b~.png"])
    assert options.checkpoint == "/home/me/run"
    assert options.images == ["/home/me/a.png", "b~.png"]


@pytest.mark.parametrize(
    ("words", "status", "named"),
    [
        (["train", "--data", "folder:"], 1, "'folder:'"),
        (["train", "--data", "csv: "], 1, "'csv: '"),
        (["train", "--data", "shards:"], 1, "'shards:'"),
        (["train", "--data", "shards:a.tar", "--validation-data", "shards:"], 1, "'shards:'"),
        (["train", "--data", ""], 2, "--data is empty"),
        (["train", "--output="], 2, "--output is empty"),
        (["evaluate", ""], 2, "an argument is empty"),
        (["evaluate", "run", "--data="], 2, "--data is empty"),
        (["predict", "run", ""], 2, "an argument is empty"),
        (["detect", "train", "--data", "coco:"], 1, "'coco:'"),
        (["detect", "predict", "run", ""], 2, "an argument is empty"),
        (["shards", "folder:", "shards"], 1, "'folder:'"),
        (["compare", ""], 2, "an argument is empty"),
    ],
)
def test_empty_values_are_refused(fails, monkeypatch, tmp_path, words, status, named):
    draw_folder(tmp_path, images=2)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert named in fails(words, status)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("make_parser", [
    lambda: classification.make_train_parser("small"),
    classification.make_evaluate_parser,
    classification.make_predict_parser,
    lambda: detect.make_train_parser("small_detector"),
    detect.make_predict_parser,
])  # fmt: skip
def test_help_has_hyphens(make_parser):
    parser: CommandParser = make_parser()
    options = [word for word in parser.format_help().split() if word.startswith(("--", "[--"))]
    assert len(options) > 3
    assert not [word for word in options if "_" in word.partition("=")[0]]


def test_a_path_alone_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw_folder(Path("photos"), images=4)
    Path("labels.csv").write_text("path,label\n")
    named, alone = (load_data(name) for name in ("folder:photos", "photos"))
    assert alone.class_names == named.class_names
    assert alone.training.sources == named.training.sources
    assert is_same_data("photos", "folder:photos")
    assert split_name("labels.csv") == ("csv", "labels.csv")
    draw_folder(Path("elpv"), images=4)
    assert split_name("elpv") == ("elpv", "")


def test_timm_reads_the_preprocessing():
    from timm.data import resolve_model_data_config

    model = halonet.create_model("halonet_h0", num_classes=3)
    config = resolve_model_data_config(model)
    assert config["input_size"] == (3, 256, 256)
    assert (config["crop_pct"], config["interpolation"]) == (0.95, "bicubic")
    assert config["mean"] == model.preprocessing.mean
    model.preprocessing = dataclasses.replace(model.preprocessing, image_size=64, crop_share=1.0)
    config = resolve_model_data_config(model)
    assert (config["input_size"], config["crop_pct"]) == ((3, 64, 64), 1.0)


def test_hub_folder_predicts(tmp_path, images, capsys):
    model = halonet.create_model("halonet_tiny", num_classes=2)
    HubHaloNet.from_model(model).save_pretrained(tmp_path / "hub")
    cli.main(["predict", str(tmp_path / "hub"), str(images), "--format", "json"])
    assert len(json.loads(capsys.readouterr().out)) == len([*images.rglob("*.png")])


def test_checkpoint_of_the_other_task_is_named(fails, tmp_path, images):
    model = small_detector()
    model.class_names, model.category_ids = ("bar", "square"), (3, 7)
    save_detector(model, tmp_path / "detector.safetensors")
    assert "but a detector, for halonet detect predict" in fails(
        ["predict", tmp_path / "detector.safetensors", images]
    )
    halonet.save_model(halonet.create_model("halonet_tiny"), tmp_path / "classifier.safetensors")
    assert "but a classifier, for halonet predict" in fails(
        ["detect", "predict", tmp_path / "classifier.safetensors", images]
    )


@pytest.mark.parametrize("form", ["json", "table"])
@pytest.mark.parametrize("to_file", [False, True])
def test_predictions_of_a_stopped_command_are_kept(
    monkeypatch, capsys, tmp_path, images, whole_run, form, to_file
):
    def stop(model, paths, **options):
        yield next(iter(paths)), torch.tensor([0.25, 0.75])
        raise KeyboardInterrupt

    monkeypatch.setattr("halonet.classification.predict.predict", stop)
    output = tmp_path / "predictions"
    words = ["predict", str(whole_run.folder), str(images), "--format", form]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words, "--output", str(output)] if to_file else words)
    assert stopped.value.code == 130
    printed = capsys.readouterr().out
    said = output.read_text() if to_file else printed
    if form == "json":
        assert json.loads(said)[0]["predictions"][0]["probability"] == 0.75
    else:
        assert len(said.splitlines()) == 2
        assert "75.0 %" in said


def test_a_command_that_fails_at_once_leaves_no_output(
    fails, monkeypatch, tmp_path, images, whole_run
):
    def stop(model, paths, **options):
        raise ValueError("too early")
        yield

    monkeypatch.setattr("halonet.classification.predict.predict", stop)
    output = tmp_path / "predictions.json"
    words = ["predict", whole_run.folder, images, "--format", "json", "--output", output]
    assert "too early" in fails(words)
    assert not output.exists()
