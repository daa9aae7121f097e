"""A detector's backbone and pyramid in ONNX: the levels are the backbone's, at every size."""

import json

import onnx
import pytest
import torch

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


def test_half_precision_is_named_and_eight_bits_are_refused(detector, tmp_path) -> None:
    path = tmp_path / "pyramid.onnx"
    report = export_pyramid(detector, path, precision="float16", license="CC0-1.0")
    assert max(report.differences.values()) <= 1e-2
    facts = {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}
    assert (facts["halonet.precision"], facts["halonet.license"]) == ("float16", "CC0-1.0")
    with pytest.raises(ValueError, match=r"must be float32 or float16, got 'int8'"):
        export_pyramid(detector, tmp_path / "small.onnx", precision="int8")
    assert list(tmp_path.iterdir()) == [path]
