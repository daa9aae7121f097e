"""Objects in files, and pictures of them."""

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops

from halonet.data.pixels import read_image
from halonet.detection.coco import load_coco
from halonet.detection.predict import Objects, draw_truth, predict
from tests.detection.pictures import draw_coco, small_detector


def test_objects_in_files(tmp_path: Path) -> None:
    folder = draw_coco(tmp_path / "shapes") / "train2017"
    (folder / "broken.png").write_bytes(b"no image")
    model = small_detector().train()
    model.class_names, model.category_ids = ("bar", "square"), (3, 7)
    paths = [folder / "10.png", folder / "broken.png", folder / "none.png"]
    (first, found), (_, broken), (_, missing) = predict(model, paths, score_threshold=0)
    assert first == paths[0]
    assert "is not an image" in broken
    assert "no image at" in missing
    assert model.training
    assert isinstance(found, Objects)
    assert len(found.boxes) == len(found.masks) == 10
    assert found.size == (44, 60)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    results = found.as_results(5)
    assert {one["image_id"] for one in results} == {5}
    assert {one["category_id"] for one in results} <= {3, 7}
    picture = found.draw(read_image(paths[0]))
    assert picture.size == (60, 44)
    assert ImageChops.difference(picture, read_image(paths[0])).getbbox() is not None


def test_no_objects_leave_the_picture_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "grey.png"
    Image.new("RGB", (50, 40), "grey").save(path)
    ((_, found),) = predict(small_detector(), [path], score_threshold=1)
    assert isinstance(found, Objects)
    assert len(found.boxes) == 0
    assert found.as_results(1) == []
    assert found.draw(read_image(path)).tobytes() == read_image(path).tobytes()
    assert found.class_names == ("1", "2")


def test_masks_are_drawn_where_they_are(tmp_path: Path) -> None:
    image = Image.new("RGB", (50, 40), "black")
    box = torch.tensor([[10.0, 5.0, 30.0, 25.0]])
    found = Objects(
        tmp_path / "x.png", (40, 50), box, torch.tensor([2]), torch.tensor([0.9]),
        torch.ones(1, 1, 28, 28), ("bar", "square"), (3, 7),
    )  # fmt: skip
    picture = found.draw(image)
    assert picture.getpixel((24, 20)) != (0, 0, 0)
    assert picture.getpixel((40, 33)) == (0, 0, 0)


def test_truth_is_drawn(tmp_path: Path) -> None:
    data = load_coco(f"coco:{draw_coco(tmp_path / 'shapes')}").training
    for image in data.images:
        picture = draw_truth(image, data.categories)
        same = picture.tobytes() == read_image(image.path).tobytes()
        assert same == (not image.annotations)


def test_bad_threshold_is_named() -> None:
    with pytest.raises(ValueError, match="score_threshold must be from 0 to 1, got 2"):
        next(predict(small_detector(), [], score_threshold=2))
