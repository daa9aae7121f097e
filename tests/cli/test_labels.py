"""Labels of every kind on the command line: CSV files, folds, groups, rare classes."""

import csv
import json

import pytest

from halonet import cli
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
