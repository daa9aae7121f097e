"""Training a classifier: its data, its model, its loss and its scores."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from halonet.classification.config import (
    TrainingConfig,
    check_config,
    list_frozen,
    make_config,
)
from halonet.classification.evaluate import (
    LARGEST_CONFUSION,
    Evaluation,
    collect_predictions,
    score,
)
from halonet.classification.loss import make_loss
from halonet.classification.multilabel import MultilabelEvaluation
from halonet.classification.report import write_report
from halonet.data.dataset import ImageDataset
from halonet.data.listing import Listing, list_images
from halonet.data.splits import LabelledImages
from halonet.models.building import build_classifier
from halonet.models.classifier import Classifier, Preprocessing
from halonet.models.creation import PACKAGED, find_variant, find_weights, load_pretrained
from halonet.models.flops import count_flops
from halonet.models.metadata import find_checkpoint, read_description
from halonet.models.pretrained import LoadReport, ModelDescription, load_weights, save_model
from halonet.models.variants import TimmVariant
from halonet.training.run import RunResult, resume_run, start_run


def train(config: TrainingConfig, *, output: str | None = None) -> RunResult[LabelledImages, Any]:
    """Train a classifier by a configuration, in a new run folder; see `start_run`."""
    return start_run(Classification, config, output=output)


def resume(folder: Path, *, allow_changed_data: bool = False) -> RunResult[LabelledImages, Any]:
    """Go on with the run in `folder` from its last saved step, exactly; see `resume_run`."""
    return resume_run(Classification, folder, allow_changed_data=allow_changed_data)


class Classification:
    """The task of `halonet train`; see `halonet.training.task.Task`."""

    resume_command = "halonet train --resume"
    collate = None
    make_config = staticmethod(make_config)
    check_config = staticmethod(check_config)

    def __init__(self, config: TrainingConfig, accelerator: Accelerator) -> None:
        self.config = config
        self.score = "accuracy" if config.task == "multiclass" else "mean_average_precision"
        self.device = accelerator.device
        check_start(config)  # before the data are read
        with accelerator.local_main_process_first():  # it alone downloads
            self.data = config.load_data(config.task, show_progress=accelerator.is_main_process)
        if accelerator.is_main_process:
            print(self.data.describe(), flush=True)
        torch.manual_seed(config.seed)
        self.model, self.start = make_model(config, self.data)
        for name in list_frozen(config.freeze):
            self.model.parts[name].requires_grad_(False)
        self.layer_rates = {
            "layer_decay": config.layer_decay,
            "classifier_rate": config.classifier_rate,
        }
        self.training = ImageDataset(
            self.data.training,
            self.model.preprocessing,
            in_channels=config.in_channels,
            augmentation=config.augmentation,
            seed=config.seed,
            broken_share=config.broken_share,
        )
        self.validation = ImageDataset(
            self.data.validation,
            self.model.preprocessing,
            in_channels=config.in_channels,
            broken_share=config.broken_share,
        )
        self.broken: set[int] = set()  # training images that this process could not read
        problems = []
        for part, what in ((self.training, "training"), (self.validation, "held-out")):
            try:
                part.prepare(f"{what} images", accelerator.is_main_process)
            except ValueError as error:
                problems.append(f"{what}: {error}")
        if problems:  # of both parts, so that all are known at once
            raise ValueError("; ".join(problems))
        self.mix = make_mix(config, len(self.data.class_names))
        self.loss = make_loss(config, self.data).to(self.device)

    def list_data(self) -> Listing:
        """The images, for a resumed run to compare."""
        return list_images(self.data)

    def compute_loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, its accuracy, and the share of images that were replaced.

        There is no accuracy where images have several labels.

        Raises:
            ValueError: more images can't be read than the configuration allows.
        """
        images, labels, broken = batch
        self.broken.update(place for place in broken.tolist() if place >= 0)
        self.training.check_broken(self.broken)
        images = images.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        broken = broken.to(self.device, non_blocking=True)
        targets = labels
        if self.mix is not None:
            images, targets = self.mix(images, labels)
            images = images.contiguous(memory_format=torch.channels_last)  # torch.roll loses it
        logits = model(images)
        loss = self.loss(logits.float(), targets)
        figures = {"loss": loss}
        if labels.ndim == 1:
            figures["accuracy"] = (logits.argmax(1) == labels).float().mean()
        return loss, figures | {"replaced_images": (broken >= 0).float().mean()}

    def count_flops(self) -> int:
        """Operations of one image's forward pass."""
        return count_flops(
            self.model.variant,
            self.model.preprocessing.image_size,
            num_classes=self.model.num_classes,
            in_channels=self.model.in_channels,
        )

    def evaluate(
        self, model: nn.Module, loader: DataLoader, accelerator: Accelerator
    ) -> Evaluation | MultilabelEvaluation:
        """Scores on all held-out images, each process running the model on its part.

        Raises:
            ValueError: more images can't be read than the configuration allows.
        """
        classes = len(self.data.class_names)
        predictions = collect_predictions(
            model, loader, accelerator.device, keep_probabilities=classes <= LARGEST_CONFUSION
        )
        evaluation = score(gather_object([predictions]), classes)
        self.validation.check_broken(evaluation.broken_indices)
        return evaluation

    def save(self, model: nn.Module, path: Path) -> None:
        """Write the weights with all that `halonet.load_model` needs."""
        save_model(model, path)

    def write_report(
        self,
        folder: Path,
        model: Classifier,
        evaluation: Evaluation | MultilabelEvaluation,
        rows: list[dict],
        *,
        minutes: float,
    ) -> None:
        """Write report.html, summary.json and the pictures."""
        write_report(folder, model, self.data, evaluation, rows, start=self.start, minutes=minutes)


def make_model(config: TrainingConfig, data: LabelledImages) -> tuple[Classifier, str]:
    """The model that a configuration asks for, for the classes of the data.

    With it comes a line about the weights it starts from, and what of them was replaced.

    Raises:
        ValueError: options that don't fit. FileNotFoundError: no weights to start from.
        ConnectionError: public weights can't be fetched.
    """
    model = _build_model(config, len(data.class_names))
    if config.central_crop_share is not None:
        model.preprocessing = dataclasses.replace(
            model.preprocessing, crop_share=config.central_crop_share
        )
    if config.in_channels == 1:
        model.preprocessing = dataclasses.replace(model.preprocessing, mean=(0.45,), std=(0.225,))
    stored = report = known = None  # stored: the description of the weights, of ours
    if config.init is not None:
        checkpoint = find_checkpoint(Path(config.init))
        report = load_weights(model, checkpoint)
        stored = read_description(checkpoint, ModelDescription)
        # The number of classes may be the same though the classes are others.
        # A softmax's weights are no sigmoid's.
        known = (stored.class_names, stored.task)
    elif config.pretrained is not False:
        report = load_pretrained(model, config.pretrained)
        if not isinstance(model.variant, TimmVariant):
            path = find_weights(model.variant, config.pretrained)
            stored = read_description(path, ModelDescription)
        known = (model.class_names, model.task)
    if stored is not None:
        _adopt_normalization(model, stored.preprocessing)
    start = "starting from nothing: all weights are fresh"
    if report is not None:
        from_zero = bool(report.started_from_zero)
        if known != (data.class_names, config.task):
            model.reset_classifier(len(data.class_names))
            from_zero = True
        start = _describe_start(config, report, from_zero)
    model.class_names = data.class_names
    model.task = config.task
    return model.use_channels_last(), start


def check_start(config: TrainingConfig) -> None:
    """Raise what `make_model` would for a model or for weights that can't be, without the data."""
    with torch.device("meta"):  # without memory
        model = _build_model(config, num_classes=2)
    if config.init is not None:
        read_description(find_checkpoint(Path(config.init)), ModelDescription)
    elif config.pretrained is not False and not isinstance(model.variant, TimmVariant):
        read_description(find_weights(model.variant, config.pretrained), ModelDescription)


def _build_model(config: TrainingConfig, num_classes: int) -> Classifier:
    options: dict[str, Any] = dict(config.model_options)
    if config.image_size is not None:
        options = {"image_size": config.image_size, **options}
    try:
        return build_classifier(
            find_variant(config.model, **options),
            num_classes=num_classes,
            in_channels=config.in_channels,
            backend=config.backend,
        )
    except TypeError as error:  # text in place of a number
        raise ValueError(f"model_options {config.model_options} don't fit: {error}") from None


def _adopt_normalization(model: Classifier, stored: Preprocessing) -> None:
    """Give a model the mean and deviation that its weights were trained with."""
    if len(stored.mean) in (1, model.in_channels):
        model.preprocessing = dataclasses.replace(
            model.preprocessing, mean=stored.mean, std=stored.std
        )


def _describe_start(config: TrainingConfig, report: LoadReport, from_zero: bool) -> str:
    source = config.init or config.pretrained
    if source is True:
        source = f"the public weights of {config.model}{PACKAGED.get(config.model, '')}"
    parts = [f"starting from {source}"]
    if report.interpolated:
        parts.append(f"{len(report.interpolated)} tables interpolated")
    if from_zero:
        parts.append("the classifier starts from zero")
    return "; ".join(parts)


def make_mix(config: TrainingConfig, num_classes: int) -> v2.Transform | None:
    """Mixup or CutMix; with both, one of them at random for each batch; None without either."""
    mixes: list[v2.Transform] = []
    if config.mixup:
        mixes.append(v2.MixUp(alpha=config.mixup, num_classes=num_classes))
    if config.cutmix:
        mixes.append(v2.CutMix(alpha=config.cutmix, num_classes=num_classes))
    return v2.RandomChoice(mixes) if mixes else None
