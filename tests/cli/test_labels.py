"""Labels of every kind on the command line: CSV files, folds, groups, rare classes."""

import csv
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from halonet import cli
from halonet.classification.config import make_config
from halonet.classification.training import Classification, resume, train
from halonet.models.pretrained import load_model, save_model
from tests.pictures import SMALL_MODEL, draw_folder

SMALL = [
    *("--epochs=1", "--batch-size=4", "--image-size=32", "--log-with=none"),
    f"--model-options={json.dumps(SMALL_MODEL)}",
]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Images of two colours in a CSV file, nine red ones of three patients and three green ones."""
    folder = draw_folder(tmp_path_factory.mktemp("labelled") / "images").parent
    with open(folder / "labels.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "patient", "red", "green", "tall"])
        for color in ("red", "green"):
            for index in range(9 if color == "red" else 3):
                flags = [int(color == "red"), int(color == "green"), int(index % 3 == 0)]
                writer.writerow(
                    [f"images/{color}/{index}.png", color, f"{color}{index % 3}", *flags]
                )
    return folder / "labels.csv"


def test_train_on_a_csv_file(capsys, table, tmp_path):
    words = ["train", f"--data=csv:{table}", *SMALL, f"--output={tmp_path / 'run'}"]
    words += ["--class-weights=balanced", "--focal-loss=2", "--fold=2/3", "--group=patient"]
    cli.main(words)
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0] == f"csv:{table}: 8 training images, 4 held out, 2 classes"
    assert lines[1] == "left out: 3 columns (red, green, tall)"
    assert shown.err == ""
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["fold"], config["class_weights"], config["focal_loss"]) == ("2/3", "balanced", 2)
    cli.main(["evaluate", str(tmp_path / "run")])
    assert "on 4 images" in capsys.readouterr().out


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A run on twelve images with any of three labels."""
    folder = tmp_path_factory.mktemp("several")
    draw_folder(folder / "images", images=6)
    with open(folder / "labels.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        for color in ("red", "green"):
            for index in range(6):
                labels = [color] + ["tall"] * (index % 2)
                writer.writerow([f"images/{color}/{index}.png", "|".join(labels)])
    words = [f"--data=csv:{folder / 'labels.csv'}", *SMALL, f"--output={folder / 'run'}"]
    words += ["--task=multilabel", "--epochs=2", "--validation-share=0.4", "--mixup=0.2"]
    cli.main(["train", *words])
    return folder


def test_train_on_several_labels(several):
    run = several / "run"
    summary = json.loads((run / "summary.json").read_text())
    with open(run / "metrics.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert float(rows[-1]["validation_mean_average_precision"]) == pytest.approx(
        summary["mean_average_precision"]
    )
    assert 0 < summary["f1"] <= 1 or summary["f1"] == 0
    assert summary["classes"]["tall"].keys() >= {"average_precision", "recall", "calibration"}
    assert (run / "best.safetensors").is_file()
    assert load_model(run / "last.safetensors").task == "multilabel"


def test_evaluate_several_labels(capsys, several):
    cli.main(["evaluate", str(several / "run"), "--split=all"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"scoring all 12 images of csv:{several / 'labels.csv'}"
    assert lines[1].startswith("mean average precision ")
    assert lines[2].startswith("F1 (threshold 0.5) ")
    header = [line.split() for line in lines if line.startswith("class")]
    assert header == [
        [
            "class",
            "images",
            "precision",
            "recall",
            "F1",
            "average",
            "precision",
            "calibration",
            "error",
        ]
    ]
    with open(several / "run" / "evaluation" / "predictions.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert {row["label"] for row in rows} == {"red", "green", "red;tall", "green;tall"}


def test_predict_several_labels(capsys, fails, several):
    words = ["predict", several / "run", several / "images" / "red", "--format=json"]
    cli.main([*map(str, words), "--threshold=0.001"])
    entries = json.loads(capsys.readouterr().out)
    assert all(len(entry["predictions"]) == 3 for entry in entries)
    cli.main([*map(str, words), "--threshold=0.999999"])
    entries = json.loads(capsys.readouterr().out)
    assert all(entry["predictions"] == [] for entry in entries)
    assert entries[0]["probabilities"].keys() == {"red", "green", "tall"}
    # Each by itself: they don't add up to 1.
    assert abs(sum(entries[0]["probabilities"].values()) - 1) > 1e-4
    cli.main([str(word) for word in words[:3]] + ["--threshold=0.999999"])
    assert capsys.readouterr().out.splitlines()[1].split()[-1] == "none"
    assert "--top-k doesn't go with" in fails([*words, "--top-k=2"], 2)
    assert "--threshold must be between 0 and 1, got 1" in fails([*words, "--threshold=1"], 2)


def test_several_labels_resume_exactly(capsys, several, tmp_path):
    config = make_config(json.loads((several / "run" / "config.json").read_text()))
    shutil.copytree(several / "run", tmp_path / "run")
    before = load_file(tmp_path / "run" / "last.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classification, "save", stop_after_the_first_epoch)
        with pytest.raises(KeyboardInterrupt):
            train(config, output=str(tmp_path / "again"))
    resume(tmp_path / "again")
    after = load_file(tmp_path / "again" / "last.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def stop_after_the_first_epoch(self, model, path):
    save_model(model, path)
    if path.name == "last.safetensors" and not hasattr(self, "saved"):
        self.saved = True
        return
    if path.name == "last.safetensors":
        raise KeyboardInterrupt


@pytest.fixture
def other_photos(images, tmp_path):
    """Ten images of the run's classes, without parts."""
    for color in ("red", "green"):
        (tmp_path / "test" / color).mkdir(parents=True)
        for index in range(5):
            shutil.copy(images / color / f"{index}.png", tmp_path / "test" / color)
    return tmp_path / "test"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "scoring all 10 images of folder:"),
        (["--split=all"], "scoring all 10 images of folder:"),
        (["--split=val"], "scoring the 2 held-out images of folder:"),
        (["--split=train"], "scoring the 8 training images of folder:"),
        (["--validation-share=0.4"], "scoring the 4 held-out images of folder:"),
    ],
)
def test_other_data_is_scored_whole(capsys, whole_run, other_photos, tmp_path, words, said):
    words = ["--data", f"folder:{other_photos}", *words, "--output", str(tmp_path / "report")]
    cli.main(["evaluate", str(whole_run.folder), *words])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(said)
    count = lines[0].split()[2]
    assert lines[1].endswith(f" on {count} images")
    with open(tmp_path / "report" / "predictions.csv", newline="") as file:
        assert len([*csv.DictReader(file)]) == int(count)


@pytest.mark.parametrize("spelled", [False, True])
def test_the_runs_own_data_stay_held_out(capsys, whole_run, images, tmp_path, spelled):
    words = ["--output", str(tmp_path / "report")]
    if spelled:
        words += ["--data", f"folder:{images.parent}/./{images.name}"]
    cli.main(["evaluate", str(whole_run.folder), *words])
    assert capsys.readouterr().out.startswith("scoring the 6 held-out images of folder:")
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert summary["accuracy"] == whole_run.evaluation.accuracy


def test_shards_are_scored(capsys, whole_run, other_photos, tmp_path):
    cli.main(["shards", f"folder:{other_photos}", str(tmp_path / "shards")])
    words = ["evaluate", str(whole_run.folder), "--data", f"shards:{tmp_path / 'shards'}"]
    for part, count in (("val", 2), ("all", 10)):
        cli.main([*words, "--split", part, "--output", str(tmp_path / part)])
        with open(tmp_path / part / "predictions.csv", newline="") as file:
            rows = [*csv.DictReader(file)]
        assert len({row["path"] for row in rows}) == count
        assert {row["label"] for row in rows} == {"green", "red"}


def test_some_of_the_classes_in_another_order(capsys, several, tmp_path):
    table = several / "some.csv"
    table.write_text("path,tall,red\nimages/red/1.png,1,1\nimages/green/0.png,0,0\n")
    words = ["--data", f"csv:{table}", "--output", str(tmp_path / "report")]
    cli.main(["evaluate", str(several / "run"), *words])
    assert capsys.readouterr().out.startswith("scoring all 2 images of csv:")
    with open(tmp_path / "report" / "predictions.csv", newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["red;tall", ""]
    table.write_text("path,tall,blue\nimages/red/1.png,1,1\n")
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(several / "run"), *words])
    assert "aren't those of csv:" in capsys.readouterr().err


def test_part_kept_for_the_end(capsys, fails, whole_run, images, tmp_path):
    lines = ["path,label,split"]
    for color in ("red", "green"):
        for index, part in enumerate(("train", "train", "val", "test", "test")):
            lines.append(f"{images / color / f'{index}.png'},{color},{part}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    words = ["--data", f"csv:{tmp_path / 'labels.csv'}"]
    for part, said in (("test", "the 4 test"), ("val", "the 2 held-out"), ("all", "all 10")):
        output = ["--output", str(tmp_path / part)]
        cli.main(["evaluate", str(whole_run.folder), *words, "--split", part, *output])
        assert capsys.readouterr().out.startswith(f"scoring {said} images of csv:")
    words[1] = f"folder:{images}"
    said = fails(["evaluate", whole_run.folder, *words, "--split=test"])
    assert "has no part test, it has train, val, all" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fold=4/3"], "fold must be as 1/5, ..., 5/5"),
        (["--group=person"], "no column 'person' for groups"),
        (["--focal-loss=-1"], "focal_loss must be 0 or more, got -1"),
        (["--validation-share=1"], "validation_share must be between 0 and 1, got 1"),
        (["--data=csv:absent.csv"], "no file at absent.csv"),
    ],
)
def test_refused_before_training(fails, table, tmp_path, words, said):
    output = tmp_path / "run"
    assert said in fails(["train", f"--data=csv:{table}", *SMALL, f"--output={output}", *words])
    assert not output.exists()
