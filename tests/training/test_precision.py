"""The line about bfloat16 where it is slow, and its absence where it isn't or isn't used."""

import pytest

from halonet import devices
from halonet.classification.training import train
from halonet.training import precision
from tests.pictures import small_config


@pytest.mark.parametrize(
    ("mixed_precision", "factor", "lines"), [("bf16", 30.0, 1), ("bf16", 0.6, 0), ("no", 30.0, 0)]
)
def test_slow_bfloat16_is_one_line(
    images, tmp_path, monkeypatch, capsys, mixed_precision, factor, lines
):
    monkeypatch.setattr(precision, "compare_bfloat16", lambda: factor)
    config = small_config(images, epochs=1, mixed_precision=mixed_precision)
    train(config, output=str(tmp_path / "run"))
    found = [line for line in capsys.readouterr().err.splitlines() if "bf16" in line]
    assert len(found) == lines
    assert all("takes 30.0 times as long as in float32" in line for line in found)


def test_comparison_times_both_types(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(devices.time, "perf_counter", lambda: float(next(clock)))
    assert precision.compare_bfloat16() == 1.0
