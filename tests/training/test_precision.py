"""The line about bfloat16 where it is slow, and its absence where it isn't or isn't used."""

import dataclasses

import pytest

from halonet.classification.recipes import get_recipe
from halonet.training import precision
from halonet.training.parallel import make_accelerator


@pytest.mark.parametrize(
    ("mixed_precision", "factor", "lines"), [("bf16", 30.0, 1), ("bf16", 0.6, 0), ("no", 30.0, 0)]
)
def test_slow_bfloat16_is_one_line(monkeypatch, capsys, mixed_precision, factor, lines):
    monkeypatch.setattr(precision, "compare_bfloat16", lambda: factor)
    make_accelerator(dataclasses.replace(get_recipe("small"), mixed_precision=mixed_precision))
    found = capsys.readouterr().err.splitlines()
    assert len(found) == lines
    assert all("takes 30.0 times as long as in float32" in line for line in found)


def test_comparison_times_both_types(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(precision.time, "perf_counter", lambda: float(next(clock)))
    assert precision.compare_bfloat16() == 1.0
