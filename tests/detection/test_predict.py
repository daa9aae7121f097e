"""Objects in files, and pictures of them."""

import contextlib
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops
from pycocotools import mask as official
from pycocotools.coco import COCO

from halonet import cli
from halonet.cli.detect import number_images
from halonet.cli.pictures import name_pictures
from halonet.data.pixels import read_image
from halonet.detection.detector import save_detector
from halonet.detection.predict import Objects, draw_truth, predict
from halonet.detection.sources import load_detection_data
from halonet.models.pretrained import save_model
from tests.detection.pictures import draw_coco, small_detector

# pycocotools' own, under numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


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


def test_a_thin_image_is_as_one_that_cannot_be_read(tmp_path: Path) -> None:
    model, path = small_detector(), tmp_path / "thin.png"
    for size in ((193, 3), (3, 193), (191, 3)):
        Image.new("RGB", size).save(path)
        ((_, found),) = predict(model, [path])
        if size == (191, 3):
            assert isinstance(found, Objects)
            continue
        pixels = f"{size[0]} x {size[1]} pixels"
        assert found == (
            f"{path} can't be used: it is too thin: of {pixels}, nothing is left at image_size 64"
        )


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
        "x.png", (40, 50), box, torch.tensor([2]), torch.tensor([0.9]),
        ("bar", "square"), (3, 7), tmp_path / "x.png", torch.ones(1, 1, 28, 28),
    )  # fmt: skip
    picture = found.draw(image)
    assert picture.getpixel((24, 20)) != (0, 0, 0)
    assert picture.getpixel((40, 33)) == (0, 0, 0)


def test_truth_is_drawn(tmp_path: Path) -> None:
    data = load_detection_data(f"coco:{draw_coco(tmp_path / 'shapes')}").training
    for image in data.images:
        picture = draw_truth(image, data.categories)
        same = picture.tobytes() == read_image(image.path).tobytes()
        assert same == (not image.annotations)


def test_bad_threshold_is_named() -> None:
    with pytest.raises(ValueError, match="score_threshold must be from 0 to 1, got 2"):
        predict(small_detector(), [], score_threshold=2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    save_detector(small_detector(), path)
    return path


COLORS = {"a-3.png": 0, "a.png": 40, "a.jpg": 80, "sub/a.png": 120, "sub/a-3.png": 160, "a": 200}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images of one grey each, by which their pictures can be told."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name, color in COLORS.items():
        image = Image.new("RGB", (40, 40), (color,) * 3)
        image.save(folder / name, "JPEG" if name.endswith("jpg") else "PNG")
    return folder


def run(checkpoint: Path, *words: object) -> None:
    cli.main(["detect", "predict", str(checkpoint), *map(str, words), "--score-threshold", "1"])


def test_every_image_has_a_picture_of_its_own(checkpoint: Path, photos: Path) -> None:
    output = photos.parent / "found"
    before = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}
    run(checkpoint, photos, photos / "a", photos / "sub" / ".." / "a.png", "--output", output)
    pictures = {path.relative_to(output).as_posix() for path in output.rglob("*.png")}
    assert pictures == {f"{name}.png" for name in COLORS}
    for name, color in COLORS.items():
        with Image.open(output / f"{name}.png") as picture:
            assert picture.getpixel((20, 20)) == (color,) * 3
    content = json.loads((output / "predictions.json").read_text())
    assert content == []
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["photos"], ["a.png.png", "sub/a.png.png"]),
        (["photos/sub"], ["a.png.png"]),
        (["photos/sub/a.png"], ["a.png.png"]),
        (["photos/a.png", "photos/sub/a.png"], ["a.png.png", "sub/a.png.png"]),
        (["photos/sub", "photos/a.png"], ["sub/a.png.png", "a.png.png"]),
        (["photos/../photos/a.png", "photos/a.png"], ["a.png.png"]),
    ],
    ids=" ".join,
)
def test_pictures_are_named_by_place(
    given: list[str], names: list[str], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    images = [
        path
        for place in map(Path, given)
        for path in ([place] if place.is_file() else sorted(place.rglob("a.png")))
    ]
    assert [path.as_posix() for path in name_pictures(given, images).values()] == names


def test_an_output_that_holds_something_is_refused(
    checkpoint: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = photos.parent / "found"
    output.mkdir()
    run(checkpoint, photos, "--output", output)
    for taken in (output, photos):
        before = {path: path.stat().st_mtime_ns for path in taken.rglob("*")}
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run(checkpoint, photos, "--output", taken)
        assert stopped.value.code == 1
        expected = f"halonet: {taken} exists already and isn't an empty folder\n"
        assert capsys.readouterr().err == expected
        assert {path: path.stat().st_mtime_ns for path in taken.rglob("*")} == before


def test_runs_without_an_output_have_folders_of_their_own(
    checkpoint: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    for _ in range(2):
        run(checkpoint, photos / "sub")
    with pytest.raises(SystemExit):
        cli.main(["detect", "predict", str(checkpoint), "photos", "--score-threshold", "2"])
    for name in ("predictions", "predictions-2"):
        assert (photos.parent / name / "a.png.png").is_file()
    assert not (photos.parent / "predictions-3").exists()


@pytest.mark.parametrize("frozen", [False, True])
def test_fused_detector_finds_the_same(frozen: bool, tmp_path: Path) -> None:
    path, folder = tmp_path / "model.safetensors", draw_coco(tmp_path / "shapes") / "train2017"
    model = small_detector()
    if frozen:
        save_model(model.backbone.body, path)
        model = small_detector(init=path, frozen_norms=True)
    fused = model.fuse()
    norms = {type(one).__name__ for one in model.modules() if "BatchNorm" in type(one).__name__}
    assert norms == ({"FrozenBatchNorm2d"} if frozen else {"BatchNorm2d"})
    assert not any("BatchNorm" in type(one).__name__ for one in fused.modules())
    paths = sorted(folder.glob("*.png"))
    found, expected = (dict(predict(one, paths, score_threshold=0)) for one in (fused, model))
    for image in paths:
        ours, theirs = found[image], expected[image]
        assert isinstance(ours, Objects)
        assert isinstance(theirs, Objects)
        assert len(ours.scores) == 10
        for name in ("boxes", "labels", "scores", "masks"):
            one, other = getattr(ours, name), getattr(theirs, name)
            assert not one.is_inference()
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_ids_are_names_where_all_are_numbers() -> None:
    coco = [Path("000000000139.jpg"), Path("000000000285.jpg")]
    assert [*map(number_images(coco), coco)] == [139, 285]
    for names in (["7.jpg", "a.jpg"], ["a/7.jpg", "b/7.jpg"], ["7.jpg", "7.png"], ["1" * 19]):
        paths = [Path(name) for name in names]
        assert [*map(number_images(paths), paths)] == [*range(1, len(paths) + 1)]


@pytest.mark.parametrize("mask_channels", [0, 8])
def test_predictions_are_cocos_results(mask_channels: int, photos: Path, tmp_path: Path) -> None:
    model = small_detector(mask_channels=mask_channels)
    save_detector(model, tmp_path / "model.safetensors")
    output = tmp_path / "found"
    words = ["detect", "predict", tmp_path / "model.safetensors", photos, "--score-threshold", 0]
    cli.main([*map(str, words), "--data-set", "true", "--output", str(output)])
    data_set = str(output / "data_set.json")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(data_set)
        results = truth.loadRes(str(output / "predictions.json"))
    given = json.loads((output / "predictions.json").read_text())
    assert len(results.anns) == len(given) == len(truth.anns) > 0
    assert {one["file_name"] for one in given} <= {one["file_name"] for one in truth.imgs.values()}
    assert all(("segmentation" in one) == (mask_channels > 0) for one in given)
    for one in truth.anns.values():
        if mask_channels:
            assert one["area"] == official.area(one["segmentation"])
        else:
            assert one["area"] == one["bbox"][2] * one["bbox"][3]


def test_a_runs_own_report_is_not_written_over(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    (run / "summary.json").write_text("{}")
    folder = draw_coco(tmp_path / "coco")
    words = ["detect", "evaluate", str(checkpoint), "--data", f"coco:{folder}"]
    with pytest.raises(SystemExit):
        cli.main([*words, "--output", str(run)])
    assert "is a run and has the report of its training" in capsys.readouterr().err
    assert (run / "summary.json").read_text() == "{}"
