"""The training loop of every task, from the first step to the last evaluation."""

import itertools
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from tqdm import tqdm

from halonet.data.listing import Listing
from halonet.data.loader import EpochSampler, InOrder, make_loader
from halonet.data.randomness import mix_seed
from halonet.models.metadata import LAST_NAME
from halonet.training.checkpoint import find_states, load_state, save_state
from halonet.training.config import RunConfig
from halonet.training.log import describe_epoch, log_epoch, log_step, track_run, write_metrics
from halonet.training.optimizer import make_optimizer, make_schedule
from halonet.training.pace import Pace
from halonet.training.parallel import Whole, agree, do_once, gather_whole, share_buffers
from halonet.training.task import Task


class TrainingInterrupted(Exception):
    """The run was stopped by a signal; its state is saved, to resume from."""


class LossNotFinite(Exception):
    """The loss or its gradient is infinite or nan; what was saved before is kept."""


class Trainer:
    """The training loop, and all that it works with.

    Args:
        task: what is trained.
        accelerator: from `make_accelerator`.

    Raises:
        ValueError: an unknown optimizer, or a batch that the processes can't share.
    """

    def __init__(self, task: Task, accelerator: Accelerator) -> None:
        self.task = task
        self.config = config = task.config
        self.accelerator = accelerator
        self.is_main = accelerator.is_main_process
        model = task.model
        if config.batch_norm == "synchronized":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model = model
        # What is evaluated and saved. It is a model of its own without averaging too, since the
        # one that is trained may be split, compiled or run in another precision.
        self.average = ModelEmaV3(
            model, decay=config.averaging_decay, use_warmup=True, foreach=True
        )
        optimizer = make_optimizer(model, config, **task.layer_rates)

        length, processes = len(task.training), accelerator.num_processes
        self.sampler = EpochSampler(
            length,
            config.seed,
            batch_size=config.batch_size,
            process_index=accelerator.process_index,
            process_count=processes,
        )
        self.images_per_step = min(config.batch_size, length)
        # Of few images, too, each batch of a step has as many as the others, or one less.
        batch_size = math.ceil(self.images_per_step / (processes * config.accumulation_steps))
        self.training_loader = make_loader(
            task.training, self.sampler, batch_size, config.workers, collate=task.collate
        )
        order = InOrder(len(task.validation), accelerator.process_index, processes)
        self.validation_loader = make_loader(
            task.validation, order, 2 * batch_size, config.workers, collate=task.collate
        )
        self.batches_per_step = math.ceil(self.images_per_step / (batch_size * processes))
        self.steps_per_epoch = max(1, length // config.batch_size)
        self.steps = config.epochs * self.steps_per_epoch
        self.schedule = make_schedule(optimizer, config, self.steps)

        self.prepared_model, self.prepared_optimizer = accelerator.prepare(model, optimizer)
        self.average.to(accelerator.device)
        if config.compile:
            self.model.compile()

        self.listing: Listing | None = None
        self.allow_changed_data = False
        self.pace = Pace(
            model,
            accelerator.device,
            operations=task.count_flops() * self.images_per_step / processes,
            batches=self.batches_per_step,
        )

        # What the state keeps of the loop, as JSON.
        self.progress: dict[str, Any] = {
            "step": 0,
            "seconds": 0.0,  # of the run, evaluation included
            "epoch_seconds": 0.0,  # of this epoch's steps
            "epoch_waiting": 0.0,  # the part of them spent waiting for images
            "epoch_figures": {},  # sums over this epoch's steps
            "best_score": -1.0,
            "rows": [],
        }

    def go(self, folder: Path, *, allow_changed_data: bool = False) -> Any:
        """Train to the end, from the last saved step if there is one.

        The README describes what it writes into `folder`.

        Args:
            folder: of the run.
            allow_changed_data: go on where the data aren't those of the last saved step.

        Returns:
            The last evaluation.
        """
        self.allow_changed_data = allow_changed_data
        self.listing = do_once(self.accelerator, self.task.list_data)
        saved = load_state(folder, self)
        progress = self.progress = saved or self.progress
        if self.is_main:
            print(self.task.start if saved is None else self._describe_saved(folder), flush=True)
            if self.images_per_step < self.config.batch_size and not self._is_finished:
                print(
                    f"batch_size {self.config.batch_size}: a step takes all "
                    f"{self.images_per_step} training images",
                    flush=True,
                )
        evaluation = None
        bar = tqdm(
            total=self.steps * self.images_per_step,
            initial=progress["step"] * self.images_per_step,
            unit="img",
            desc="training",
            dynamic_ncols=True,
            disable=None if self.is_main else True,  # None: off where it is no terminal
        )
        tracked = track_run(self.accelerator, self.config, folder, progress["step"])
        with bar, tracked, _stop_signals() as stop:
            while not self._is_finished:
                epoch, done = divmod(progress["step"], self.steps_per_epoch)
                self.sampler.start(epoch, done * self.images_per_step)
                batches = iter(self.training_loader)
                stopped = False
                while progress["step"] < (epoch + 1) * self.steps_per_epoch:
                    started = time.perf_counter()
                    taken = [*itertools.islice(batches, self.batches_per_step)]
                    waited = time.perf_counter() - started
                    figures = self._step(taken, folder, stop)
                    elapsed = time.perf_counter() - started
                    progress["seconds"] += elapsed
                    progress["epoch_seconds"] += elapsed
                    progress["epoch_waiting"] += waited
                    self._tell(self.pace.end_step(started, waited), bar)
                    log_step(self.accelerator, progress["step"], figures)
                    bar.update(self.images_per_step)
                    bar.set_postfix_str(self._describe_steps(), refresh=False)
                    stopped = figures["stop"] > 0
                    if progress["step"] % self.steps_per_epoch:
                        self._save_within_epoch(folder, stopped)
                evaluation = self._end_epoch(folder, bar)
                if self._is_patience_over and progress["step"] < self.steps:
                    self._tell(
                        f"ended after epoch {epoch + 1}: {self.config.patience} evaluations "
                        f"without a better {self.task.score}",
                        bar,
                    )
                elif stopped and progress["step"] < self.steps:
                    raise self._interruption(folder)
        if evaluation is None:  # the run was finished already
            self._copy_weights()
            evaluation = self._evaluate()
        return evaluation

    def _describe_saved(self, folder: Path) -> str:
        place = f"step {self.progress['step']} of {self.steps}"
        if self._is_finished:
            return f"{folder} is finished, at {place}: its last checkpoint is scored again"
        return f"going on with {folder} from {place}"

    @property
    def _is_finished(self) -> bool:
        return self.progress["step"] >= self.steps or self._is_patience_over

    @property
    def _is_patience_over(self) -> bool:
        """Whether the last `patience` evaluations were no better than one before."""
        name = f"validation_{self.task.score}"
        # A score of nan, where nothing counts, is never better.
        scores = [
            -math.inf if math.isnan(row[name]) else row[name]
            for row in self.progress["rows"]
            if name in row
        ]
        patience = self.config.patience
        if not 0 < patience < len(scores):
            return False
        return max(scores[-patience:]) <= max(scores[:-patience])

    def _step(self, batches: list, folder: Path, stop: list[int]) -> dict[str, float]:
        """One update, all of whose randomness is keyed by the seed, the step and the process."""
        config, step, accelerator = self.config, self.progress["step"], self.accelerator
        torch.manual_seed(mix_seed(config.seed, step, accelerator.process_index))
        set_training(self.prepared_model, freeze_norms=config.batch_norm == "frozen")
        self.schedule.step_update(step)
        sums: dict[str, Tensor] = {}
        counts = [len(batch[0]) for batch in batches]
        for place, (batch, count) in enumerate(zip(batches, counts, strict=True), start=1):
            share = count / sum(counts)  # each image weighs the same
            last = place == len(batches)
            with nullcontext() if last else accelerator.no_sync(self.prepared_model):
                with _naming_batch_size(config):
                    loss, figures = self.task.compute_loss(self.prepared_model, batch)
                accelerator.backward(loss * share)
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + value.detach() * share
        norm = accelerator.clip_grad_norm_(
            self.prepared_model.parameters(), config.clip_norm or math.inf
        )
        # The step's one transfer to the host, before the weights change. The processes decide
        # together: one that stopped alone would leave the others waiting.
        gradient = {"gradient": gather_whole(torch.as_tensor(norm))}
        agreed = agree(accelerator, sums | gradient, bool(stop))
        self.pace.mark_computed()
        self._require_finite("loss", agreed["loss"], folder)
        # With fp16 infinite gradients are expected; the scaler skips the step. It reads that from
        # the device itself, which has nothing left to do by then.
        if config.mixed_precision != "fp16":
            self._require_finite("gradient", agreed["gradient"], folder)
        self.prepared_optimizer.step()
        self.prepared_optimizer.zero_grad()
        if config.averaging_decay:
            self.average.update(Whole(self.model), step=step)

        self.progress["step"] += 1
        totals = self.progress["epoch_figures"]
        for name in sums:
            totals[name] = totals.get(name, 0.0) + agreed[name]
        del agreed["gradient"]
        return agreed | {"learning_rate": self.learning_rate}

    def _tell(self, line: str | None, bar: tqdm) -> None:
        if line is not None and self.is_main:
            with bar.external_write_mode():
                print(line, file=sys.stderr, flush=True)

    @property
    def learning_rate(self) -> float:
        """The last step's, of layers without a factor of their own."""
        group = self.prepared_optimizer.param_groups[0]
        return group["lr"] / group.get("lr_scale", 1.0)

    def _require_finite(self, what: str, value: float, folder: Path) -> None:
        if not math.isfinite(value):
            raise LossNotFinite(
                f"the {what} became {value} at step {self.progress['step'] + 1} of {self.steps}; "
                f"{self._describe_kept(folder)}; a new run with a smaller learning_rate may help"
            )

    def _describe_kept(self, folder: Path) -> str:
        if find_states(folder):
            return f"{folder} keeps what was saved before"
        return "nothing was saved yet"

    def _epoch_means(self) -> dict[str, float]:
        steps = (self.progress["step"] - 1) % self.steps_per_epoch + 1
        return {name: total / steps for name, total in self.progress["epoch_figures"].items()}

    def _describe_steps(self) -> str:
        return ", ".join(
            f"{name} {value:.3f}" for name, value in self._epoch_means().items() if value
        )

    def _save_within_epoch(self, folder: Path, stopped: bool) -> None:
        every, step = self.config.checkpoint_steps, self.progress["step"]
        if stopped or (every and step % every == 0):
            save_state(folder, self)
        if stopped:
            raise self._interruption(folder)

    def _interruption(self, folder: Path) -> TrainingInterrupted:
        return TrainingInterrupted(
            f"stopped after step {self.progress['step']} of {self.steps}; "
            f"go on with: {self.task.resume_command} {folder}"
        )

    def _end_epoch(self, folder: Path, bar: tqdm) -> Any:
        """Evaluate where it is due, write the epoch's figures, and save."""
        progress, config = self.progress, self.config
        self._copy_weights()
        started = time.perf_counter()
        epoch = progress["step"] // self.steps_per_epoch
        evaluation = None
        scores: dict[str, float] = {}
        if epoch == config.epochs or epoch % config.evaluate_epochs == 0:
            evaluation = self._evaluate()
            scores = evaluation.figures
            if not math.isfinite(scores.get("loss", 0.0)):
                raise LossNotFinite(
                    f"the held-out loss became {scores['loss']} after epoch {epoch}; "
                    f"{self._describe_kept(folder)}; a new run with a smaller learning_rate may "
                    "help"
                )
        progress["seconds"] += time.perf_counter() - started
        row = {
            "epoch": epoch,
            "step": progress["step"],
            "learning_rate": self.learning_rate,
            **{f"training_{name}": value for name, value in self._epoch_means().items()},
            **{f"validation_{name}": value for name, value in scores.items()},
            "images_per_second": self.steps_per_epoch
            * self.images_per_step
            / progress["epoch_seconds"],
            "waiting_share": progress["epoch_waiting"] / progress["epoch_seconds"],
            "seconds": progress["seconds"],
        }
        progress["rows"].append(row)
        progress["epoch_figures"] = {}
        progress["epoch_seconds"] = progress["epoch_waiting"] = 0.0
        if self.is_main:
            self.task.save(self.average.module, folder / LAST_NAME)
            # A score of nan (nothing counts) is never below the best: the last checkpoint is kept.
            if evaluation is not None and not scores[self.task.score] <= progress["best_score"]:
                progress["best_score"] = scores[self.task.score]
                self.task.save(self.average.module, folder / "best.safetensors")
            write_metrics(folder, progress["rows"])
            log_epoch(self.accelerator, row)
            with bar.external_write_mode():
                print(describe_epoch(row, config.epochs), flush=True)
        save_state(folder, self)
        return evaluation

    def _copy_weights(self) -> None:
        """Without averaging, bring what is evaluated and saved to where the training is."""
        if not self.config.averaging_decay:
            self.average.set(Whole(self.model))

    def _evaluate(self) -> Any:
        share_buffers(self.average.module)
        return self.task.evaluate(self.average.module, self.validation_loader, self.accelerator)


def set_training(model: nn.Module, *, freeze_norms: bool) -> None:
    """Put a model into training mode; frozen batch norms keep their statistics.

    A batch norm whose parameters aren't trained is frozen too.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
            freeze_norms or not any(one.requires_grad for one in module.parameters())
        ):
            module.eval()


@contextmanager
def _naming_batch_size(config: RunConfig) -> Iterator[None]:
    """Say what to change where batch norm has a single value in each channel."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel"):
            raise
        raise ValueError(
            f"batch_size {config.batch_size} in {config.accumulation_steps} accumulation_steps "
            "leaves one image in a batch, too few for batch norm; take a larger batch_size, fewer "
            "accumulation_steps or processes, or batch_norm frozen"
        ) from None


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM, to stop after the step; a second one stops at once."""
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
