"""Batches of training images, and how to compare them."""

import torch

from halonet.data.augmentation import Augmentation
from halonet.data.dataset import ImageDataset
from halonet.data.loader import EpochSampler, make_loader
from halonet.models.halonet import Preprocessing


def batches(data, workers=0, **options):
    dataset = ImageDataset(
        data.training,
        Preprocessing(32),
        augmentation=Augmentation(randaugment=10),
        seed=3,
        broken_share=0.2,
    )
    sampler = EpochSampler(len(dataset), 3, batch_size=4, **options)
    sampler.start(1, skip=4)
    return list(make_loader(dataset, sampler, 4 // options.get("process_count", 1), workers))


def assert_same_batches(one, other):
    assert len(one) == len(other) > 0
    for left, right in zip(one, other, strict=True):
        assert all(torch.equal(*pair) for pair in zip(left, right, strict=True))
