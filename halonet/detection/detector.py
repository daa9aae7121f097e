"""torchvision's Mask R-CNN and Faster R-CNN on our backbones, and how they are saved and loaded."""

import copy
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from halonet.detection.backbone import PyramidBackbone, freeze, make_backbone
from halonet.detection.options import STAGES, DetectorOptions, make_options
from halonet.models.building import build_classifier
from halonet.models.classifier import STRIDES
from halonet.models.metadata import (
    Description,
    find_misfit,
    read_weights,
    unwrap,
    write_weights,
)


@dataclass(frozen=True)
class DetectorDescription(Description):
    """What is needed beside the weights of a `Detector`."""

    key: ClassVar[str] = "halonet_detector"
    model_kind: ClassVar[str] = "detector"

    options: DetectorOptions
    category_ids: tuple[int, ...] | None


class Detector(FasterRCNN):
    """torchvision's Mask R-CNN, whose loss of an image doesn't depend on its batch.

    Without `options.mask_channels` it is torchvision's Faster R-CNN: boxes alone, no masks.

    In training it takes images [3, height, width] of one size, from 0 to 1, and their targets, as
    `DetectionDataset` makes them, and returns torchvision's losses, four of boxes and one of masks,
    each the mean over images (torchvision averages over the objects of the batch; with one image
    they are the same). The backbone sees the batch, the heads one image after the other. A target
    that has a "seed" draws its samples by it, so that a batch may be spread over processes.

    In evaluation it takes images of any size and aspect, scales the longer side to
    `options.image_size`, and returns torchvision's dicts: "boxes" [n, 4] as left, top, right,
    bottom in pixels of the image, "labels" [n] from 1 on, "scores" [n] and, with masks, "masks"
    [n, 1, height, width] from 0 to 1, best scores first.

    Attributes:
        options: what it was made with.
        num_classes: classes, without the background.
        class_names: names of the classes 1, 2, ..., or None.
        category_ids: their ids in COCO's files, or None.
    """

    transform: Any  # GeneralizedRCNNTransform
    backbone: Any  # PyramidBackbone

    def __init__(
        self, backbone: PyramidBackbone, num_classes: int, options: DetectorOptions
    ) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be 1 or more, got {num_classes}")
        names = [str(stride) for stride in STRIDES]
        anchors = AnchorGenerator(
            tuple((size,) for size in options.anchor_sizes),
            (options.aspect_ratios,) * len(options.anchor_sizes),
        )
        box_head = TwoMLPHead(backbone.out_channels * 7**2, options.box_channels)
        box_predictor = FastRCNNPredictor(options.box_channels, num_classes + 1)
        masks = _make_mask_parts(backbone.out_channels, num_classes, options, names)
        super().__init__(
            backbone,
            min_size=options.image_size,
            max_size=options.image_size,
            image_mean=list(backbone.body.preprocessing.mean),
            image_std=list(backbone.body.preprocessing.std),
            # The stride of the last map, so that the anchors of every level are aligned. The
            # operator pads to its blocks by itself.
            size_divisible=STRIDES[-1],
            rpn_anchor_generator=anchors,
            rpn_pre_nms_top_n_train=options.training_proposals,
            rpn_post_nms_top_n_train=options.training_proposals,
            rpn_pre_nms_top_n_test=options.proposals,
            rpn_post_nms_top_n_test=options.proposals,
            box_roi_pool=_make_pool(names, 7),
            box_head=box_head,
            box_predictor=box_predictor,
            box_batch_size_per_image=options.training_regions,
            box_score_thresh=options.score_threshold,
            box_nms_thresh=options.overlap_threshold,
            box_detections_per_img=options.detections,
        )
        for name, part in masks.items():
            setattr(self.roi_heads, name, part)
        self.options = options
        self.num_classes = num_classes
        self.class_names: tuple[str, ...] | None = None
        self.category_ids: tuple[int, ...] | None = None

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None
    ) -> Any:
        """Losses by name in training, else a dict of detections for each image."""
        if not self.training:
            return super().forward(list(images))
        if targets is None:
            raise ValueError("targets must be given in training")
        sizes = {(image.shape[1], image.shape[2]) for image in images}
        if len(sizes) > 1:
            raise ValueError(f"images must have one size in training, got {sorted(sizes)}")
        size = sizes.pop()
        pixels = [self.transform.normalize(image) for image in images]
        batch = self.transform.batch_images(pixels, self.transform.size_divisible)
        features = self.backbone(batch)
        losses = []
        for index, target in enumerate(targets):
            seed = target.get("seed")
            levels = {name: level[index : index + 1] for name, level in features.items()}
            with torch.random.fork_rng(_devices(batch), enabled=seed is not None):
                if seed is not None:
                    torch.manual_seed(int(seed))
                losses.append(self._image_losses(batch[index : index + 1], size, levels, target))
        return {name: torch.stack([one[name] for one in losses]).mean() for name in losses[0]}

    @property
    def name(self) -> str:
        """The name of the backbone's variant."""
        return self.backbone.body.variant.name

    @property
    def parameter_count(self) -> int:
        """The number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    def detect(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """As in evaluation, any "masks" as [n, 1, 28, 28] within the boxes: little memory."""
        originals = [(image.shape[1], image.shape[2]) for image in images]
        batch, _ = self.transform(list(images))
        features = self.backbone(batch.tensors)
        proposals, _ = self.rpn(batch, features)
        found, _ = self.roi_heads(features, proposals, batch.image_sizes)
        for one, size, original in zip(found, batch.image_sizes, originals, strict=True):
            one["boxes"] = resize_boxes(one["boxes"], list(size), list(original))
        return found

    def fuse(self) -> "Detector":
        """A copy for inference, in eval mode, with every batch norm folded into its neighbours.

        It finds what this detector finds, up to rounding. It is neither for further training nor
        for `save_detector`.
        """
        fused = copy.deepcopy(self).eval().requires_grad_(False)
        body = fused.backbone.body
        if self.options.frozen_norms or self.options.trainable_stages < STAGES:
            from timm.layers import unfreeze_batch_norm_2d  # here, as in `freeze`

            body = unfreeze_batch_norm_2d(body)  # frozen norms are of another class
        fused.backbone.body = body.fuse()
        return fused

    def no_weight_decay(self) -> set[str]:
        """Names of the backbone's relative tables and absolute vectors, which aren't decayed."""
        return {f"backbone.body.{name}" for name in self.backbone.body.no_weight_decay()}

    def _image_losses(
        self, image: Tensor, size: tuple[int, int], levels: dict[str, Tensor], target: dict
    ) -> dict[str, Tensor]:
        images = ImageList(image, [size])
        proposals, losses = self.rpn(images, levels, [target])
        _, head_losses = self.roi_heads(levels, proposals, images.image_sizes, [target])
        return losses | head_losses


def create_detector(
    backbone: str = "resnet_50_se_halo8",
    *,
    num_classes: int = 80,
    init: str | os.PathLike[str] | None = None,
    pretrained: bool | str | os.PathLike[str] = False,
    backend: str | None = None,
    model_options: dict[str, Any] | None = None,
    **options: Any,
) -> Detector:
    """Mask R-CNN or Faster R-CNN with a feature pyramid on any of our models, or timm's HaloNets.

    Args:
        backbone: a model of `halonet.create_model`; see `make_backbone` for the paper's.
        num_classes: classes, without the background.
        init: a classification checkpoint of ours that the backbone starts from.
        pretrained: start from public weights, or those in a file, as `create_model` does.
        backend: name of the operator's backend; None takes the fastest.
        model_options: fields of `Variant` to change in the backbone, such as `block_size`.
        **options: fields of `DetectorOptions`; `mask_channels=0` makes it Faster R-CNN.

    Raises:
        ValueError: an unknown name or option, or a value that doesn't fit.
        FileNotFoundError: there is no such checkpoint.

    Example:
        >>> detector = create_detector(
        ...     "resnet_50_se_halo8", num_classes=1, image_size=512, detections=400,
        ...     proposals=2000, anchor_sizes=(8, 16, 32, 64, 128),
        ... )
    """
    chosen = make_options(options)
    pyramid = make_backbone(
        backbone,
        init=init,
        pretrained=pretrained,
        trainable_stages=chosen.trainable_stages,
        frozen_norms=chosen.frozen_norms,
        pyramid_channels=chosen.pyramid_channels,
        backend=backend,
        **(model_options or {}),
    )
    return Detector(pyramid, num_classes, chosen)


def sum_losses(losses: dict[str, Tensor]) -> Tensor:
    """The loss to train on: the sum of torchvision's."""
    return torch.stack(list(losses.values())).sum()


def save_detector(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write weights, architecture, options and classes to a safetensors file, whole or not at all.

    Raises:
        OSError: the file can't be written.
        TypeError: the model is no `Detector`, nor the wrapper of one.
        ValueError: `load_detector` couldn't read it again, as a fused one.
    """
    detector = unwrap(model, Detector)
    body = detector.backbone.body
    description = DetectorDescription(
        variant=body.variant,
        options=detector.options,
        preprocessing=body.preprocessing,
        num_classes=detector.num_classes,
        class_names=detector.class_names,
        category_ids=detector.category_ids,
    )
    write_weights(path, detector, description, lambda: _create(description, detector.options))


def _create(
    description: DetectorDescription,
    options: DetectorOptions,
    *,
    num_classes: int | None = None,
    backend: str | None = None,
) -> Detector:
    """The detector that a description describes, with fresh weights."""
    body = build_classifier(description.variant, num_classes=0, backend=backend)
    body.preprocessing = description.preprocessing
    backbone = PyramidBackbone(body, channels=options.pyramid_channels)
    freeze(backbone, trainable_stages=options.trainable_stages, frozen_norms=options.frozen_norms)
    return Detector(
        backbone, description.num_classes if num_classes is None else num_classes, options
    )


def load_detector(
    path: str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    backend: str | None = None,
    **changes: Any,
) -> Detector:
    """Create the detector that a file describes and load its weights. Nothing is unpickled.

    Args:
        path: a safetensors file written by `save_detector`.
        num_classes: another class count gives the layers that depend on it fresh weights.
        backend: name of the operator's backend; None takes the fastest.
        **changes: fields of `DetectorOptions` to change, such as `image_size` and `detections`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file isn't one of ours, or a change doesn't fit.
    """
    tensors, description = read_weights(path, DetectorDescription)
    classes = description.num_classes if num_classes is None else num_classes
    try:
        options = make_options(dataclasses.asdict(description.options) | changes)
        model = _create(description, options, num_classes=classes, backend=backend)
    except ValueError as error:
        raise ValueError(f"can't create the detector of {path}: {error}") from None
    if classes == description.num_classes:
        model.class_names = description.class_names
        model.category_ids = description.category_ids
    else:
        fresh = model.state_dict()
        tensors |= {name: fresh[name] for name in tensors if name.startswith(_OF_CLASSES)}
    misfit = find_misfit(tensors, model)
    if misfit is not None:
        raise ValueError(f"{path} doesn't fit the options given: {misfit}")
    model.load_state_dict(tensors)
    return model


_OF_CLASSES = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")


def _make_mask_parts(
    channels: int, num_classes: int, options: DetectorOptions, levels: list[str]
) -> dict[str, nn.Module]:
    """What Mask R-CNN has beside Faster R-CNN, by torchvision's names; none without masks."""
    if not options.has_masks:
        return {}
    width = options.mask_channels
    return {
        "mask_roi_pool": _make_pool(levels, 14),
        "mask_head": MaskRCNNHeads(channels, (width,) * 4, 1),
        "mask_predictor": MaskRCNNPredictor(width, width, num_classes + 1),
    }


def _make_pool(names: list[str], size: int) -> MultiScaleRoIAlign:
    """Pooling with given strides: torchvision infers them from the first image it sees."""
    pool = MultiScaleRoIAlign(names, size, sampling_ratio=2)
    levels = [stride.bit_length() - 1 for stride in STRIDES]
    pool.scales = [1 / stride for stride in STRIDES]
    pool.map_levels = LevelMapper(levels[0], levels[-1])
    return pool


def _devices(tensor: Tensor) -> list[torch.device]:
    return [tensor.device] if tensor.is_cuda else []
