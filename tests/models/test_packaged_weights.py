"""The weights that come with the package: small, read only when asked for, and worth something."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import halonet
from halonet.classification.evaluate import evaluate_on
from halonet.data.sources import load_data
from halonet.models.creation import find_weights
from halonet.models.variants import VARIANTS
from tests.detection.pictures import SHARED, needs_shared_data

PATH = Path(find_weights(VARIANTS["halonet_tiny"], True))


def test_file_is_small_and_has_its_card() -> None:
    assert PATH.stat().st_size < 3_000_000
    card = PATH.with_suffix(".md").read_text()
    assert "not commercial" in card
    assert "halonet train --recipe tiny_imagenet" in card


def test_importing_reads_no_weights() -> None:
    code = (
        "import sys; opened = []; "
        "sys.addaudithook(lambda name, values: opened.append(str(values[0])) if name == 'open' "
        "else None); import halonet; print([one for one in opened if one.endswith('safetensors')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_classes_and_preprocessing_come_along_unless_others_are_asked_for() -> None:
    model = halonet.create_model("halonet_tiny", pretrained=True)
    assert model.num_classes == len(model.class_names or ()) == 200
    assert (model.preprocessing.image_size, model.preprocessing.crop_share) == (64, 1.0)
    grey = halonet.create_model(
        "halonet_tiny", pretrained=True, num_classes=3, in_channels=1, image_size=96, block_size=6
    )
    assert (grey.class_names, grey.preprocessing.image_size) == (None, 96)
    assert not grey.classifier.weight.any()
    image = torch.rand(1, 1, 96, 96)
    color = halonet.create_model("halonet_tiny", pretrained=True, block_size=6).eval()
    maps = color.forward_features(image.expand(-1, 3, -1, -1))
    assert torch.allclose(grey.eval().forward_features(image), maps, atol=1e-4)


@needs_shared_data
def test_accuracy_is_the_cards() -> None:
    data = load_data(f"shards:{SHARED / 'tiny_imagenet'}")
    model = halonet.load_model(PATH)
    evaluation = evaluate_on(model.fuse(), data.with_classes(model.class_names or ()))
    stated = re.search(r"held-out accuracy \| (\d+\.\d) %", PATH.with_suffix(".md").read_text())
    assert stated is not None
    # A rounding may move a few of 5,000 photos.
    assert abs(100 * evaluation.figures["accuracy"] - float(stated[1])) < 0.15


def test_other_models_have_none() -> None:
    with pytest.raises(ValueError, match="pretrained must be False or a file for halonet_h0: only"):
        halonet.create_model("halonet_h0", pretrained=True)
