"""Random changes that can be made again: seeds, and whose generators they start."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def own_random_state() -> Iterator[None]:
    """Put the global random states back at the end: torch's on the CPU, Python's and numpy's."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def seed_everything(seed: int) -> None:
    """Start torch's generator on the CPU, Python's and numpy's at a seed of 63 bits."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed([seed % 2**32, seed >> 32])


def mix_seed(*numbers: int) -> int:
    """One seed of 63 bits for several numbers, each of which changes all of it."""
    mixed = np.random.SeedSequence([number % 2**32 for number in numbers])
    return int(mixed.generate_state(1, np.uint64)[0] >> 1)
