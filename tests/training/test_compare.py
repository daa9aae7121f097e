"""Runs side by side: what is read, what counts, and what can't be compared."""

import dataclasses
import json

import pytest
from PIL import Image

from halonet.classification.recipes import get_recipe
from halonet.training.compare import choose_score, compare_runs, draw_curves, read_run
from halonet.training.log import write_metrics

DETECTOR = {"recipe": "coco", "model": "resnet_50_se", "epochs": 2, "detector": {"image_size": 64}}


def write_run(folder, rows=(), *, summary=None, config=None, **changes):
    """A run's folder, by default a classifier's."""
    folder.mkdir()
    config = config or dataclasses.asdict(get_recipe("small")) | {"epochs": 3}
    (folder / "config.json").write_text(json.dumps(config | changes))
    if rows:
        write_metrics(folder, rows)
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return read_run(folder)


def make_row(epoch, accuracy=None):
    row = {"epoch": epoch, "step": 10 * epoch, "training_loss": 1 / epoch, "seconds": 30.0 * epoch}
    if accuracy is not None:
        row |= {"validation_loss": 1 - accuracy, "validation_accuracy": accuracy}
    return row


@pytest.fixture
def runs(tmp_path):
    """One that is finished, one that was stopped, one that has just begun."""
    rows = [make_row(1, 0.5), make_row(2), make_row(3, 0.75)]
    options = {"block_size": 4}
    return [
        write_run(tmp_path / "first", rows, summary={"parameters": 1_251_096}),
        write_run(
            tmp_path / "second",
            [make_row(1, 0.6), make_row(2, 0.4)],
            learning_rate=0.1,
            model_options=options,
        ),
        write_run(tmp_path / "third", seed=1),
    ]


def test_outcomes(runs, tmp_path):
    first, second, third = compare_runs(runs, choose_score(runs))
    assert dataclasses.asdict(first) == {
        "run": str(tmp_path / "first"),
        "model": "halonet_tiny",
        "parameters": 1_251_096,
        "epochs": 3,
        "epochs_planned": 3,
        "finished": True,
        "score": "accuracy",
        "best": 0.75,
        "best_epoch": 3,
        "last": 0.75,
        "training_loss": pytest.approx(1 / 3),
        "validation_loss": 0.25,
        "minutes": 1.5,
        "differences": {"learning_rate": 0.02, "seed": 0},
    }
    assert (second.best, second.best_epoch, second.last) == (0.6, 1, 0.4)
    assert (second.finished, second.epochs, second.parameters) == (False, 2, None)
    assert second.differences == {
        "learning_rate": 0.1,
        "model_options.block_size": 4,
        "seed": 0,
    }
    assert (third.epochs, third.best, third.last, third.minutes) == (0, None, None, None)


def test_a_real_run_is_read(whole_run, tmp_path):
    run = read_run(whole_run.folder)
    (outcome,) = compare_runs([run], choose_score([run]))
    summary = json.loads((whole_run.folder / "summary.json").read_text())
    assert outcome.last == pytest.approx(summary["accuracy"])
    assert outcome.parameters == summary["parameters"]
    assert outcome.minutes == pytest.approx(summary["training_minutes"])
    assert outcome.finished
    assert outcome.differences == {}
    draw_curves([run], tmp_path / "curves.png")


def test_detectors_are_compared_by_any_of_their_scores(tmp_path):
    figures = {"validation_box_ap": 0.3, "validation_mask_ap": 0.2, "validation_box_ap50": "nan"}
    runs = [
        write_run(tmp_path / name, [make_row(1) | figures], config=DETECTOR) for name in ("a", "b")
    ]
    assert choose_score(runs) == "box_ap"
    assert choose_score(runs, "mask_ap") == "mask_ap"
    assert [outcome.last for outcome in compare_runs(runs, "mask_ap")] == [0.2, 0.2]
    with pytest.raises(ValueError, match="score must be one of box_ap, mask_ap, got 'accuracy'"):
        choose_score(runs, "accuracy")
    draw_curves(runs, tmp_path / "curves.svg")


def test_runs_of_different_tasks(runs, tmp_path):
    runs.append(write_run(tmp_path / "detector", config=DETECTOR))
    with pytest.raises(
        ValueError, match=r"one task: \S+first is of classification, \S+detector of detection"
    ):
        choose_score(runs)


def test_no_run_is_evaluated_yet(runs, tmp_path):
    assert choose_score(runs[2:]) is None
    with pytest.raises(ValueError, match="nothing to draw: no run has a finished epoch"):
        draw_curves(runs[2:], tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_picture_is_whole(runs, tmp_path):
    path = tmp_path / "curves.png"
    draw_curves(runs, path)
    with Image.open(path) as picture:
        assert picture.width > 500
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "curves.png",
        "first",
        "second",
        "third",
    ]
    with pytest.raises(ValueError, match=r"output must end in one of \.pdf, \.png, \.svg"):
        draw_curves(runs, tmp_path / "curves.txt")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("config.json", "{", r"config\.json is damaged"),
        ("config.json", "[]", r"config\.json is damaged: it holds no JSON object"),
        ("config.json", "{}", r"config\.json is not a run's configuration"),
        ("summary.json", "nothing", r"summary\.json is damaged"),
        ("metrics.csv", "epoch,step\none,2\n", r"metrics\.csv is damaged"),
        ("metrics.csv", "step\n2\n", r"metrics\.csv is damaged: a line has no epoch"),
        ("metrics.csv", "epoch\n1,2\n", r"metrics\.csv is damaged"),
        ("metrics.csv", "epoch\n\x00\n", r"metrics\.csv is damaged"),
    ],
)
def test_damaged_file_is_named(runs, tmp_path, name, text, said):
    (tmp_path / "first" / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        read_run(tmp_path / "first")


def test_folder_that_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run at .*: it has no config\.json"):
        read_run(tmp_path)
