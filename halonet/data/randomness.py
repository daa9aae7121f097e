"""Reproducible random changes: seeds, and the generators that they are for."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def own_random_state() -> Iterator[None]:
    """Restore the random states of torch (CPU), Python and numpy at the end."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def seed_everything(seed: int) -> None:
    """Seed the global generators of torch (CPU), Python and numpy with 63 bits."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed([seed % 2**32, seed >> 32])


def mix_seed(*numbers: int) -> int:
    """A seed of 63 bits from several numbers, every one of which affects every bit."""
    mixed = np.random.SeedSequence([number % 2**32 for number in numbers])
    return int(mixed.generate_state(1, np.uint64)[0] >> 1)
