"""Sets of boxes without masks: Faster R-CNN, from the annotations to the pictures."""

import contextlib
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.models.detection import FasterRCNN

from halonet import cli
from halonet.detection.check import check_content
from halonet.detection.coco import read_coco
from halonet.detection.dataset import DetectionDataset
from halonet.detection.detector import load_detector, save_detector, sum_losses
from halonet.detection.evaluate import detect_images, score
from halonet.detection.sources import load_detection_data
from halonet.detection.training import train_detector
from tests.detection.pictures import draw_coco, make_target, small_detector
from tests.detection.test_training import make_trial
from tests.pictures import make_words

# pycocotools' own, under numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BOXES = [[4, 4, 24, 20], [30, 10, 50, 60]]
LOSSES = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_coco(tmp_path_factory.mktemp("boxes") / "coco", masks=False)


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted; tests don't change its folder."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    return train_detector(make_trial(folder), output=str(output)).folder


def box_ap(truth: Path, results: list[dict[str, Any]]) -> float:
    """pycocotools', from the annotation file itself."""
    with contextlib.redirect_stdout(io.StringIO()):
        annotations = COCO(str(truth))
        for number, one in enumerate(annotations.dataset["annotations"], start=1):
            one["id"] = number  # pycocotools takes 0 for none
        annotations.createIndex()
        evaluation = COCOeval(annotations, annotations.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def test_faster_rcnn_is_torchvisions() -> None:
    model = small_detector(mask_channels=0).train()
    assert not model.roi_heads.has_mask()
    target = make_target(64, BOXES, seed=3)
    del target["masks"]
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = model([image], [target])
    sum_losses(found).backward()
    assert [name for name, one in model.named_parameters() if one.grad is None] == []
    model.transform._skip_resize = True  # it would draw a size at random
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = FasterRCNN.forward(model, [image], [target])
    assert set(found) == set(expected) == LOSSES
    for name in LOSSES:
        torch.testing.assert_close(found[name], expected[name])


def test_boxes_are_those_of_mask_rcnn(tmp_path: Path) -> None:
    both, alone = small_detector().eval(), small_detector(mask_channels=0).eval()
    weights = both.state_dict()
    kept = {name: one for name, one in weights.items() if ".mask_" not in name}
    assert set(kept) == set(alone.state_dict()) != set(weights)
    alone.load_state_dict(kept)
    save_detector(alone, tmp_path / "boxes.safetensors")
    loaded = load_detector(tmp_path / "boxes.safetensors").eval()
    assert loaded.options == alone.options
    image = torch.rand(3, 50, 70)
    with torch.no_grad():
        (expected,), (found,), (small,) = both([image]), loaded([image]), loaded.detect([image])
    assert set(found) == set(small) == {"boxes", "labels", "scores"}
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("jitter", [(0.3, 0.6), (1.0, 1.0), (1.5, 3.0)], ids=str)
def test_items_have_the_boxes_that_masks_give(folder: Path, tmp_path: Path, jitter: Any) -> None:
    with_masks = load_detection_data(f"coco:{draw_coco(tmp_path / 'coco')}").training
    without = load_detection_data(f"coco:{folder}").training
    cut = 0
    for epoch in range(8):
        for index in range(4):
            image, expected = DetectionDataset(with_masks, 48, scale_jitter=jitter)[epoch, index]
            same, found = DetectionDataset(without, 48, scale_jitter=jitter)[epoch, index]
            assert torch.equal(image, same)
            assert "masks" not in found
            cut += len(expected["labels"]) < (0 if index == 3 else 2)
            if len(expected["labels"]) != len(found["labels"]):  # a sliver that no pixel is of
                continue
            assert torch.equal(found["labels"], expected["labels"])
            assert found["boxes"].shape == expected["boxes"].shape
            assert ((found["boxes"] - expected["boxes"]).abs() <= 1).all()
    assert (cut > 0) == (jitter[1] > 1.25)


def test_masks_decide(tmp_path: Path) -> None:
    folder = draw_coco(tmp_path / "coco")
    path = folder / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())

    def load(lacking: int, **options: str) -> Any:
        entries = content["annotations"]
        changed = [entry | {"segmentation": []} for entry in entries[:lacking]] + entries[lacking:]
        path.write_text(json.dumps(content | {"annotations": changed}))
        return load_detection_data(f"coco:{folder}", **options)

    assert load(0).masks
    assert load(0).describe() == []
    assert not load(0, masks="ignore").masks
    assert load(0, masks="ignore").describe() == ["masks are ignored: boxes alone"]
    with pytest.raises(ValueError, match="2 of 14 annotations have no mask: --masks need leaves"):
        load(2)
    needed = load(2, masks="need")
    assert needed.masks
    assert [one.annotation_id for one in needed.training.problems] == [0, 1]
    assert needed.describe()[0] == "2 of 14 annotations have no mask, and are left out"
    ignored = load(2, masks="ignore")
    assert not ignored.masks
    assert [len(image.annotations) for image in ignored.training.images] == [2, 2, 3, 0]
    assert all(one.counts is None for image in ignored.training.images for one in image.annotations)
    assert not load(7).masks  # of the training part; the held-out part has some
    with pytest.raises(ValueError, match="has no masks, and masks is need"):
        load(7, masks="need")
    with pytest.raises(ValueError, match="masks must be auto, need or ignore, got 'no'"):
        load(0, masks="no")


def test_metrics_are_pycocotools(folder: Path) -> None:
    data = load_detection_data(f"coco:{folder}").validation
    results = detect_images(small_detector(mask_channels=0), data)
    assert {name for one in results for name in one} == {
        *("image_id", "category_id", "bbox", "score")
    }
    metrics = score(data, results)
    assert metrics.mask is None
    assert metrics.box.all == pytest.approx(box_ap(data.source, results), abs=1e-6)


def test_run_folder(run: Path, folder: Path) -> None:
    with open(run / "metrics.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert {f"training_{name}" for name in LOSSES} <= set(rows[0])
    assert not any("mask" in name for name in rows[0])
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["detector"], summary["mask"]) == ("Faster R-CNN", None)
    assert summary["box"]["all"] == float(rows[-1]["validation_box_ap"])
    assert len([*(run / "pictures").iterdir()]) == 4
    assert not load_detector(run / "best.safetensors").options.has_masks


def test_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = make_words(make_trial(folder, epochs=1), tmp_path / "run")
    cli.main(["detect", "train", *words])
    shown = capsys.readouterr()
    assert shown.err == "halonet: no annotation has a mask: boxes alone\n"
    assert "\nbox " in shown.out
    assert "mask" not in shown.out
    cli.main(["detect", "evaluate", str(tmp_path / "run")])
    shown = capsys.readouterr()
    assert "category  box AP\n" in shown.out
    results = json.loads((tmp_path / "run" / "evaluation" / "results.json").read_text())
    truth = folder / "annotations" / "instances_val2017.json"
    summary = json.loads((tmp_path / "run" / "evaluation" / "summary.json").read_text())
    assert summary["box"]["all"] == pytest.approx(box_ap(truth, results), abs=1e-6)
    with pytest.raises(SystemExit):
        cli.main(["detect", "evaluate", str(tmp_path / "run"), "--masks", "need"])
    assert "finds boxes alone: masks can't be needed" in capsys.readouterr().err
    output = tmp_path / "found"
    photos = folder / "val2017"
    cli.main(
        [
            *("detect", "predict", str(tmp_path / "run"), str(photos), "--data-set", "true"),
            *("--score-threshold", "0", "--output", str(output)),
        ]
    )
    # The photos are called by their ids, so that the predictions are scored as they are.
    predictions = json.loads((output / "predictions.json").read_text())
    assert box_ap(truth, predictions) == pytest.approx(summary["box"]["all"], abs=1e-6)
    content = json.loads((output / "data_set.json").read_text())
    assert [one["id"] for one in content["annotations"]] == [*range(1, len(predictions) + 1)]
    again = check_content(read_coco(output / "data_set.json"), masks=False)
    assert [category.name for category in again.categories] == ["bar", "square"]
    assert sum(len(image.annotations) for image in again.images) == len(predictions)
    for path in photos.iterdir():
        with Image.open(output / f"{path.name}.png") as picture, Image.open(path) as photo:
            assert picture.size == photo.size
            assert picture.tobytes() != photo.tobytes()


def test_mask_rcnn_is_scored_on_boxes_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small_detector()
    model.class_names = ("bar", "square")
    save_detector(model, tmp_path / "model.safetensors")
    path = str(tmp_path / "model.safetensors")
    cli.main(["detect", "evaluate", path, "--data", f"coco:{folder}"])
    shown = capsys.readouterr()
    assert "no annotation has a mask" in shown.err
    assert "\nbox " in shown.out
    assert "\nmask " not in shown.out
