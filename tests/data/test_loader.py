"""Samplers: order, processes, and going on in an epoch."""

import os

import pytest
import torch
from torch.utils.data import Dataset

from halonet.data.loader import EpochSampler, InOrder, make_loader


def test_epoch_goes_on_where_it_was_left():
    sampler = EpochSampler(7, seed=3)
    sampler.start(2)
    whole = list(sampler)
    sampler.start(2, skip=3)
    assert sorted(index for _, index in whole) == list(range(7))
    assert list(sampler) == whole[3:]
    assert len(sampler) == 4
    sampler.start(3)
    assert [index for _, index in sampler] != [index for _, index in whole]


def take(length, **options):
    sampler = EpochSampler(length, seed=3, **options)
    sampler.start(2)
    found = [index for _, index in sampler]
    assert len(found) == len(sampler)
    return found


@pytest.mark.parametrize("process_count", [1, 2, 3])
def test_processes_share_the_batches_of_one(process_count):
    whole = take(29)
    parts = [
        take(29, batch_size=6, process_index=index, process_count=process_count)
        for index in range(process_count)
    ]
    share = 6 // process_count
    together = []
    for start in range(0, len(parts[0]), share):
        for part in parts:
            together += part[start : start + share]
    assert together == whole[:24]


def test_processes_go_on_where_they_were_left():
    sampler = EpochSampler(29, seed=3, batch_size=6, process_index=1, process_count=2)
    sampler.start(2)
    whole = list(sampler)
    sampler.start(2, skip=12)
    assert list(sampler) == whole[6:]
    assert len(sampler) == 6
    with pytest.raises(ValueError, match="skip must be a multiple of 6, got 7"):
        sampler.start(2, skip=7)


def test_fewer_items_than_a_batch_are_one_batch():
    assert take(5, batch_size=8) == take(5)
    with pytest.raises(ValueError, match=r"at most the number of images, 5, .* got 8"):
        EpochSampler(5, 0, batch_size=8, process_count=2)
    with pytest.raises(ValueError, match="multiple of the number of processes, 3; got 8"):
        EpochSampler(50, 0, batch_size=8, process_count=3)


def test_processes_share_what_is_held_out():
    parts = [list(InOrder(7, index, 3)) for index in range(3)]
    assert parts == [[(0, 0), (0, 3), (0, 6)], [(0, 1), (0, 4)], [(0, 2), (0, 5)]]
    assert len(InOrder(7, 0, 3)) == 3


class WhoReads(Dataset):
    """Items that say which process made them, in which epoch."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return os.getpid(), index[0]


def test_workers_live_on_and_follow_the_epoch():
    sampler = EpochSampler(8, 0, batch_size=4)
    loader = make_loader(WhoReads(), sampler, 4, 1)
    processes = set()
    for epoch in range(3):
        sampler.start(epoch)
        batches = iter(loader)
        for _ in range(2):  # as the loop takes them, without asking for a batch too many
            process, seen = next(batches)
            processes |= {*process.tolist()}
            assert seen.tolist() == [epoch] * 4
    assert len(processes) == 1
    assert os.getpid() not in processes


@pytest.mark.parametrize("cuda", [False, True])
def test_batches_for_a_gpu_are_pinned(monkeypatch, cuda):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert make_loader(WhoReads(), EpochSampler(8, 0), 4, 0).pin_memory is cuda
