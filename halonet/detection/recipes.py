"""Recipes of detection: configurations by name, each with what it is for."""

import copy

from halonet.detection.config import DetectionConfig
from halonet.detection.options import DetectorOptions
from halonet.training.config import Recipe, find_recipe


def coco() -> Recipe[DetectionConfig]:
    """Mask R-CNN on COCO, as in the paper."""
    config = DetectionConfig(
        recipe="coco",
        epochs=37,  # 67,500 steps of 64 images are 36.5
        batch_size=64,
        optimizer="momentum",
        learning_rate=0.1,
        schedule="steps",
        decay_shares=(60_000 / 67_500, 65_000 / 67_500),
        warmup_share=500 / 67_500,
        warmup_start_share=2 / 300,
        weight_decay=4e-5,
        averaging_decay=0.0,
        clip_norm=0.0,
        checkpoint_steps=500,
        workers=8,
    )
    return Recipe(
        config,
        reproduces="the paper's Mask R-CNN on COCO at 1024 px; other rows by --model and --init",
        expected="box AP 45.2, mask AP 40.3",
        data="coco:PATH",
        hardware="TPUv3 in the paper, 15.8 hours; not run by us",
        command="halonet detect train --recipe coco --data coco:PATH "
        "--init runs/backbone_resnet_50_se_halo8",
        ours=(
            "no weight decay of norms, biases and relative tables",
            "anchors, and limits on proposals and detections, as torchvision's",
        ),
    )


def small_detector() -> Recipe[DetectionConfig]:
    """Mask R-CNN on any annotated photos, small enough for a CPU."""
    config = DetectionConfig(
        recipe="small_detector",
        model="halonet_tiny",
        detector=DetectorOptions(
            image_size=256,
            anchor_sizes=(8, 16, 32, 64, 128),
            training_proposals=1000,
            proposals=1000,
            detections=300,
            pyramid_channels=64,
            box_channels=256,
            mask_channels=64,
            training_regions=128,
        ),
        epochs=8,
        batch_size=4,
        optimizer="nadamw",
        learning_rate=1e-3,
        weight_decay=0.05,
        averaging_decay=0.99,
        evaluate_epochs=4,
    )
    return Recipe(
        config,
        reproduces="ours, not the paper's: some hundred photos, from scratch",
        expected="depends on the photos",
        data="coco:PATH",
        hardware="two CPU cores, half an hour",
        command="halonet detect train --recipe small_detector --data coco:PATH",
    )


RECIPES: dict[str, Recipe[DetectionConfig]] = {
    recipe.name: recipe for recipe in (coco(), small_detector())
}


def get_detection_recipe(name: str) -> DetectionConfig:
    """The configuration of the recipe called `name`; ValueError for an unknown one."""
    return copy.deepcopy(find_recipe(RECIPES, name).config)  # model_options can be changed
