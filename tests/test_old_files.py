"""Runs and checkpoints of before 0.2 still load: written by 0.1, before its modules moved."""

import json
import zipfile
from pathlib import Path

import pytest
import torch

import halonet
from halonet.classification.config import make_config
from halonet.classification.evaluate import evaluate_on
from halonet.classification.training import resume
from halonet.data.sources import load_data
from halonet.detection.detector import load_detector
from halonet.training import loop
from halonet.training.checkpoint import read_config
from halonet.training.compare import read_run

ARCHIVE = Path(__file__).with_name("written_before_0_2.zip")


@pytest.fixture
def old(tmp_path):
    """A run stopped after step 5 of 8, the checkpoint that it reached unstopped, a detector."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path)
    return tmp_path


def test_stopped_run_goes_on(old, images, monkeypatch):
    run = old / "classifier"
    path = run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data": f"folder:{images}"}))
    state = torch.load(run / "state" / "step_000000005.pt", weights_only=True)
    original = loop.Trainer._step
    taken = []

    def compare_at_the_start(trainer, *arguments):
        if not taken:  # training images have changed since, so later weights are others
            assert_equal(trainer.model.state_dict(), state["model"])
            assert_equal(trainer.average.state_dict(), state["average"])
            weight = trainer.model.stem[0].weight
            moments = trainer.prepared_optimizer.optimizer.state[weight]
            written = state["optimizer"]["state"]["stem.0.weight"]
            assert_equal(moments, written)
        taken.append(trainer.progress["step"] + 1)
        return original(trainer, *arguments)

    monkeypatch.setattr(loop.Trainer, "_step", compare_at_the_start)
    result = resume(run)
    assert taken == [6, 7, 8]
    assert len((run / "metrics.csv").read_text().splitlines()) == 3
    assert result.evaluation.images == 6


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(("written", "log_with"), [(True, "tensorboard"), (False, "none")])
def test_choice_of_tensorboard_is_a_choice_of_tracker(old, written, log_with):
    run = old / "classifier"
    fields = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(fields | {"tensorboard": written}))
    assert read_config(run, make_config).log_with == log_with
    assert read_run(run).config["log_with"] == log_with
    assert "tensorboard" not in read_run(run).config


def test_checkpoint_evaluates(old, images):
    model = halonet.load_model(old / "finished.safetensors")
    assert model.class_names == ("green", "red")
    evaluation = evaluate_on(model, load_data(f"folder:{images}", validation_share=0.25))
    assert evaluation.figures == pytest.approx({"loss": 0.6930740, "accuracy": 0.5}, abs=1e-4)


def test_detector_loads(old):
    model = load_detector(old / "detector.safetensors")
    assert model.options.image_size == 64
    assert not any(value.any() for value in model.state_dict().values())
