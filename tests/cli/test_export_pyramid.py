"""A detector's backbone and pyramid in ONNX: the levels are the backbone's, at every size."""

import json

import onnx
import pytest
import torch

from halonet import cli
from halonet.detection.detector import save_detector
from halonet.export.check import relative_difference
from halonet.export.onnx_classifier import open_session
from halonet.export.pyramid import LEVELS, export_pyramid
from tests.detection.pictures import small_detector

SIZES = ((32, 32), (32, 640), (33, 47), (61, 37), (97, 131), (64, 96), (199, 72))


@pytest.fixture(scope="module")
def detector():
    return small_detector().eval()


def test_levels_are_the_backbones(detector, tmp_path) -> None:
    path = tmp_path / "pyramid.onnx"
    report = export_pyramid(detector, path)
    assert list(report.differences) == [
        f"{batch} x {size}" for size in ("97 x 131", "160 x 64") for batch in (1, 2)
    ]
    written = onnx.load(path)
    onnx.checker.check_model(written, full_check=True)
    facts = {entry.key: json.loads(entry.value) for entry in written.metadata_props}
    assert facts["halonet.levels"] == ["4", "8", "16", "32", "pool"]
    assert facts["halonet.image_size"] == 64
    session = open_session(path)
    for height, width in SIZES:
        for batch in (1, 5):
            images = torch.randn(batch, 3, height, width)
            with torch.inference_mode():
                expected = detector.backbone(images)
            found = session.run(list(LEVELS), {"images": images.numpy()})
            for name, one in zip(LEVELS, found, strict=True):
                assert one.shape == tuple(expected[name].shape)
                difference = relative_difference(torch.from_numpy(one), expected[name])
                assert difference <= 5e-5, (height, width, batch, name)


def test_command_writes_the_pyramid_of_a_detector(capsys, fails, detector, tmp_path) -> None:
    checkpoint = tmp_path / "model.safetensors"
    save_detector(detector, checkpoint)
    cli.main(["export", str(checkpoint), "--precision", "float16"])
    first, second, third, _ = capsys.readouterr().out.splitlines()
    assert "the detector's heads are left out" in first
    assert "model.onnx: " in second
    assert "(2 x 160 x 64)" in third
    assert "exists already" in fails(["export", checkpoint])
    (tmp_path / "model.onnx").unlink()
    said = fails(["export", checkpoint, "--precision", "int8"])
    assert "precision of a pyramid must be float32 or float16, got 'int8'" in said
    said = fails(["export", checkpoint, "--size", "64,64"], 2)
    assert "of a detector, --format is onnx" in said
    assert [one.name for one in tmp_path.iterdir()] == ["model.safetensors"]
