"""Runs of two processes: the same as one, whether split weights or not, and after one is killed."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from halonet.classification.training import resume, train
from halonet.training.checkpoint import find_states
from halonet.training.parallel import ProcessLost, naming_lost_process
from tests.pictures import draw_folder, make_words, small_config
from tests.training.processes import assert_close_runs, assert_equal_runs

# One process runs them all: they share a launcher, which takes seconds to start.
pytestmark = pytest.mark.xdist_group("processes")


def make_trial(images, **changes):
    """Without what differs between processes: batch norm's statistics and the mixing of images."""
    return small_config(
        images,
        **{
            "optimizer": "sgd",
            "learning_rate": 0.02,
            "cutmix": 0.0,
            "batch_norm": "frozen",
            "checkpoint_steps": 1,
            "log_with": "none",
            **changes,
        },
    )


@pytest.fixture(scope="session")
def alone(images, tmp_path_factory):
    """A trial by one process."""
    return train(make_trial(images), output=str(tmp_path_factory.mktemp("runs") / "alone"))


def test_accumulated_batches_equal_one_batch(alone, images, tmp_path):
    result = train(make_trial(images, accumulation_steps=2), output=str(tmp_path / "run"))
    assert_close_runs(result.folder, alone.folder)
    assert result.evaluation.loss == pytest.approx(alone.evaluation.loss, rel=1e-5)


@pytest.mark.parametrize(("batch_size", "accumulation_steps"), [(16, 2), (18, 3)])
def test_images_of_short_batches_weigh_the_same(tmp_path, batch_size, accumulation_steps):
    folder = draw_folder(tmp_path / "images", images=7)  # 10 to train on
    config = make_trial(folder, validation_share=0.28, batch_size=10)
    one = train(config, output=str(tmp_path / "one"))
    assert len(one.data.training.labels) == 10
    changes = {"batch_size": batch_size, "accumulation_steps": accumulation_steps}
    many = train(dataclasses.replace(config, **changes), output=str(tmp_path / "many"))
    assert_close_runs(many.folder, one.folder)


def test_a_batch_of_one_image_names_batch_size(images, tmp_path):
    config = make_trial(images, batch_norm="local", batch_size=2, accumulation_steps=2)
    with pytest.raises(ValueError, match=r"batch_size 2 in 2 accumulation_steps leaves one image"):
        train(config, output=str(tmp_path / "run"))


@pytest.mark.parametrize("shard_weights", [False, True], ids=["ddp", "fsdp"])
def test_two_processes_equal_one_and_survive_a_lost_one(
    alone, images, launch, tmp_path, shard_weights
):
    config = make_trial(images, shard_weights=shard_weights)
    whole = launch(["train", *make_words(config, tmp_path / "whole")])
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.count("held-out accuracy") == 1
    assert_close_runs(tmp_path / "whole", alone.folder)
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["loss"] == pytest.approx(alone.evaluation.loss, rel=1e-5)
    assert summary["accuracy"] == alone.evaluation.accuracy

    killed = launch(["train", *make_words(config, tmp_path / "killed")], kill_in_step=7)
    assert killed.returncode != 0
    lost = [line for line in killed.stderr.splitlines() if line.startswith("halonet:")]
    assert lost == [
        f"halonet: lost another process of this run; go on with: halonet train --resume {tmp_path / 'killed'}"
    ]
    assert [path.name for path in find_states(tmp_path / "killed")] == ["step_000000006.pt"]
    again = launch(["train", "--resume", str(tmp_path / "killed")])
    assert again.returncode == 0, again.stderr
    assert_equal_runs(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize("command", ["halonet train --resume", "halonet detect train --resume"])
def test_lost_process_is_named_with_the_command_of_its_task(command):
    accelerator = SimpleNamespace(num_processes=2)
    advised = rf"lost another process of this run; go on with: {command} runs/a$"
    with (
        pytest.raises(ProcessLost, match=advised),
        naming_lost_process(accelerator, command, lambda: Path("runs/a")),
    ):
        raise RuntimeError("gloo: connection closed by peer")
    with (
        pytest.raises(ProcessLost, match=r"lost another process of this run$"),
        naming_lost_process(accelerator, command, lambda: None),
    ):
        raise RuntimeError("gloo: connection closed by peer")


def test_run_goes_on_with_another_number_of_processes(alone, images, launch, tmp_path):
    config = make_trial(images)
    killed = launch(["train", *make_words(config, tmp_path / "run")], kill_in_step=6)
    assert killed.returncode != 0
    assert [path.name for path in find_states(tmp_path / "run")] == ["step_000000005.pt"]
    result = resume(tmp_path / "run")
    assert_close_runs(result.folder, alone.folder)


def test_more_processes_than_held_out_images_by_torchrun(images, tmp_path):
    paths = sorted(images.rglob("*.png"))
    parts = ["val", *["train"] * (len(paths) - 1)]
    lines = [f"{path},{path.parent.name},{part}" for path, part in zip(paths, parts, strict=True)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,split", *lines]))
    changes = {"data": f"csv:{tmp_path / 'labels.csv'}", "batch_size": 6, "epochs": 1}
    words = make_words(make_trial(images, **changes), tmp_path / "run")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    run = subprocess.run(
        [*torchrun, "--nproc-per-node=2", "-m", "halonet", "train", *words],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["validation_images"] == 1
    result = train(make_trial(images, **changes), output=str(tmp_path / "alone"))
    assert summary["loss"] == pytest.approx(result.evaluation.loss, rel=1e-5)
