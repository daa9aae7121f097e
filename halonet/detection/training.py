"""Training a detector: its data, its model, its loss and its scores."""

import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from halonet.data.listing import Listing, list_files
from halonet.data.pixels import read_image
from halonet.detection.annotations import Annotation
from halonet.detection.config import (
    DetectionConfig,
    check_detection_config,
    make_detection_config,
)
from halonet.detection.data import (
    PARTS,
    AnnotatedImage,
    AnnotatedImages,
    DetectionData,
    as_ground_truth,
)
from halonet.detection.dataset import DetectionDataset, collate
from halonet.detection.detector import Detector, create_detector, save_detector, sum_losses
from halonet.detection.evaluate import DetectionMetrics, detect_images, merge_results, score
from halonet.detection.predict import draw_truth, predict
from halonet.detection.sources import load_detection_data
from halonet.files import write_atomically, write_text
from halonet.models.flops import count_flops
from halonet.models.metadata import find_checkpoint
from halonet.training.compare import draw_curves, read_run
from halonet.training.parallel import do_once
from halonet.training.run import RunResult, resume_run, start_run

PICTURES = 6


@dataclass(frozen=True)
class DetectionEvaluation:
    """A detector's detections in the held-out images, and their metrics."""

    metrics: DetectionMetrics
    results: list[dict[str, Any]]

    @property
    def figures(self) -> dict[str, float]:
        """The scores by name, for logs; nan where nothing counts."""
        return {
            f"{kind}_{name}": math.nan if value is None else value
            for kind, found in (("box", self.metrics.box), ("mask", self.metrics.mask))
            if found is not None
            for name, value in (("ap", found.all), ("ap50", found.at_50))
        }


def train_detector(
    config: DetectionConfig, *, output: str | None = None
) -> RunResult[DetectionData, DetectionEvaluation]:
    """Train a detector by a configuration, in a new run folder; see `start_run`.

    Raises:
        BadAnnotations: something is wrong with the annotations, and the configuration refuses it.
        Others as `start_run` does.
    """
    return start_run(Detection, config, output=output)


def resume_detector(
    folder: Path, *, allow_changed_data: bool = False
) -> RunResult[DetectionData, DetectionEvaluation]:
    """Go on with the run in `folder` from its last saved step, exactly; see `resume_run`."""
    return resume_run(Detection, folder, allow_changed_data=allow_changed_data)


def describe_objects(annotations: Sequence[Annotation]) -> str:
    """The number of an image's objects, and a digest of what they are."""
    content = repr([(one.category_id, one.box, one.crowd, one.counts) for one in annotations])
    return f"{len(annotations)} objects {hashlib.sha256(content.encode()).hexdigest()[:16]}"


class Detection:
    """The task of `halonet detect train`, see `halonet.training.task.Task`."""

    resume_command = "halonet detect train --resume"
    collate = staticmethod(collate)
    make_config = staticmethod(make_detection_config)
    check_config = staticmethod(check_detection_config)

    def __init__(self, config: DetectionConfig, accelerator: Accelerator) -> None:
        self.config = config
        self.layer_rates: dict[str, float] = {}
        self.device = accelerator.device
        with torch.device("meta"):  # without memory: what can't be is said before the data are read
            _create(config, num_classes=1, masks=True)
        if config.init is not None:
            find_checkpoint(Path(config.init))
        self.data = load_detection_data(
            config.data,
            validation_share=config.validation_share,
            masks=config.masks if config.detector.has_masks else "ignore",
            bad_annotations=config.bad_annotations,
            image_size=config.detector.image_size,
            progress=accelerator.is_main_process,
            accelerator=accelerator,
        )
        if accelerator.is_main_process:
            for line in self.data.describe():
                print(f"halonet: {line}", file=sys.stderr)
        self.score = "mask_ap" if self.data.masks else "box_ap"
        torch.manual_seed(config.seed)
        self.model = make_detector(config, self.data)
        source = config.init or config.pretrained
        if source is True:
            source = f"the public weights of {config.model}"
        self.start = f"the backbone starts from {source or 'fresh weights'}"
        self.training = DetectionDataset(
            self.data.training,
            config.detector.image_size,
            scale_jitter=config.scale_jitter,
            horizontal_flip=config.horizontal_flip,
            preprocessing=self.model.backbone.body.preprocessing,
            seed=config.seed,
        )
        self.validation = _Places(self.data.validation)

    def list_data(self) -> Listing:
        """The images and their objects, for a resumed run to compare."""
        parts = {"training": self.data.training, "held-out": self.data.validation}
        files = [
            (part, image.path, describe_objects(image.annotations))
            for part, images in parts.items()
            for image in images.images
        ]
        return list_files([category.name for category in self.data.categories], files)

    def compute_loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the losses of a batch, and each of them."""
        images, targets = batch
        images = [image.to(self.device, non_blocking=True) for image in images]
        targets = [
            {name: value.to(self.device, non_blocking=True) for name, value in target.items()}
            for target in targets
        ]
        losses = model(images, targets)
        loss = sum_losses(losses)
        return loss, {"loss": loss, **losses}

    def count_flops(self) -> int:
        """Operations of one image's forward pass through the backbone, its largest part."""
        variant = self.model.backbone.body.variant
        return count_flops(variant, self.config.detector.image_size, num_classes=0)

    def evaluate(
        self, model: nn.Module, loader: DataLoader, accelerator: Accelerator
    ) -> DetectionEvaluation:
        """COCO's metrics on all held-out images, each process detecting in its share of them.

        The main process computes the metrics and tells the others.
        """
        assert isinstance(model, Detector)
        places = [index for _, index in loader.sampler]
        parts = gather_object(
            [
                detect_images(
                    model, self.data.validation, places, progress=accelerator.is_main_process
                )
            ]
        )
        results = merge_results(parts)
        limit = self.config.detector.detections
        metrics = do_once(
            accelerator, lambda: score(self.data.validation, results, max_detections=limit)
        )
        return DetectionEvaluation(metrics, results)

    def save(self, model: nn.Module, path: Path) -> None:
        """Write the weights with all that `load_detector` needs."""
        assert isinstance(model, Detector)
        save_detector(model, path)

    def write_report(
        self,
        folder: Path,
        model: Detector,
        evaluation: DetectionEvaluation,
        rows: list[dict],
        *,
        minutes: float,
    ) -> None:
        """Write summary.json, results.json and the pictures."""
        write_summary(folder, model, self.data, evaluation, minutes=minutes)
        draw_curves([read_run(folder)], folder / "curves.png")


class _Places(Dataset):
    """The places of the held-out images: `evaluate` reads the images, in their own size."""

    def __init__(self, data: AnnotatedImages) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data.images)


def make_detector(config: DetectionConfig, data: DetectionData) -> Detector:
    """The detector that a configuration asks for, for the categories of the data.

    It is Faster R-CNN where the data has no masks.
    """
    model = _create(
        config,
        num_classes=len(data.categories),
        masks=data.masks,
        init=None if config.init is None else find_checkpoint(Path(config.init)),
        pretrained=config.pretrained,
    )
    model.class_names = tuple(category.name for category in data.categories)
    model.category_ids = tuple(category.id for category in data.categories)
    return model.to(memory_format=torch.channels_last)


def _create(config: DetectionConfig, *, num_classes: int, masks: bool, **weights: Any) -> Detector:
    options: dict[str, Any] = asdict(config.detector) | ({} if masks else {"mask_channels": 0})
    return create_detector(
        config.model,
        num_classes=num_classes,
        backend=config.backend,
        model_options=config.model_options,
        **weights,
        **options,
    )


def write_summary(
    folder: Path,
    model: Detector,
    data: DetectionData,
    evaluation: DetectionEvaluation,
    *,
    scored: str = PARTS["val"],
    minutes: float | None = None,
) -> None:
    """Write summary.json, results.json, truth.json and pictures.

    results.json has COCO's results of the held-out images, truth.json their annotations as they
    were scored. The pictures are of a few held-out images, evenly spaced: the annotations on the
    left, the detections on the right.
    """
    summary = {
        "data": data.name,
        "scored": scored,
        "detector": "Mask R-CNN" if model.options.has_masks else "Faster R-CNN",
        "model": model.name,
        "parameters": model.parameter_count,
        "image_size": model.options.image_size,
        "training_minutes": minutes,
        **asdict(evaluation.metrics),
        "problems": [str(problem) for problem in data.training.problems + data.validation.problems],
    }
    write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    write_text(folder / "results.json", json.dumps(evaluation.results) + "\n")
    write_text(folder / "truth.json", json.dumps(as_ground_truth(data.validation)) + "\n")
    images = data.validation.images
    for image in images[:: -(-len(images) // PICTURES)]:
        _draw(folder / "pictures" / f"{image.id}.png", model, image, data)


def _draw(path: Path, model: Detector, image: AnnotatedImage, data: DetectionData) -> None:
    ((_, found),) = predict(model, [image.path])
    if isinstance(found, str):  # the file has changed since it was checked
        return
    truth = draw_truth(image, data.categories)
    both = Image.new("RGB", (2 * truth.width + 8, truth.height), "white")
    both.paste(truth)
    both.paste(found.draw(read_image(image.path)), (truth.width + 8, 0))
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, both.save)
