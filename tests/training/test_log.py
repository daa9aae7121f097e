"""Logs: a line for a person, a table, and TensorBoard's, written over where a run goes back."""

import csv

from halonet.training.log import LOG_FOLDER, RunLog, describe_epoch, write_metrics


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


def test_resumed_run_writes_over_its_later_steps(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(tmp_path, 0, wanted=True) as log:
        for step in range(1, 5):
            log.add_step(step, {"loss": float(step), "stop": 0.0})
    with RunLog(tmp_path, 2, wanted=True) as log:
        log.add_step(3, {"loss": 30.0, "stop": 0.0})
        log.add_epoch({"epoch": 1, "step": 3, "seconds": 2.0})
    events = EventAccumulator(str(tmp_path / LOG_FOLDER)).Reload()
    assert sorted(events.Tags()["scalars"]) == ["epoch/seconds", "step/loss"]
    assert [(one.step, one.value) for one in events.Scalars("step/loss")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 30.0),
    ]


def test_unwanted_log_leaves_nothing(tmp_path):
    with RunLog(tmp_path, 0, wanted=False) as log:
        log.add_step(1, {"loss": 1.0})
    assert not [*tmp_path.iterdir()]
