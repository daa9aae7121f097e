"""Detectors train by the loop of the classifiers: whole, resumed, in two processes, by command."""

import csv
import dataclasses
import json
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from halonet import cli
from halonet.classification.training import resume
from halonet.data.loader import InOrder, make_loader
from halonet.detection import training
from halonet.detection.config import check_detection_config, make_detection_config
from halonet.detection.detector import load_detector
from halonet.detection.evaluate import AveragePrecision, DetectionMetrics
from halonet.detection.options import DetectorOptions
from halonet.detection.recipes import RECIPES, get_detection_recipe
from halonet.detection.training import Detection, resume_detector, train_detector
from halonet.training import parallel
from halonet.training.parallel import make_accelerator
from tests.detection.pictures import NARROW, SHARED, draw_coco, needs_shared_data
from tests.pictures import make_words
from tests.training.processes import assert_close_runs, assert_equal_runs, interrupt_after

# One process runs them all: they share a run and a launcher, which take seconds to start.
pytestmark = pytest.mark.xdist_group("processes")


def make_trial(folder, **changes):
    """Two epochs of two steps, without what differs between processes."""
    detector = DetectorOptions(
        image_size=64,
        anchor_sizes=(8, 16, 32, 64, 128),
        training_proposals=40,
        proposals=40,
        detections=10,
        pyramid_channels=8,
        box_channels=16,
        mask_channels=8,
        training_regions=16,
    )
    fields = {
        "data": f"coco:{folder}",
        "model": "resnet_50_se_halo8",
        "model_options": {
            name: list(one) if isinstance(one, tuple) else one for name, one in NARROW.items()
        },
        "detector": detector,
        "epochs": 2,
        "batch_size": 2,
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "batch_norm": "frozen",
        "checkpoint_steps": 1,
        "evaluate_epochs": 1,
        "log_with": "none",
    }
    return dataclasses.replace(get_detection_recipe("small_detector"), **(fields | changes))


@pytest.fixture(scope="session")
def coco_folder(tmp_path_factory):
    return draw_coco(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="session")
def detection_run(coco_folder, tmp_path_factory):
    """A run that nothing interrupted; tests don't change its folder."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return train_detector(make_trial(coco_folder), output=str(folder))


def test_run_folder(detection_run):
    run = detection_run.folder
    assert sorted(path.name for path in run.iterdir()) == [
        "best.safetensors",
        "config.json",
        "curves.png",
        "last.safetensors",
        "metrics.csv",
        "pictures",
        "results.json",
        "state",
        "summary.json",
        "truth.json",
    ]
    with open(run / "metrics.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [row["step"] for row in rows] == ["2", "4"]
    assert {"training_loss_mask", "validation_box_ap", "validation_mask_ap"} <= rows[0].keys()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["mask"]["all"] == detection_run.evaluation.figures["mask_ap"]
    for path in (run / "pictures").iterdir():
        with Image.open(path) as picture:
            assert picture.width > 80
    model = load_detector(run / "last.safetensors")
    assert model.class_names == ("bar", "square")
    assert model.category_ids == (3, 7)


def test_interrupted_run_resumes_bit_for_bit(detection_run, coco_folder, tmp_path):
    with interrupt_after(2, "halonet detect train --resume"):
        train_detector(make_trial(coco_folder), output=str(tmp_path / "run"))
    result = resume_detector(tmp_path / "run")
    assert_equal_runs(tmp_path / "run", detection_run.folder)
    assert result.evaluation.results == detection_run.evaluation.results


def test_changed_objects_are_named(detection_run, coco_folder, tmp_path):
    run = shutil.copytree(detection_run.folder, tmp_path / "run")
    folder = shutil.copytree(coco_folder, tmp_path / "coco")
    config = run / "config.json"
    config.write_text(config.read_text().replace(str(coco_folder), str(folder)))
    assert resume_detector(run).evaluation.figures == detection_run.evaluation.figures
    file = folder / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    content["annotations"][1]["category_id"] = 7
    content["images"] = [image for image in content["images"] if image["id"] != 13]
    file.write_text(json.dumps(content))
    changed = r"images removed: 1 \(train2017/13\.png\), images changed: 1 \(train2017/10\.png\)"
    with pytest.raises(ValueError, match=changed):
        resume_detector(run)
    assert len(resume_detector(run, allow_changed_data=True).data.training.images) == 3


def test_two_processes_equal_one_and_survive_a_lost_one(
    detection_run, coco_folder, launch, tmp_path
):
    words = make_words(make_trial(coco_folder), tmp_path / "run")
    killed = launch(["detect", "train", *words], kill_in_step=4)
    assert killed.returncode != 0
    lost = [line for line in killed.stderr.splitlines() if line.startswith("halonet:")]
    assert lost == [
        f"halonet: lost another process of this run; go on with: halonet detect train --resume {tmp_path / 'run'}"
    ]
    again = launch(["detect", "train", "--resume", str(tmp_path / "run")])
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("trained in") == 1
    assert_close_runs(tmp_path / "run", detection_run.folder)


def test_only_the_main_process_computes_metrics(coco_folder, detection_run, monkeypatch):
    accelerator = make_accelerator(make_trial(coco_folder))
    task = Detection(make_trial(coco_folder), accelerator)
    other = SimpleNamespace(is_main_process=False)
    told = detection_run.evaluation.metrics

    def tell(outcome):
        outcome[:] = [told, True]

    monkeypatch.setattr(training, "score", None)
    monkeypatch.setattr(parallel, "broadcast_object_list", tell)
    loader = make_loader(task.validation, InOrder(4), 1, 0)
    assert task.evaluate(task.model, loader, other).metrics is told


def test_more_processes_than_held_out_images(launch, tmp_path):
    folder = draw_coco(tmp_path / "coco")
    path = folder / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    (image, *_) = content["images"]
    kept = [one for one in content["annotations"] if one["image_id"] == image["id"]]
    path.write_text(json.dumps(content | {"images": [image], "annotations": kept}))
    words = make_words(make_trial(folder, epochs=1), tmp_path / "run")
    run = launch(["detect", "train", *words])
    assert run.returncode == 0, run.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["images"] == 1


def test_run_of_another_task_is_named(detection_run, whole_run):
    with pytest.raises(ValueError, match="a classifier's"):
        resume_detector(whole_run.folder)
    with pytest.raises(ValueError, match="a detector's"):
        resume(detection_run.folder)


def test_commands(coco_folder, tmp_path, capsys):
    words = make_words(make_trial(coco_folder, epochs=1), tmp_path / "run")
    cli.main(["detect", "train", *words])
    shown = capsys.readouterr()
    assert "box " in shown.out
    assert "mask " in shown.out
    assert shown.err == ""
    cli.main(["detect", "evaluate", str(tmp_path / "run"), "--max-detections", "5"])
    shown = capsys.readouterr()
    assert "4 images, at most 5 detections in each" in shown.out
    assert "square" in shown.out
    assert (tmp_path / "run" / "evaluation" / "results.json").is_file()
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = [str(coco_folder / "val2017"), str(tmp_path / "broken.png")]
    output = tmp_path / "predictions"
    with pytest.raises(SystemExit) as stopped:
        cli.main(
            [
                "detect",
                "predict",
                str(tmp_path / "run"),
                *images,
                "--score-threshold",
                "0",
                "--output",
                str(output),
            ]
        )
    assert stopped.value.code == 1
    shown = capsys.readouterr()
    assert "broken.png is not an image" in shown.err
    content = json.loads((output / "predictions.json").read_text())
    assert {one["image_id"] for one in content} == {1, 2, 3, 4}  # broken.png has no number
    assert {one["category_id"] for one in content} <= {3, 7}
    assert len([*output.rglob("*.png")]) == 4


def test_held_out_images_where_nothing_counts_still_give_a_best_checkpoint(
    coco_folder, tmp_path, monkeypatch
):
    nothing = AveragePrecision(None, None, None, None, None, None, None, {})
    metrics = DetectionMetrics(nothing, nothing, 10, 4)
    monkeypatch.setattr(training, "score", lambda *args, **options: metrics)
    run = tmp_path / "run"
    result = train_detector(make_trial(coco_folder), output=str(run))
    assert math.isnan(result.evaluation.figures["mask_ap"])
    best, last = (load_file(run / f"{name}.safetensors") for name in ("best", "last"))
    assert all(torch.equal(best[name], last[name]) for name in last)


def test_bad_annotations_are_named_or_refused(coco_folder, tmp_path, capsys):
    folder = draw_coco(tmp_path / "coco")
    path = folder / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 99
    path.write_text(json.dumps(content))
    words = make_words(make_trial(folder, epochs=1), tmp_path / "run")
    cli.main(["detect", "train", *words])
    assert "left out: image 10, annotation 0: category 99 is unknown" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        cli.main(
            [
                "detect",
                "train",
                *words,
                "--bad-annotations",
                "refuse",
                "--output",
                str(tmp_path / "no"),
            ]
        )
    assert stopped.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["detect", "trian"], 2, "there are train, evaluate, predict"),
        (["detect", "train", "--data", "folder:a"], 1, "data must be coco:PATH"),
        (["detect", "train", "--data", "coco:absent"], 1, "no folder at absent"),
        (["detect", "train", "--recipe", "huge"], 1, "which `halonet recipes` lists, got 'huge'"),
        (["detect", "train", "--resume", "absent"], 1, "no run at absent"),
        (["detect", "evaluate", "absent"], 1, "no checkpoint at absent"),
        (["detect", "predict", "absent", "a.png"], 1, "no checkpoint at absent"),
    ],
)
def test_mistake_is_one_line(words, status, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == status
    shown = capsys.readouterr().err
    assert shown.startswith("halonet: ")
    assert shown.count("\n") == 1
    assert message in shown


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_can_run(name):
    recipe = RECIPES[name]
    config = get_detection_recipe(name)
    check_detection_config(config)
    assert config.recipe == recipe.name == name
    assert f"halonet detect train --recipe {name}" in recipe.command
    assert all((recipe.reproduces, recipe.expected, recipe.data, recipe.hardware))
    assert make_detection_config(json.loads(json.dumps(dataclasses.asdict(config)))) == config


@needs_shared_data
def test_real_photos_train(tmp_path):
    config = make_trial(SHARED / "tiny_coco", epochs=1, batch_size=16)
    result = train_detector(config, output=str(tmp_path / "run"))
    assert len(result.data.categories) == 80
    assert all(
        torch.isfinite(one).all()
        for one in load_detector(tmp_path / "run" / "last.safetensors").parameters()
    )
