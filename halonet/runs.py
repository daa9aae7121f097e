"""Train and evaluate a classifier: what the command line does, in Python."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from halonet.devices import AUTO, find_device
from halonet.models.classifier import Classifier
from halonet.models.metadata import find_checkpoint
from halonet.models.pretrained import load_model

if TYPE_CHECKING:
    from halonet.classification.config import TrainingConfig
    from halonet.classification.evaluate import Evaluation
    from halonet.classification.multilabel import MultilabelEvaluation
    from halonet.data.splits import LabelledImages
    from halonet.training.run import RunResult


def train(
    *,
    output: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    allow_changed_data: bool = False,
    **fields: Any,
) -> "RunResult":
    """Train a classifier, or go on with a run, as `halonet train` does.

    Needs `pip install 'halonet[train]'`. Under torchrun or `accelerate launch`, every process calls
    it with the same arguments.

    Args:
        output: the run's folder; None takes runs/RECIPE, or the next free.
        resume: folder of a run to go on with, from its last saved step; without `fields`.
        allow_changed_data: with `resume`, go on though images were added, removed or changed.
        **fields: of `halonet.classification.config.TrainingConfig`, as `halonet train --help` lists
            them. The others are those of a recipe: `recipe`, or the one that fits the data and the
            weights, as on the command line.

    Returns:
        `folder`, which `halonet.load_run` takes, `data`, the last checkpoint's `evaluation` on the
        held-out images, and the `minutes` that it took.

    Raises:
        ValueError: an unknown field or a value that can't be.
        OSError: a file can't be written, or is missing; `halonet.training.run.start_run` and
            `resume_run` name the rest.

    Example:
        >>> result = halonet.train(data="folder:photos", epochs=5)
        >>> result.evaluation.accuracy
        >>> halonet.load_run(result.folder).predict("photo.jpg")
    """
    fields = {
        name: os.fspath(value) if isinstance(value, os.PathLike) else value
        for name, value in fields.items()
    }
    from halonet.classification.recipes import choose_config
    from halonet.classification.training import Classification
    from halonet.training.config import change_config
    from halonet.training.run import resume_run, start_run

    if resume is not None:
        if fields or output is not None:
            raise ValueError(
                "resume takes its configuration from the run and allows no other argument than "
                f"allow_changed_data, got {', '.join(fields) or 'output'}"
            )
        return resume_run(Classification, Path(resume), allow_changed_data=allow_changed_data)
    if allow_changed_data:
        raise ValueError("allow_changed_data goes with resume")
    config = Classification.make_config(change_config(choose_config(fields), fields))
    return start_run(Classification, config, output=None if output is None else os.fspath(output))


@dataclass(frozen=True)
class EvaluatedRun:
    """The scores of a checkpoint.

    Attributes:
        folder: of the report.
        data: its held-out part is what was scored.
        evaluation: the scores; accuracy and more, from 0 to 1.
        summary: what summary.json holds.
        neighbour_accuracy: of the nearest training images, 0 to 1; None where it wasn't asked for.
    """

    folder: Path
    data: "LabelledImages"
    evaluation: "Evaluation | MultilabelEvaluation"
    summary: dict[str, Any]
    neighbour_accuracy: float | None


def evaluate(
    checkpoint: str | os.PathLike[str],
    *,
    data: str | None = None,
    data_root: str | None = None,
    validation_share: float | None = None,
    validation_data: str | None = None,
    split: str | None = None,
    group: str | None = None,
    neighbours: int | None = None,
    mirror: bool = False,
    output: str | os.PathLike[str] | None = None,
    device: str = AUTO,
) -> EvaluatedRun:
    """Score a classifier on held-out images and write the report, as `halonet evaluate` does.

    Needs `pip install 'halonet[train]'`.

    Args:
        checkpoint: a run folder, a safetensors file, or an ONNX file of `export_model`.
        data: as `train` has it; None takes the data that the run trained on.
        data_root: where torchvision's data sets lie.
        validation_share: share held out of data that has no held-out part.
        validation_data: held-out tar files, where data is of tar files.
        split: train, val, test or all; None takes val of the run's data and of data with parts,
            and else all.
        group: column of groups, where data is a CSV file.
        neighbours: also score the classes of this many nearest training images, by the features
            before the classifier; see `score_neighbours`.
        mirror: score the mean logits of each image and its mirror image.
        output: folder of the report, new or with an earlier one on the same images, which is
            replaced; None takes evaluation beside the checkpoint, or evaluation-2, ... where that
            has a report on other images.
        device: as `load_run` has it.

    Raises:
        ValueError: no data were named and the checkpoint lies in no run, or a value can't be.
        FileNotFoundError: no checkpoint, or no images.
        FileExistsError: `output` holds something else than an earlier report on these images.
    """
    from halonet.classification.evaluate import choose_images, evaluate_on
    from halonet.classification.image_predictions import ImagePredictions
    from halonet.classification.neighbours import check_neighbours, score_neighbours
    from halonet.classification.report import write_report
    from halonet.data.sources import split_name
    from halonet.files import require_no_input
    from halonet.training.checkpoint import check_report_folder, choose_report_folder

    place = find_device(device)  # before all that takes time
    path = find_checkpoint(Path(checkpoint))
    folder = path.parent / "evaluation" if output is None else Path(output)
    check_report_folder(folder, foreign="results.json")
    asked = {
        "data": data,
        "data_root": data_root,
        "validation_share": validation_share,
        "validation_data": validation_data,
        "group": group,
    }
    config = _configure_data(path, asked, split)
    model = read_model(path, device)
    images, scored = choose_images(config.load_data(model.task), split)
    folder = choose_report_folder(folder, images.name, scored, free=output is None)
    predictions = folder / "predictions.csv"
    require_no_input(predictions, [Path(split_name(config.data)[1])])
    which = "all" if scored == "images" else "the"
    print(f"scoring {which} {len(images.validation)} {scored} of {images.name}", flush=True)
    for reason in images.left_out:
        print(f"left out: {reason}", flush=True)
    if model.class_names is not None:
        images = images.with_classes(model.class_names)
    if neighbours is not None:
        check_neighbours(model, images, neighbours)
    ready = prepare(model, place)
    evaluation = evaluate_on(
        ready, images, workers=config.workers, broken_share=config.broken_share, mirror=mirror
    )
    found = None if neighbours is None else score_neighbours(ready, images, neighbours)
    folder.mkdir(parents=True, exist_ok=True)
    summary = write_report(
        folder, model, images, evaluation, scored=scored, neighbour_accuracy=found
    )
    ImagePredictions(images, evaluation).write(predictions)
    return EvaluatedRun(folder, images, evaluation, summary, found)


def _configure_data(checkpoint: Path, asked: dict[str, Any], split: str | None) -> "TrainingConfig":
    """The configuration of a checkpoint's run, with the fields that were asked for, if not None.

    Raises:
        ValueError: the checkpoint lies in no run, and no data were asked for.
    """
    from halonet.classification.config import TrainingConfig, make_config
    from halonet.data.sources import is_same_data, split_name
    from halonet.training.checkpoint import find_run, read_config

    given = {name: value for name, value in asked.items() if value is not None}
    run = find_run(checkpoint)
    if run is None and "data" not in given:
        raise ValueError(f"{checkpoint} lies in no run folder: say which --data")
    config = TrainingConfig() if run is None else read_config(run, make_config)
    name = given.get("data", config.data)
    # Of other data than the run's all is scored, unless it has a held-out part or split says.
    if run is None or not is_same_data(name, config.data):
        config = dataclasses.replace(config, validation_data=None, fold=None, group=None)
        if split_name(name)[1] and split in (None, "all"):
            given.setdefault("validation_share", 1.0)
    elif "validation_share" in given:
        given["fold"] = None
    return dataclasses.replace(config, **given)


def read_model(checkpoint: Path, device: str) -> Any:
    """The classifier of a checkpoint, or of a file that `export_model` wrote.

    Raises:
        ValueError: another device for an exported one.
    """
    if checkpoint.suffix != ".onnx":
        return load_model(checkpoint)
    from halonet.export.onnx_classifier import load_onnx

    if device not in (AUTO, "cpu"):
        raise ValueError(f"device must be auto or cpu for an exported file, got {device!r}")
    return load_onnx(checkpoint)


def prepare(model: Any, device: torch.device) -> Any:
    """A classifier as it is run: fused, on the device; an exported one is both, on the CPU."""
    return model.fuse().to(device) if isinstance(model, Classifier) else model
