"""A whole detector in ONNX: it finds what torchvision's finds, in photos of any size."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torchvision.models.detection.roi_heads import paste_masks_in_image

from halonet import cli
from halonet.detection.detector import save_detector
from halonet.export import detector as detector_export
from halonet.export.check import draw_photo
from halonet.export.onnx_detector import load_onnx_detector
from halonet.export.pyramid import export_pyramid
from tests.detection.pictures import draw_coco, small_detector

PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
# The scaled sides divide by 32 or don't; the last map has an even or an odd size; a strip.
SIZES = ((64, 64), (60, 44), (97, 131), (20, 13), (33, 300), (300, 97))


@pytest.fixture(scope="module")
def detector():
    detector = small_detector().eval()
    detector.class_names, detector.category_ids = ("bar", "square"), (3, 7)
    return detector


@pytest.fixture(scope="module")
def folder(detector, tmp_path_factory):
    """A checkpoint, and what `halonet export` makes of it."""
    folder = tmp_path_factory.mktemp("detector")
    save_detector(detector, folder / "last.safetensors")
    cli.main(["export", str(folder)])
    return folder


def draw(height: int, width: int) -> np.ndarray:
    return draw_photo(3, height, width, torch.Generator().manual_seed(height))


def as_pixels(photo: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(photo).permute(2, 0, 1) / 255


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 10),
        ({"mask_channels": 0}, 10),
        ({"score_threshold": 1.0}, 0),
        ({"image_size": 96, "num_classes": 1, "proposals": 7, "detections": 100}, None),
        ({"name": "halonet_h4_base128_conv12", "image_size": 50}, 10),
    ],
    ids=["masks", "boxes", "nothing", "few", "another"],
)
def test_objects_are_the_detectors(options, count, tmp_path) -> None:
    detector = small_detector(**options).eval()
    threshold = detector.options.score_threshold
    facts = detector_export.describe_detector(detector, command="test", license=None)
    path = tmp_path / "detector.onnx"
    detector_export.write_detector(detector.fuse(), path, facts, score_threshold=threshold)
    onnx.checker.check_model(path, full_check=True)
    exported = load_onnx_detector(path)
    for height, width in SIZES:
        pixels = as_pixels(draw(height, width))
        with torch.inference_mode():
            (expected,) = detector.detect([pixels])
        (found,) = exported.detect([pixels])
        assert sorted(found) == sorted(expected)
        assert count in (None, len(found["scores"]))
        torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=0, atol=0.01)
        torch.testing.assert_close(found["scores"], expected["scores"], rtol=0, atol=1e-4)
        assert torch.equal(found["labels"], expected["labels"])
        if "masks" in expected:
            torch.testing.assert_close(found["masks"], expected["masks"], rtol=0, atol=1e-4)


def test_file_says_what_it_is(folder, detector) -> None:
    metadata = onnx.load(folder / "last.onnx").metadata_props
    facts = {entry.key: json.loads(entry.value) for entry in metadata}
    assert facts["halonet.class_names"] == ["bar", "square"]
    assert facts["halonet.category_ids"] == [3, 7]
    assert facts["halonet.options"]["detections"] == 10
    assert facts["halonet.command"] == f"halonet export {folder}"
    assert facts["halonet.license"] is None
    exported = load_onnx_detector(folder / "last.onnx")
    assert exported.options == detector.options
    assert exported.name == detector.name


def test_script_of_the_page(folder, detector, tmp_path) -> None:
    """Without torch and halonet, on three photos; masks to the pixel."""
    *_, script = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "last.onnx").symlink_to(folder / "last.onnx")
    for size in ((60, 44), (97, 131), (64, 64)):
        photo = draw(*size)
        Image.fromarray(photo).save(tmp_path / "photo.jpg", format="PNG")
        lines = subprocess.run(
            [
                sys.executable,
                "-c",
                f"import sys; sys.modules.update(torch=None, halonet=None)\n{script}",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        with torch.inference_mode():
            (expected,) = detector.detect([as_pixels(photo)])
        pasted = paste_masks_in_image(expected["masks"], expected["boxes"], size) > 0.5
        assert len(lines) == 10
        for line, label, score, mask in zip(
            lines, expected["labels"], expected["scores"], pasted, strict=True
        ):
            name, number, *_ = line.split()
            assert name == ("bar", "square")[label - 1]
            assert float(number) == pytest.approx(score.item(), abs=1e-4)
            covered = int(line.split("] ")[-1].split()[0])
            assert abs(covered - mask.sum().item()) <= 1


def test_commands_take_the_file(capsys, folder, tmp_path) -> None:
    data = draw_coco(tmp_path / "coco")
    printed, found = [], []
    for number, checkpoint in enumerate((folder, folder / "last.onnx")):
        output = tmp_path / str(number)
        capsys.readouterr()
        words = ["--data", f"coco:{data}", "--output", str(output / "scores")]
        cli.main(["detect", "evaluate", str(checkpoint), *words])
        photos = str(data / "val2017")
        words = ["--score-threshold", "0", "--output", str(output / "found")]
        cli.main(["detect", "predict", str(checkpoint), photos, *words])
        printed.append(capsys.readouterr().out.replace(str(output), ""))
        found.append(json.loads((output / "found" / "predictions.json").read_text()))
    assert printed[0] == printed[1]
    assert len(found[0]) == len(found[1]) == 40
    for one, other in zip(*found, strict=True):
        assert one["category_id"] == other["category_id"]
        assert other["bbox"] == pytest.approx(one["bbox"], abs=0.01)
        assert other["score"] == pytest.approx(one["score"], abs=1e-4)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["export", "FOLDER"], 1, "last.onnx exists already"),
        (["export", "FOLDER", "--size", "64,64"], 2, "only --license and --output go with it"),
        (["export", "FOLDER", "--precision", "int8"], 2, "in onnx and float32"),
        (["detect", "predict", "FILE", "a.png", "--device", "cuda"], 1, "device must be"),
        (["detect", "evaluate", "FILE", "--data", "coco:a", "--max-detections", "5"], 1, "is 10"),
        (["predict", "FILE", "a.png"], 1, "its metadata has no 'halonet.in_channels'"),
    ],
)
def test_mistake_is_one_line(fails, folder, words, status, said) -> None:
    places = {"FOLDER": folder, "FILE": folder / "last.onnx"}
    assert said in fails([places.get(word, word) for word in words], status)


@pytest.mark.parametrize("wrong", [1.5, math.nan])
def test_a_file_that_finds_something_else_is_refused(
    detector, monkeypatch, tmp_path, wrong
) -> None:
    write = detector_export.write_detector

    def write_wrong(fused, *words, **options):
        fused.roi_heads.box_predictor.bbox_pred.weight.mul_(wrong)
        write(fused, *words, **options)

    monkeypatch.setattr(detector_export, "write_detector", write_wrong)
    with pytest.raises(ValueError, match=r"wasn't written: its results differ"):
        detector_export.export_detector(detector, tmp_path / "detector.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda detector: detector.fuse(), ValueError, "detector is fused already"),
        (torch.compile, TypeError, "must be a Detector, got OptimizedModule"),
    ],
)
def test_detector_that_cannot_be_exported(detector, tmp_path, change, error, said) -> None:
    for export in (detector_export.export_detector, export_pyramid):
        with pytest.raises(error, match=said):
            export(change(detector), tmp_path / "detector.onnx")
    assert not list(tmp_path.iterdir())


def test_objects_of_one_score_may_change_places() -> None:
    """Of the four with a score in common two were kept that the other runtime dropped."""
    boxes = torch.arange(32.0).reshape(8, 4)
    scores = torch.tensor([0.9, 0.8, 0.5, 0.5, 0.5, 0.5, 0.2, 0.1])
    expected = {"boxes": boxes, "scores": scores, "labels": torch.ones(8, dtype=torch.long)}
    found = expected | {"boxes": boxes.clone()}
    found["boxes"][2:4] += 10
    assert detector_export.compare_objects(found, expected, 100) == 0
    found["boxes"][:2] += 10
    assert detector_export.compare_objects(found, expected, 100) == pytest.approx(0.1)
