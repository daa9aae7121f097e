"""The training loop: one story from the data to the report."""

import dataclasses
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor
from torchvision.transforms import v2
from tqdm import tqdm

from halonet.models.halonet import HaloNet, create_model
from halonet.models.pretrained import load_model, load_weights, save_model
from halonet.training.checkpoint import (
    check_output,
    find_checkpoint,
    load_state,
    new_run_folder,
    read_config,
    save_state,
    write_config,
)
from halonet.training.config import TrainingConfig, check_config
from halonet.training.data import LabelledImages, load_data
from halonet.training.evaluate import Evaluation, evaluate
from halonet.training.images import EpochSampler, ImageDataset, InOrder, make_loader, mix_seed
from halonet.training.report import write_metrics, write_report


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run leaves: its folder, its data, and the last checkpoint's scores."""

    folder: Path
    data: LabelledImages
    evaluation: Evaluation
    minutes: float


class TrainingInterrupted(Exception):
    """The run was asked to stop; its state is saved and `resume` goes on with it."""


class LossNotFinite(Exception):
    """The loss or its gradient is infinite or not a number; what was saved before is kept."""


def train(config: TrainingConfig, *, output: str | None = None) -> TrainingResult:
    """Train a model by a configuration, in a new run folder.

    Args:
        config: from a recipe, see `halonet.training.recipes`.
        output: the run folder; None means runs/RECIPE, or the first free runs/RECIPE-2, ...

    Raises:
        ValueError, FileNotFoundError: a configuration that can't run, or images that can't be read.
        FileExistsError: `output` holds something.
        ModuleNotFoundError: the data needs a package that isn't installed.
        OSError: a file can't be written; what was saved before is kept.
        TrainingInterrupted: Ctrl-C or SIGTERM; the state is saved.
        LossNotFinite: the loss or its gradient left the numbers.
    """
    check_config(config)
    if output is not None:
        check_output(output)
    run = _Run(config)  # before the folder: what can't run leaves none
    folder = new_run_folder(output, config.recipe)
    write_config(folder, config)
    return run.go(folder)


def resume(folder: Path) -> TrainingResult:
    """Go on with the run in `folder` from its last saved step, exactly.

    Raises:
        FileNotFoundError: `folder` holds no run.
        ValueError: its configuration or its state is damaged.
        Others as `train` does.
    """
    config = read_config(folder)
    check_config(config)
    return _Run(config).go(folder)


class _Run:
    """A run's parts, and the loop that moves them."""

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        # Of an earlier run of this process, which may have had another precision.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(mixed_precision=config.mixed_precision)
        # accelerate goes on in float32 without a word.
        if config.mixed_precision == "fp16" and not self.accelerator.native_amp:
            raise ValueError(
                "mixed_precision must be no or bf16 on a CPU, where fp16 isn't supported; "
                f"got {config.mixed_precision!r}"
            )
        self.is_main = self.accelerator.is_main_process
        self.data = load_data(
            config.data, data_root=config.data_root, validation_share=config.validation_share
        )

        torch.manual_seed(config.seed)
        self.model = _make_model(config, self.data)
        self.average = ModelEmaV3(
            self.model, decay=config.averaging_decay, use_warmup=True, foreach=True
        )
        self.optimizer = create_optimizer_v2(
            self.model,
            opt=config.optimizer,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
        )

        training = ImageDataset(
            self.data.training,
            self.model.preprocessing,
            in_channels=config.in_channels,
            augmentation=config.augmentation,
            seed=config.seed,
        )
        validation = ImageDataset(
            self.data.validation, self.model.preprocessing, in_channels=config.in_channels
        )
        training.prepare("training images", self.is_main)
        validation.prepare("held-out images", self.is_main)
        self.sampler = EpochSampler(len(training), config.seed)
        drop_last = len(training) >= config.batch_size
        self.training_loader = make_loader(
            training, self.sampler, config.batch_size, config.workers, drop_last
        )
        self.validation_loader = make_loader(
            validation, InOrder(len(validation)), 2 * config.batch_size, config.workers
        )
        self.images_per_step = min(config.batch_size, len(training))
        self.steps_per_epoch = len(self.training_loader)
        self.steps = config.epochs * self.steps_per_epoch
        self.schedule = CosineLRScheduler(
            self.optimizer,
            t_initial=self.steps,
            lr_min=config.learning_rate * config.final_learning_rate_share,
            warmup_t=round(self.steps * config.warmup_share),
            warmup_lr_init=0.0,
            t_in_epochs=False,
        )
        self.mix = _make_mix(config, len(self.data.class_names))

        self.prepared_model, self.prepared_optimizer = self.accelerator.prepare(
            self.model, self.optimizer
        )
        self.average.to(self.accelerator.device)
        self.accelerator.register_for_checkpointing(self.average)
        if config.compile:
            self.model.compile()

        # All that the loop knows, as it is saved: JSON.
        self.progress: dict[str, Any] = {
            "step": 0,
            "seconds": 0.0,  # of the run, evaluation included
            "epoch_seconds": 0.0,  # of this epoch's steps
            "best_accuracy": -1.0,
            "epoch_loss": 0.0,
            "epoch_right": 0.0,
            "rows": [],
        }

    def go(self, folder: Path) -> TrainingResult:
        self.progress = load_state(folder, self.accelerator) or self.progress
        progress = self.progress
        evaluation = None
        bar = tqdm(
            total=self.steps * self.images_per_step,
            initial=progress["step"] * self.images_per_step,
            unit="img",
            desc="training",
            dynamic_ncols=True,
            disable=None if self.is_main else True,  # None: off where it is no terminal
        )
        with bar, _stop_signals() as stop:
            while progress["step"] < self.steps:
                epoch, done = divmod(progress["step"], self.steps_per_epoch)
                self.sampler.start(epoch, done * self.config.batch_size)
                started = time.perf_counter()
                for images, labels, _ in self.training_loader:
                    self._step(images, labels, folder)
                    elapsed = time.perf_counter() - started
                    progress["seconds"] += elapsed
                    progress["epoch_seconds"] += elapsed
                    started += elapsed
                    bar.update(self.images_per_step)
                    self._show(bar)
                    if progress["step"] % self.steps_per_epoch:
                        self._save_within_epoch(folder, bool(stop))
                evaluation = self._end_epoch(folder, bar)
                if stop and progress["step"] < self.steps:
                    raise self._interruption(folder)
        if evaluation is None:  # resumed after the last step
            evaluation = self._evaluate()
        minutes = progress["seconds"] / 60
        result = TrainingResult(folder, self.data, evaluation, minutes)
        if self.is_main:
            write_report(
                folder,
                self.average.module,
                self.data,
                evaluation,
                progress["rows"],
                minutes=minutes,
            )
        return result

    def _step(self, images: Tensor, labels: Tensor, folder: Path) -> None:
        """One update, all of whose randomness is keyed by the seed, the step and the process."""
        config, step = self.config, self.progress["step"]
        torch.manual_seed(mix_seed(config.seed, step, self.accelerator.process_index))
        device = self.accelerator.device
        images = images.to(device, memory_format=torch.channels_last)
        labels = labels.to(device)
        targets = labels
        if self.mix is not None:
            images, targets = self.mix(images, labels)

        self.prepared_model.train()
        self.schedule.step_update(step)
        logits = self.prepared_model(images)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=config.label_smoothing)
        if not torch.isfinite(loss):
            raise LossNotFinite(
                f"the loss became {loss.item()} at step {step + 1} of {self.steps}; {folder} keeps "
                "what was saved before; a smaller learning_rate may help"
            )
        self.accelerator.backward(loss)
        norm = torch.as_tensor(
            self.accelerator.clip_grad_norm_(
                self.prepared_model.parameters(), config.clip_norm or math.inf
            )
        )
        # With fp16 an infinite gradient is daily bread: the scaler skips the step.
        if config.mixed_precision != "fp16" and not torch.isfinite(norm):
            raise LossNotFinite(
                f"the gradient became {norm.item()} at step {step + 1} of {self.steps}; {folder} "
                "keeps what was saved before; a smaller learning_rate may help"
            )
        self.prepared_optimizer.step()
        self.prepared_optimizer.zero_grad()
        if config.averaging_decay:
            self.average.update(self.model, step=step)
        else:
            self.average.set(self.model)

        self.progress["step"] += 1
        self.progress["epoch_loss"] += loss.item()
        self.progress["epoch_right"] += (logits.argmax(1) == labels).float().mean().item()

    def _show(self, bar: tqdm) -> None:
        steps = (self.progress["step"] - 1) % self.steps_per_epoch + 1
        bar.set_postfix_str(
            f"loss {self.progress['epoch_loss'] / steps:.3f}, "
            f"accuracy {100 * self.progress['epoch_right'] / steps:.1f} %",
            refresh=False,
        )

    def _save_within_epoch(self, folder: Path, stop: bool) -> None:
        every, step = self.config.checkpoint_steps, self.progress["step"]
        if stop or (every and step % every == 0):
            save_state(folder, self.accelerator, self.progress)
        if stop:
            raise self._interruption(folder)

    def _interruption(self, folder: Path) -> TrainingInterrupted:
        return TrainingInterrupted(
            f"stopped after step {self.progress['step']} of {self.steps}; "
            f"go on with: halonet train --resume {folder}"
        )

    def _end_epoch(self, folder: Path, bar: tqdm) -> Evaluation | None:
        """Close the epoch's account, evaluate where it is due, and save."""
        progress, config = self.progress, self.config
        started = time.perf_counter()
        epoch = progress["step"] // self.steps_per_epoch
        evaluation = None
        if epoch == config.epochs or epoch % config.evaluate_epochs == 0:
            evaluation = self._evaluate()
            if not math.isfinite(evaluation.loss):
                raise LossNotFinite(
                    f"the held-out loss became {evaluation.loss} after epoch {epoch}; {folder} "
                    "keeps what was saved before; a smaller learning_rate may help"
                )
        images = self.steps_per_epoch * self.images_per_step
        progress["seconds"] += time.perf_counter() - started
        row = {
            "epoch": epoch,
            "step": progress["step"],
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "training_loss": progress["epoch_loss"] / self.steps_per_epoch,
            "training_accuracy": progress["epoch_right"] / self.steps_per_epoch,
            "validation_loss": evaluation and evaluation.loss,
            "validation_accuracy": evaluation and evaluation.accuracy,
            "images_per_second": images / progress["epoch_seconds"],
            "seconds": progress["seconds"],
        }
        progress["rows"].append(row)
        progress["epoch_loss"] = progress["epoch_right"] = progress["epoch_seconds"] = 0.0
        if self.is_main:
            save_model(self.average.module, folder / "last.safetensors")
            if evaluation is not None and evaluation.accuracy > progress["best_accuracy"]:
                progress["best_accuracy"] = evaluation.accuracy
                save_model(self.average.module, folder / "best.safetensors")
            write_metrics(folder, progress["rows"])
            with bar.external_write_mode():
                print(describe_epoch(row, config.epochs), flush=True)
        save_state(folder, self.accelerator, progress)
        return evaluation

    def _evaluate(self) -> Evaluation:
        return evaluate(
            self.average.module,
            self.validation_loader,
            len(self.data.class_names),
            self.accelerator.device,
        )


def describe_epoch(row: dict[str, Any], epochs: int) -> str:
    """One line on an epoch for a person."""
    line = (
        f"epoch {row['epoch']}/{epochs}  loss {row['training_loss']:.3f}  "
        f"accuracy {100 * row['training_accuracy']:.1f} %"
    )
    if row["validation_accuracy"] is not None:
        line += (
            f"  held out: loss {row['validation_loss']:.3f}  "
            f"accuracy {100 * row['validation_accuracy']:.1f} %"
        )
    return line


def _make_model(config: TrainingConfig, data: LabelledImages) -> HaloNet:
    options: dict[str, Any] = {"image_size": config.image_size, **config.model_options}
    try:
        model = create_model(
            config.model,
            num_classes=len(data.class_names),
            in_channels=config.in_channels,
            backend=config.backend,
            **options,
        )
    except TypeError as error:  # a text where a number belongs
        raise ValueError(f"model_options {config.model_options} don't fit: {error}") from None
    model.preprocessing = dataclasses.replace(
        model.preprocessing, crop_share=config.central_crop_share
    )
    if config.in_channels == 1:
        model.preprocessing = dataclasses.replace(model.preprocessing, mean=(0.45,), std=(0.225,))
    if config.init is not None:
        checkpoint = find_checkpoint(Path(config.init))
        load_weights(model, checkpoint)
        # As many classes may be others.
        if load_model(checkpoint).class_names != data.class_names:
            model.reset_classifier(len(data.class_names))
    model.class_names = data.class_names
    return model.to(memory_format=torch.channels_last)


def _make_mix(config: TrainingConfig, num_classes: int) -> v2.Transform | None:
    """Mixup, CutMix, one of them for each batch, or nothing."""
    mixes: list[v2.Transform] = []
    if config.mixup:
        mixes.append(v2.MixUp(alpha=config.mixup, num_classes=num_classes))
    if config.cutmix:
        mixes.append(v2.CutMix(alpha=config.cutmix, num_classes=num_classes))
    return v2.RandomChoice(mixes) if mixes else None


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM, to stop between two steps; a second one stops at once."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
