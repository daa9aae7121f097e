"""Samplers and loaders: the order of the images, and their batches."""

import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from halonet.data.randomness import mix_seed


class EpochSampler(Sampler[tuple[int, int]]):
    """Every index once an epoch, in an order that the seed and the epoch decide.

    The order is cut into global batches, each of which is cut into one slice for each process:
    all processes together see the batches that one process alone would see. Items that fill no
    whole batch are left out, except where all of them are fewer than one batch.

    `start(epoch, skip)` says which epoch comes next and how many of its items are done already.

    Args:
        length: number of items.
        seed: of the order.
        batch_size: items of a global batch, of all processes together.
        process_index: which slice of each batch this process takes.
        process_count: number of processes; it divides `batch_size`.

    Raises:
        ValueError: the processes can't share a batch evenly.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        *,
        batch_size: int = 1,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        if batch_size % process_count:
            raise ValueError(
                f"batch_size must be a multiple of the number of processes, {process_count}; "
                f"got {batch_size}"
            )
        if length < batch_size and process_count > 1:
            raise ValueError(
                f"batch_size must be at most the number of images, {length}, where there is more "
                f"than one process; got {batch_size}"
            )
        self.length = length
        self.seed = seed
        self.batch_size = min(batch_size, length)
        self.process_index = process_index
        self.process_count = process_count
        self.epoch = 0
        self.skip = 0

    def start(self, epoch: int, skip: int = 0) -> None:
        """Begin with item `skip` of epoch `epoch`, a multiple of the batch size."""
        if skip % self.batch_size:
            raise ValueError(f"skip must be a multiple of {self.batch_size}, got {skip}")
        self.epoch, self.skip = epoch, skip

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch))
        order = torch.randperm(self.length, generator=generator)
        share = self.batch_size // self.process_count
        for batch in self._batches():
            first = batch + self.process_index * share
            for index in order[first : first + share].tolist():
                yield self.epoch, index

    def __len__(self) -> int:
        return len(self._batches()) * (self.batch_size // self.process_count)

    def _batches(self) -> range:
        """Where the whole batches start."""
        return range(self.skip, self.length - self.batch_size + 1, self.batch_size)


class InOrder(Sampler[tuple[int, int]]):
    """Every index once, in order, as `ImageDataset` asks for them; or each n-th of n processes."""

    def __init__(self, length: int, process_index: int = 0, process_count: int = 1) -> None:
        self.indices = range(process_index, length, process_count)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((0, index) for index in self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def make_loader(
    dataset: Dataset,
    sampler: Sampler,
    batch_size: int,
    workers: int,
    collate: Callable[[list], Any] | None = None,
) -> DataLoader:
    """Batches (images [batch, channels, size, size], labels, broken [batch]), as sampled.

    The workers live as long as the loader: what an item depends on comes with its index.
    """
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=_ignore_interrupt,
    )


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C reaches workers too; they go on, since the main process finishes its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
