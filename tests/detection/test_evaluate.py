"""Metrics equal to pycocotools', and detections of a model in COCO's format."""

import contextlib
import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as official
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from halonet.detection.data import AnnotatedImages, as_ground_truth, select_images
from halonet.detection.evaluate import (
    AveragePrecision,
    detect_images,
    merge_results,
    score,
)
from halonet.detection.sources import load_detection_data
from tests.detection.pictures import draw_coco, load_shared_data, needs_shared_data, small_detector

# pycocotools' own, under numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> AnnotatedImages:
    folder = draw_coco(tmp_path_factory.mktemp("coco") / "shapes")
    return load_detection_data(f"coco:{folder}").validation


def truth_as_results(data: AnnotatedImages) -> list[dict[str, Any]]:
    return [
        {name: entry[name] for name in ("image_id", "category_id", "bbox", "segmentation")}
        | {"score": 1.0}
        for entry in as_ground_truth(data)["annotations"]
        if not entry["iscrowd"]
    ]


def shaken(data: AnnotatedImages, seed: int = 0) -> list[dict[str, Any]]:
    """The truth moved by some pixels, some of it lost, some twice, with scores at random."""
    random = np.random.default_rng(seed)
    results = []
    for entry in truth_as_results(data):
        height, width = entry["segmentation"]["size"]
        for _ in range(random.integers(0, 3)):
            shift = random.integers(-4, 5, 2)
            mask = np.roll(official.decode(entry["segmentation"]), shift, (0, 1))
            if not mask.any():
                continue
            encoded = official.encode(np.asfortranarray(mask))
            box = np.add(entry["bbox"], [shift[1], shift[0], *random.uniform(-1, 3, 2)])
            box[2:] = np.maximum(box[2:], 1)
            results.append(
                entry
                | {
                    "bbox": box.tolist(),
                    "score": round(float(random.random()), 6),
                    "segmentation": {
                        "size": [height, width],
                        "counts": encoded["counts"].decode(),
                    },
                }
            )
    return results


def pycocotools_metrics(
    data: AnnotatedImages, results: list[dict[str, Any]], kind: str, max_detections: int
) -> AveragePrecision:
    """The same from pycocotools, read from the annotation file itself."""
    given = [dict(one) for one in results]
    for one in given:
        del one["bbox" if kind == "segm" else "segmentation"]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(data.source))
        for number, one in enumerate(truth.dataset["annotations"], start=1):
            one["id"] = number  # pycocotools takes 0 for none
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(given), kind)
        evaluation.params.imgIds = [image.id for image in data.images]
        evaluation.params.maxDets = [1, 10, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        if max_detections == 100:
            evaluation.summarize()

    def mean(values: np.ndarray) -> float | None:
        return float(values[values > -1].mean()) if (values > -1).any() else None

    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    names = {one["id"]: one["name"] for one in truth.dataset["categories"]}
    found = AveragePrecision(
        all=mean(precision[..., 0, 2]),
        at_50=mean(precision[0, ..., 0, 2]),
        at_75=mean(precision[5, ..., 0, 2]),
        small=mean(precision[..., 1, 2]),
        medium=mean(precision[..., 2, 2]),
        large=mean(precision[..., 3, 2]),
        recall=mean(recall[..., 0, 2]),
        categories={
            names[number]: mean(precision[:, :, place, 0, 2])
            for place, number in enumerate(evaluation.params.catIds)
        },
    )
    if max_detections == 100:
        stats = [-1 if one is None else one for one in list(vars(found).values())[:6]]
        assert stats == pytest.approx(evaluation.stats[:6], abs=1e-12)
    return found


def check_against_pycocotools(
    data: AnnotatedImages, results: list[dict[str, Any]], max_detections: int
) -> None:
    metrics = score(data, results, max_detections=max_detections)
    for kind, found in (("bbox", metrics.box), ("segm", metrics.mask)):
        expected = pycocotools_metrics(data, results, kind, max_detections)
        for name, value in vars(expected).items():
            assert getattr(found, name) == pytest.approx(value, abs=1e-6), (kind, name)


def test_truth_is_perfect(data: AnnotatedImages) -> None:
    metrics = score(data, truth_as_results(data))
    for found in (metrics.box, metrics.mask):
        assert found.all == found.at_50 == found.at_75 == found.recall == 1
        assert found.categories == {"bar": 1, "square": 1}
        assert found.large is None
    assert metrics.images == 4


def test_nothing_found_is_zero(data: AnnotatedImages) -> None:
    metrics = score(data, [])
    assert (metrics.box.all, metrics.mask.all, metrics.mask.large) == (0, 0, None)


@pytest.mark.parametrize("max_detections", [1, 100])
def test_metrics_are_pycocotools(data: AnnotatedImages, max_detections: int) -> None:
    results = shaken(data)
    before = json.dumps(results)
    metrics = score(data, results, max_detections=max_detections)
    assert json.dumps(results) == before
    assert 0 < metrics.mask.all < 1
    check_against_pycocotools(data, results, max_detections)


@needs_shared_data
@pytest.mark.parametrize(
    ("name", "images", "max_detections"),
    [
        ("tiny_coco", slice(None), 100),
        ("nuclei", slice(6, None, 8), 300),  # pycocotools takes half a minute for all
    ],
    ids=["tiny_coco", "nuclei"],
)
def test_metrics_are_pycocotools_on_real_data(
    name: str, images: slice, max_detections: int
) -> None:
    data = load_shared_data(name).validation
    assert data.problems == ()
    data = select_images(data, range(len(data.images))[images])
    assert max(len(image.annotations) for image in data.images) > max_detections / 2
    check_against_pycocotools(data, shaken(data), max_detections)


@needs_shared_data
def test_real_truth_is_perfect() -> None:
    data = load_shared_data("tiny_coco")
    for part in (data.training, data.validation):
        metrics = score(part, truth_as_results(part))
        assert metrics.box.all == pytest.approx(1)
        assert metrics.mask.all == pytest.approx(1)
    crowded = load_shared_data("nuclei").validation
    results = truth_as_results(crowded)
    assert score(crowded, results, max_detections=100).mask.all < 0.95
    assert score(crowded, results, max_detections=400).mask.all == pytest.approx(1)


def test_detections_are_cocos_results(data: AnnotatedImages) -> None:
    model = small_detector().train()
    results = detect_images(model, data)
    assert model.training
    assert json.loads(json.dumps(results)) == results
    sizes = {image.id: [image.height, image.width] for image in data.images}
    assert {one["image_id"] for one in results} == set(sizes)
    assert {one["category_id"] for one in results} <= {3, 7}
    for one in results:
        assert one["segmentation"]["size"] == sizes[one["image_id"]]
        assert official.decode(one["segmentation"]).shape == tuple(sizes[one["image_id"]])
        assert 0 <= one["score"] <= 1
    check_against_pycocotools(data, results, 100)


def test_masks_are_torchvisions(data: AnnotatedImages) -> None:
    from halonet.data.pixels import read_image
    from halonet.detection.evaluate import as_pixels

    model = small_detector(detections=30).eval()  # more than are pasted at once
    results = detect_images(model, select_images(data, [1]))
    with torch.no_grad():
        (found,) = model([as_pixels(read_image(data.images[1].path))])
    assert len(results) == len(found["masks"]) == 30
    for one, mask, box in zip(results, found["masks"], found["boxes"], strict=True):
        assert np.array_equal(official.decode(one["segmentation"]), mask[0].numpy() > 0.5)
        left, top, right, bottom = box.tolist()
        assert one["bbox"] == pytest.approx([left, top, right - left, bottom - top], abs=1e-3)


def test_shares_make_the_whole(data: AnnotatedImages) -> None:
    model = small_detector()
    whole = merge_results([detect_images(model, data)])
    shares = [detect_images(model, data, range(start, 4, 2)) for start in (1, 0)]
    assert merge_results(shares) == whole
    assert score(data, whole) == score(data, [one for part in shares for one in part])


def test_what_does_not_fit_is_named(data: AnnotatedImages) -> None:
    with pytest.raises(ValueError, match=r"the model has 3 classes, .* 2"):
        detect_images(small_detector(num_classes=3), data)
    model = small_detector()
    model.class_names = ("bar", "circle")
    with pytest.raises(ValueError, match="'circle' there is 'square'"):
        detect_images(model, data)
    with pytest.raises(ValueError, match="got image 99"):
        score(data, [truth_as_results(data)[0] | {"image_id": 99}])
    with pytest.raises(ValueError, match="max_detections must be positive, got 0"):
        score(data, [], max_detections=0)
