"""halonet benchmark: its rows, its scores and what it leaves; not its times."""

import json
import math
import re
import shutil
import sys
import tempfile

import pytest
import torch

from halonet import cli
from halonet.classification.training import train
from halonet.export import benchmark
from tests.pictures import small_config

EVERYWHERE = [
    *(("torch", "float32"), ("onnx", "float32"), ("onnx", "float16"), ("onnx", "int8")),
    ("openvino", "float32"),
]


def run(capsys, *words) -> str:
    capsys.readouterr()
    cli.main(["benchmark", *map(str, words)])
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def at_once(monkeypatch, tmp_path):
    """One short turn of each, with temporary folders that the test can see."""
    monkeypatch.setattr(benchmark, "ROUNDS", 1)
    monkeypatch.setattr(benchmark, "TURN_SECONDS", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_every_format_has_the_models_scores(capsys, whole_run, tmp_path):
    rows = json.loads(run(capsys, whole_run.folder, "--threads", 1, "--format", "json"))
    rows = {(row["format"], row["precision"]): row for row in rows}
    bfloat16 = rows.pop(("torch", "bfloat16"))
    assert list(rows) == EVERYWHERE
    assert bfloat16["problem"] or 0 < bfloat16["difference"] < 0.1
    assert not [row["problem"] for row in rows.values() if row["problem"]]
    limits = dict(zip(EVERYWHERE, [1e-5, 1e-5, 0.1, 1, 1e-5], strict=True))
    for name, row in rows.items():
        assert row["difference"] <= limits[name]
        assert list(row["milliseconds"]) == ["1", "16"]
        assert min(row["milliseconds"].values()) > 0
        if row["precision"] == "float32":
            assert row["figures"]["accuracy"] == whole_run.evaluation.accuracy
            assert row["figures"]["loss"] == pytest.approx(whole_run.evaluation.loss, rel=1e-5)
    sizes = [row["bytes"] for row in rows.values()]
    assert sizes[0] == (whole_run.folder / "last.safetensors").stat().st_size
    assert sizes[1] > sizes[2]
    assert not list(tmp_path.iterdir())


def test_what_does_not_run_is_a_row(capsys, monkeypatch, whole_run, tmp_path):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(benchmark, "EXPORTS", [("onnx", "float32"), ("openvino", "float32")])

    def refuse(*words, **options):
        raise ValueError("of no use")

    monkeypatch.setattr("halonet.export.onnx_file.write_onnx", refuse)
    lines = run(capsys, whole_run.folder, "--images", 3).splitlines()
    assert lines[0].split() == [
        *("format", "precision", "ms,", "batch", "1", "ms,", "batch", "16", "MB", "accuracy"),
        "difference",
    ]
    assert lines[3].split() == ["onnx", "float32", *"-----"]
    assert "onnx float32 doesn't run: of no use" in lines
    assert "openvino float32 doesn't run: openvino is not installed" in lines
    assert "accuracy on 3 held-out images" in lines[-1]
    assert not list(tmp_path.iterdir())


def test_logits_that_are_not_finite_are_a_problem(capsys, monkeypatch, whole_run):
    contestant = benchmark._Contestant

    def make(model):
        return contestant(model, lambda images: torch.full((len(images), 2), math.nan))

    monkeypatch.setattr(benchmark, "_make_bfloat16", make)
    monkeypatch.setattr(benchmark, "EXPORTS", [])
    rows = json.loads(run(capsys, whole_run.folder, "--format", "json"))
    model, broken = rows
    assert model["problem"] is None
    assert broken["problem"] == "its logits are not finite"
    assert broken["difference"] is None  # JSON has no nan


def test_mistake_is_one_line(fails, whole_run, tmp_path):
    assert "--images must be 1 or more, got 0" in fails(
        ["benchmark", whole_run.folder, "--images", 0], 2
    )
    assert "--threads must be 1 or more" in fails(
        ["benchmark", whole_run.folder, "--threads", -1], 2
    )
    alone = tmp_path / "model.safetensors"
    alone.write_bytes((whole_run.folder / "last.safetensors").read_bytes())
    assert "lies in no run folder, whose images the formats are scored on" in fails(
        ["benchmark", alone]
    )


def test_broken_images_that_the_run_allows(capsys, images, monkeypatch, tmp_path):
    shutil.copytree(images, tmp_path / "images")
    for path in sorted((tmp_path / "images").rglob("*.*"))[::3]:
        path.write_bytes(b"not an image")
    config = small_config(tmp_path / "images", broken_share=0.6)
    folder = train(config, output=str(tmp_path / "run")).folder
    monkeypatch.setattr(benchmark, "EXPORTS", [("onnx", "int8")])
    rows = json.loads(run(capsys, folder, "--threads", 1, "--format", "json"))
    assert [row["problem"] for row in rows if row["precision"] != "bfloat16"] == [None, None]
    cli.main(["export", str(folder), "--precision", "int8"])
    assert re.search(r"accuracy on 6 held-out images: .* % of the file", capsys.readouterr().out)
