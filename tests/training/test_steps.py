"""A step of the loop: what it reads from the device, what it copies, and what stops it."""

import pytest
import torch
from torch import nn

from halonet.classification.config import TrainingConfig
from halonet.classification.training import Classification
from halonet.training.loop import LossNotFinite, Trainer
from halonet.training.parallel import Whole, make_accelerator
from tests.pictures import small_config

READS = ["item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__"]


class Line:
    """A task of two weights."""

    collate = None
    training = validation = range(8)

    def __init__(self, config):
        self.config = config
        self.layer_rates = {}
        self.model = nn.Linear(1, 1)

    def compute_loss(self, model, batch):
        loss = model(batch).square().mean()
        return loss, {"loss": loss, "figure": loss + 1}

    def count_flops(self):
        return 2


def make_trainer(**changes):
    config = TrainingConfig(batch_size=4, optimizer="sgd", log_with="none", **changes)
    return Trainer(Line(config), make_accelerator(config))


def watch(monkeypatch, owner, name, note):
    """Call `note` before a method."""
    original = getattr(owner, name)

    def call(*arguments, **options):
        note(*arguments, **options)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("batches", [1, 2])
def test_host_reads_the_device_once_a_step(tmp_path, monkeypatch, batches):
    trainer = make_trainer()
    reads = []
    for name in READS:
        watch(monkeypatch, torch.Tensor, name, lambda *_, name=name: reads.append(name))
    figures = trainer._step([torch.ones(4, 1)] * batches, tmp_path, [])
    assert reads == ["tolist"]
    assert figures.keys() == {"loss", "figure", "stop", "learning_rate"}
    assert figures["figure"] == pytest.approx(figures["loss"] + 1, rel=1e-5)


def test_weights_are_copied_for_averaging_only(tmp_path, monkeypatch):
    copies = []
    watch(monkeypatch, Whole, "state_dict", lambda whole: copies.append(whole))
    averaging = make_trainer(averaging_decay=0.9)
    averaging._step([torch.ones(4, 1)], tmp_path, [])
    assert len(copies) == 1
    make_trainer(averaging_decay=0.0)._step([torch.ones(4, 1)], tmp_path, [])
    assert len(copies) == 1


def test_gradient_that_is_not_finite_stops_before_the_weights_change(tmp_path, monkeypatch):
    trainer = make_trainer(clip_norm=1.0)
    before = [parameter.clone() for parameter in trainer.model.parameters()]

    def lose(model, batch):  # the root's slope at 0
        loss = (model(batch) * 0).abs().sqrt().mean()
        return loss, {"loss": loss}

    monkeypatch.setattr(trainer.task, "compute_loss", lose)
    with pytest.raises(LossNotFinite, match="gradient became nan at step 1"):
        trainer._step([torch.ones(4, 1)], tmp_path, [])
    for parameter, value in zip(trainer.model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)


def test_loss_of_a_batch_waits_for_no_device(images, monkeypatch):
    config = small_config(images, mixup=0.2, cutmix=1.0, backend="reference")
    task = Classification(config, make_accelerator(config))
    batch = next(iter(torch.utils.data.DataLoader([task.training[0, 0]] * 4, 4)))
    task.device = torch.device("meta")  # whose values nobody can read
    waiting = []
    watch(
        monkeypatch, torch.Tensor, "to",
        lambda tensor, *given, **options: waiting.append((given, options)),
    )  # fmt: skip
    _, figures = task.compute_loss(task.model.to("meta"), batch)
    assert {one.device.type for one in figures.values()} == {"meta"}
    copies = [options for given, options in waiting if given == (task.device,)]
    assert len(copies) == 3
    assert all(options["non_blocking"] for options in copies)
