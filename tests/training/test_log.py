"""Logs: the printed line, the table, and the trackers."""

import csv
import dataclasses
from contextlib import contextmanager
from typing import get_args

import pytest
from accelerate import tracking
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType

from halonet.classification.recipes import get_recipe
from halonet.training.config import LogWith
from halonet.training.log import describe_epoch, log_epoch, log_step, track_run, write_metrics
from halonet.training.parallel import make_accelerator


def test_line_of_an_epoch():
    row = {
        "epoch": 2,
        "training_loss": 0.5,
        "training_replaced_images": 0.0,
        "training_accuracy": 0.25,
        "validation_mask_ap": 0.125,
        "seconds": 3.0,
    }
    assert (
        describe_epoch(row, 8)
        == "epoch 2/8  loss 0.500  accuracy 25.0 %  held out:  mask ap 12.5 %"
    )
    row["training_replaced_images"] = 0.02
    assert "replaced images 2.0 %" in describe_epoch(row, 8)


def test_epoch_without_evaluation_has_empty_fields(tmp_path):
    write_metrics(tmp_path, [{"epoch": 1}, {"epoch": 2, "validation_loss": 0.5}])
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert [*csv.DictReader(file)] == [
            {"epoch": "1", "validation_loss": ""},
            {"epoch": "2", "validation_loss": "0.5"},
        ]


@contextmanager
def tracked(folder, step=0, **changes):
    config = dataclasses.replace(get_recipe("small"), **changes)
    accelerator = make_accelerator(config)
    with track_run(accelerator, config, folder, step):
        yield accelerator


def test_resumed_run_writes_over_its_later_steps(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.summary.writer import event_file_writer

    # Files of one second are read in the order of a number in their names, 10 before 9.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    with tracked(tmp_path) as accelerator:
        for step in range(1, 5):
            log_step(accelerator, step, {"loss": float(step), "stop": 0.0})
    with tracked(tmp_path, step=2) as accelerator:
        log_step(accelerator, 3, {"loss": 30.0, "stop": 0.0})
        log_epoch(accelerator, {"epoch": 1, "step": 3, "seconds": 2.0})
    assert [path.name for path in tmp_path.iterdir()] == ["tensorboard"]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["epoch/seconds", "step/loss"]
    assert [(one.step, one.value) for one in events.Scalars("step/loss")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 30.0),
    ]


def test_no_tracker_leaves_nothing(tmp_path):
    with tracked(tmp_path, log_with="none") as accelerator:
        log_step(accelerator, 1, {"loss": 1.0})
    assert not [*tmp_path.iterdir()]


class Kept(GeneralTracker):
    """A tracker that keeps what it is told."""

    name = "wandb"
    requires_logging_directory = False

    def __init__(self, project, **options):
        super().__init__()
        self.project, self.options = project, options
        self.told = []

    @property
    def tracker(self):
        return self.told

    def store_init_configuration(self, values):
        self.told.append(values)

    def log(self, values, step=None):
        self.told.append((values, step))

    def finish(self):
        self.told.append("finished")


def test_any_tracker_is_told_the_configuration_and_the_figures(tmp_path, monkeypatch):
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Kept)
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.WANDB])
    with tracked(tmp_path, log_with="wandb", decay_shares=(0.5,)) as accelerator:
        log_step(accelerator, 1, {"loss": 0.5})
        (tracker,) = accelerator.trackers
    assert (tracker.project, tracker.options["dir"]) == ("halonet", str(tmp_path))
    values, *figures = tracker.told
    assert (values["epochs"], values["decay_shares"]) == (40, "[0.5]")
    assert figures == [({"step/loss": 0.5}, 1), "finished"]


def test_tracker_that_does_not_start_is_named(tmp_path, monkeypatch):
    class Refusing(Kept):
        def start(self):
            raise RuntimeError("no account")

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Refusing)
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.WANDB])
    said = "log_with 'wandb' can't start: no account"
    with pytest.raises(ValueError, match=said), tracked(tmp_path, log_with="wandb"):
        pass


def test_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.TENSORBOARD])
    said = r"log_with 'wandb' .* pip install wandb; the installed trackers are tensorboard"
    with pytest.raises(ModuleNotFoundError, match=said), tracked(tmp_path, log_with="wandb"):
        pass


def test_trackers_are_those_of_accelerate():
    assert {*get_args(LogWith)} == {"none", *map(str, LoggerType)}
