"""Random changes: what they make of bytes."""

import pytest
import torch
from PIL import Image

from halonet.data.augmentation import Augmentation
from halonet.data.dataset import ImageDataset
from halonet.data.loader import InOrder
from halonet.data.randomness import own_random_state, seed_everything
from halonet.data.splits import Split
from halonet.data.transforms import make_augmentation
from halonet.models.halonet import Preprocessing


@pytest.mark.parametrize("magnitude", [1, 10, 31])
@pytest.mark.parametrize("mean", [(0.485, 0.456, 0.406), (0.45,)], ids=["colour", "grey"])
def test_randaugment_changes_bytes_to_bytes(mean, magnitude):
    change = make_augmentation(
        Augmentation((1.0, 1.0), False, randaugment=magnitude, randaugment_layers=1),
        Preprocessing(32, mean=mean),
    )
    pixels = torch.arange(32 * 32).remainder(256).byte().view(32, 32).expand(len(mean), 32, 32)
    with own_random_state():
        changed = []
        for seed in range(60):
            seed_everything(seed)
            changed.append(change(pixels))
    assert {one.dtype for one in changed} == {torch.uint8}
    assert {one.shape for one in changed} == {pixels.shape}
    assert len({one.numpy().tobytes() for one in changed}) > 10


def test_randaugment_goes_above_ten_and_fills_with_the_mean():
    change = make_augmentation(
        Augmentation((1.0, 1.0), False, randaugment=31, randaugment_layers=1), Preprocessing(32)
    )
    operations = {one.name: one for one in change.transforms[-1].change.ops}
    assert len(operations) == 15
    with own_random_state():
        seed_everything(0)
        moved = operations["TranslateXRel"](Image.new("RGB", (32, 32), "white"))
    assert set(moved.get_flattened_data()) == {(124, 116, 104)}  # out of the picture


def test_no_change_gives_the_centre(tmp_path):
    path = tmp_path / "wide.png"
    image = Image.new("L", (99, 33), 0)
    image.paste(255, (33, 0, 66, 33))
    image.save(path)
    dataset = ImageDataset(
        Split([path], [0]), Preprocessing(32, 1.0, (0.0,), (1.0,)), in_channels=1
    )
    pixels = dataset[next(iter(InOrder(1)))][0]
    assert pixels.shape == (1, 32, 32)
    assert pixels.mean() > 0.95


def test_quarter_turns_reach_all_four():
    turn = make_augmentation(
        Augmentation(crop_share=(1.0, 1.0), horizontal_flip=False, quarter_turns=True),
        Preprocessing(32),
    )
    pixels = torch.arange(3 * 32 * 32, dtype=torch.float32).reshape(3, 32, 32)
    expected = [torch.rot90(pixels, turns, (1, 2)) for turns in range(4)]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        found = [turn(pixels) for _ in range(30)]
    for one in expected:
        assert any(torch.equal(one, other) for other in found)
