"""Runs: what they leave, how they go on after a stop or a kill, and how they fail."""

import csv
import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import halonet
from halonet.classification.config import check_config, make_config
from halonet.classification.evaluate import evaluate_on
from halonet.classification.recipes import get_recipe
from halonet.classification.training import make_model, resume, train
from halonet.data.sources import load_data
from halonet.training import loop
from halonet.training.loop import LossNotFinite
from tests.pictures import SMALL_MODEL, draw_folder, make_words, small_config
from tests.training.processes import interrupt_after

TIMES = {"images_per_second", "seconds", "waiting_share"}


def read_rows(run):
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        return [
            {name: value for name, value in row.items() if name not in TIMES}
            for row in csv.DictReader(file)
        ]


def assert_same_run(run, other):
    for name in ("last.safetensors", "best.safetensors"):
        one, two = load_file(run / name), load_file(other / name)
        assert one.keys() == two.keys()
        for key in one:
            assert torch.equal(one[key], two[key]), f"{name} differs in {key}"
    assert read_rows(run) == read_rows(other)


def test_run_folder(whole_run):
    run = whole_run.folder
    assert sorted(path.name for path in run.iterdir()) == [
        "best.safetensors",
        "calibration.png",
        "config.json",
        "confusion_matrix.png",
        "curves.png",
        "last.safetensors",
        "metrics.csv",
        "predictions.png",
        "report.html",
        "state",
        "summary.json",
        "tensorboard",
    ]
    for path in run.glob("*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 100
    assert [path.name for path in (run / "state").iterdir()] == ["step_000000008.pt"]
    config = json.loads((run / "config.json").read_text())
    assert make_config(config) == small_config(
        Path(config["data"].removeprefix("folder:")), checkpoint_steps=1
    )


def test_metrics_are_a_table(whole_run):
    rows = read_rows(whole_run.folder)
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "4"), ("2", "8")]
    assert float(rows[-1]["validation_accuracy"]) == whole_run.evaluation.accuracy
    assert all(float(row["training_loss"]) > 0 for row in rows)


def test_summary_and_report_tell_the_last_checkpoint(whole_run):
    summary = json.loads((whole_run.folder / "summary.json").read_text())
    assert summary["accuracy"] == whole_run.evaluation.accuracy
    assert summary["majority_share"] == 0.5
    assert summary["validation_images"] == 6
    assert summary["classes"].keys() == {"green", "red"}
    page = (whole_run.folder / "report.html").read_text()
    assert f"{100 * summary['accuracy']:.1f} %" in page
    for name in ("predictions.png", "confusion_matrix.png", "curves.png"):
        assert f'src="{name}"' in page


@pytest.mark.parametrize("name", ["last.safetensors", "best.safetensors"])
def test_checkpoints_load_anywhere(whole_run, name):
    model = halonet.load_model(whole_run.folder / name)
    assert model.class_names == ("green", "red")
    assert model.preprocessing.image_size == 32
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


def test_finished_run_resumes_to_itself(whole_run, capsys):
    before = load_file(whole_run.folder / "last.safetensors")
    again = resume(whole_run.folder)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(f"{whole_run.folder} is finished, at step 8 of 8")
    assert not any("starting from" in line for line in lines)
    assert again.evaluation.accuracy == whole_run.evaluation.accuracy
    after = load_file(whole_run.folder / "last.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_init_keeps_the_body_and_starts_another_classifier_from_zero(whole_run, tmp_path):
    other = draw_folder(tmp_path / "images", classes=3)
    config = small_config(other, init=str(whole_run.folder))
    model, _ = make_model(config, load_data(config.data))
    source = load_file(whole_run.folder / "last.safetensors")
    assert model.class_names == ("blue", "green", "red")
    assert torch.equal(model.stem[0].weight, source["stem.0.weight"])
    assert not model.classifier.weight.any()


def test_init_from_as_many_other_classes_starts_the_classifier_from_zero(whole_run, tmp_path):
    other = draw_folder(tmp_path / "images", classes=2)
    (other / "red").rename(other / "crimson")
    config = small_config(other, init=str(whole_run.folder / "best.safetensors"))
    assert not make_model(config, load_data(config.data))[0].classifier.weight.any()


def test_init_from_the_same_classes_keeps_the_classifier(whole_run, images):
    config = small_config(images, init=str(whole_run.folder))
    assert make_model(config, load_data(config.data))[0].classifier.weight.any()


@pytest.mark.parametrize("given", ["init", "pretrained"])
def test_weights_bring_the_normalization_that_they_were_trained_with(
    whole_run, images, tmp_path, given
):
    source = halonet.load_model(whole_run.folder / "last.safetensors")
    source.preprocessing = dataclasses.replace(
        source.preprocessing, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3)
    )
    halonet.save_model(source, tmp_path / "own.safetensors")
    data = load_data(str(small_config(images).data))
    config = small_config(images, **{given: str(tmp_path / "own.safetensors")})
    model, _ = make_model(config, data)
    assert model.preprocessing.mean == (0.5, 0.4, 0.3)
    assert model.preprocessing.std == (0.1, 0.2, 0.3)
    grey = dataclasses.replace(config, in_channels=1)
    assert make_model(grey, data)[0].preprocessing.mean == (0.45,)


def test_init_of_another_function_is_refused(whole_run, images, tmp_path):
    options = SMALL_MODEL | {"activation": "relu"}
    config = small_config(images, init=str(whole_run.folder), model_options=options)
    with pytest.raises(ValueError, match="activation is silu there, relu here"):
        train(config, output=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_existing_output_is_refused(whole_run, images, tmp_path):
    with pytest.raises(FileExistsError, match="holds a run already; go on with --resume"):
        train(small_config(images), output=str(whole_run.folder))
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        train(small_config(images), output=str(tmp_path))
    assert (tmp_path / "precious.txt").read_text() == "mine"


# A run in a process of its own, that kills or interrupts itself in a step, as the arguments say.
STOPPED_RUN = """
import os, signal, sys
from halonet import cli, files
from halonet.training import loop

step, how, words = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
original = loop.Trainer._step

def stop_in_step(run, *arguments):
    if run.progress["step"] + 1 == step:
        if how == "kill in writing":
            files.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        if how == "interrupt":
            os.killpg(0, signal.SIGINT)
    return original(run, *arguments)

loop.Trainer._step = stop_in_step

cli.main(words)
"""


def run_and_stop(config, output, step, how):
    return subprocess.run(
        [sys.executable, "-c", STOPPED_RUN, str(step), how, "train", *make_words(config, output)],
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def steps_taken(monkeypatch):
    """The numbers of the steps that runs of this process take."""
    taken = []
    original = loop.Trainer._step

    def note(run, *arguments):
        figures = original(run, *arguments)
        taken.append(run.progress["step"])
        return figures

    monkeypatch.setattr(loop.Trainer, "_step", note)
    return taken


def test_run_killed_while_it_writes_a_state_resumes_bit_for_bit(
    whole_run, images, tmp_path, steps_taken
):
    run = tmp_path / "run"
    stopped = run_and_stop(small_config(images, checkpoint_steps=1), run, 7, "kill in writing")
    assert stopped.returncode == -signal.SIGKILL, stopped.stderr
    left = sorted(
        path.name.partition(".tmp.")[2] or path.name for path in (run / "state").iterdir()
    )
    assert left == ["step_000000006.pt", "step_000000007.pt"]
    resume(run)
    assert steps_taken == [7, 8]
    assert_same_run(run, whole_run.folder)
    assert [path.name for path in (run / "state").iterdir()] == ["step_000000008.pt"]


def test_ctrl_c_reaches_a_run_with_workers(whole_run, images, tmp_path, steps_taken):
    run = tmp_path / "run"
    stopped = run_and_stop(small_config(images, workers=1), run, 6, "interrupt")
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stderr.splitlines() == [
        f"halonet: stopped after step 6 of 8; go on with: halonet train --resume {run}"
    ]
    resume(run)
    assert steps_taken == [7, 8]
    assert_same_run(run, whole_run.folder)


def test_stop_at_the_end_of_an_epoch_closes_its_account(whole_run, images, tmp_path):
    with interrupt_after(3, "stopped after step 4 of 8"):
        train(small_config(images), output=str(tmp_path / "run"))
    resume(tmp_path / "run")
    assert_same_run(tmp_path / "run", whole_run.folder)


def spoil_step(monkeypatch, step):
    original = loop.Trainer._step

    def spoil(run, batches, *arguments):
        if run.progress["step"] == step:
            batches[0][0].fill_(float("nan"))
        return original(run, batches, *arguments)

    monkeypatch.setattr(loop.Trainer, "_step", spoil)


def test_loss_that_is_not_finite_before_anything_is_saved(images, tmp_path, monkeypatch):
    spoil_step(monkeypatch, 0)
    with pytest.raises(LossNotFinite, match=r"at step 1 of 8; nothing was saved yet; a new run"):
        train(small_config(images), output=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()  # nothing is in the way of the next run


def test_a_failed_run_leaves_what_is_the_users(images, tmp_path, monkeypatch):
    def fail(run, *arguments):
        (tmp_path / "run" / "notes.txt").write_text("mine")
        raise ValueError("no step")

    monkeypatch.setattr(loop.Trainer, "_step", fail)
    with pytest.raises(ValueError, match="no step"):
        train(small_config(images), output=str(tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_loss_that_is_not_finite_keeps_what_was_saved(images, tmp_path, monkeypatch):
    spoil_step(monkeypatch, 5)
    with pytest.raises(LossNotFinite, match=r"loss became nan at step 6 of 8; .* keeps what was"):
        train(small_config(images), output=str(tmp_path / "run"))
    tensors = load_file(tmp_path / "run" / "last.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert [row["epoch"] for row in read_rows(tmp_path / "run")] == ["1"]


@pytest.mark.parametrize(
    ("step", "kept", "said"),
    [
        (
            8,
            ["step_000000004.pt"],
            r"step_000000008\.pt: No space left on device; .*004\.pt is kept",
        ),
        (4, [], r"step_000000004\.pt: No space left on device; no earlier state is there"),
    ],
)
def test_full_disk_keeps_the_files_before(images, tmp_path, monkeypatch, step, kept, said):
    original = torch.save

    def fill_the_disk(content, path):
        if json.loads(content["progress"])["step"] == step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(content, path)

    monkeypatch.setattr(torch, "save", fill_the_disk)
    with pytest.raises(OSError, match=said):
        train(small_config(images), output=str(tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run" / "state").iterdir()] == kept


def test_damaged_configuration_and_state_are_named(whole_run, tmp_path):
    with pytest.raises(FileNotFoundError, match="no run at"):
        resume(tmp_path)
    (tmp_path / "config.json").write_text('{"epochs": 3}')
    with pytest.raises(ValueError, match=r"config\.json is not a run's configuration"):
        resume(tmp_path)
    (tmp_path / "config.json").write_bytes((whole_run.folder / "config.json").read_bytes())
    state = tmp_path / "state" / "step_000000004.pt"
    state.parent.mkdir()
    state.write_bytes(b"rubbish")
    with pytest.raises(ValueError, match=r"can't go on from .*step_000000004"):
        resume(tmp_path)
    content = torch.load(whole_run.folder / "state" / "step_000000008.pt", weights_only=True)
    content["model"]["stem.0.scale"] = content["model"].pop("stem.0.weight")
    torch.save(content, state)
    said = r"its weights are of another model: missing \['stem.0.weight'\], .*\['stem.0.scale'\]"
    with pytest.raises(ValueError, match=said):
        resume(tmp_path)


def test_mixup_and_cutmix_of_grey_images_train(images, tmp_path):
    config = small_config(images, mixup=0.2, cutmix=1.0, in_channels=1, epochs=1)
    result = train(config, output=str(tmp_path / "run"))
    model = halonet.load_model(result.folder / "last.safetensors")
    assert model.preprocessing.mean == (0.45,)


def test_without_averaging_the_model_itself_is_evaluated_and_saved(images, tmp_path):
    run = tmp_path / "run"
    config = small_config(images, averaging_decay=0.0)
    whole = train(config, output=str(run))
    state = torch.load(run / "state" / "step_000000008.pt", weights_only=True)
    saved = load_file(run / "last.safetensors")
    assert state["average"] is None
    for name, value in saved.items():
        torch.testing.assert_close(state["model"][name], value, rtol=0, atol=0)
    assert evaluate_on(halonet.load_model(run / "last.safetensors"), whole.data).loss == (
        pytest.approx(whole.evaluation.loss, rel=1e-5)
    )
    again = resume(run)
    assert again.evaluation.loss == whole.evaluation.loss
    with interrupt_after(5, "stopped after step 6 of 8"):
        train(config, output=str(tmp_path / "stopped"))
    resume(tmp_path / "stopped")
    assert_same_run(tmp_path / "stopped", run)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("learning_rate", float("nan")),
        ("image_size", 16),
        ("clip_norm", -1.0),
        ("label_smoothing", 1.0),
        ("in_channels", 4),
        ("mixed_precision", "fp8"),
        ("schedule", "linear"),
        ("batch_norm", "global"),
        ("log_with", "paper"),
    ],
)
def test_value_that_no_run_can_have_is_named(field, value):
    with pytest.raises(ValueError, match=field):
        check_config(dataclasses.replace(get_recipe("elpv"), **{field: value}))


def test_model_options_of_a_wrong_type_are_named(images, tmp_path):
    config = small_config(images, model_options={"layers": ["1", "1", "1", "1"]})
    with pytest.raises(ValueError, match="model_options"):
        train(config, output=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_mixed_precision(images, tmp_path):
    states = []
    for precision in ("no", "bf16"):
        config = small_config(images, mixed_precision=precision, epochs=1)
        result = train(config, output=str(tmp_path / precision))
        states.append(load_file(result.folder / "last.safetensors"))
    full, mixed = states
    assert {name: tensor.dtype for name, tensor in mixed.items()} == {
        name: tensor.dtype for name, tensor in full.items()
    }
    assert not torch.equal(mixed["stem.0.weight"], full["stem.0.weight"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU fp16 is supported")
def test_fp16_is_refused_where_it_would_be_ignored(images, tmp_path):
    with pytest.raises(ValueError, match=r"mixed_precision must be no or bf16 on a CPU.*'fp16'"):
        train(small_config(images, mixed_precision="fp16"), output=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_backend_is_the_one_asked_for(images, tmp_path):
    with pytest.raises(ValueError, match="backend must be one of"):
        train(small_config(images, backend="fastest"), output=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(NotImplementedError, match="CUDA"):
        train(small_config(images, backend="triton"), output=str(tmp_path / "run"))
