"""Recipes: functions that give a training configuration, each with what it is for.

The command line takes a recipe and overrides some of its fields.
"""

from collections.abc import Callable

from halonet.training.config import Augmentation, TrainingConfig


def elpv() -> TrainingConfig:
    """The main job: is a solar cell defective? Ours, not the paper's.

    Data: elpv-dataset, 1,970 grey photos to train on, 654 held out.
    Expected: see README. Hardware: two CPU cores, under five minutes.
    Command: halonet train --recipe elpv
    """
    return TrainingConfig(
        recipe="elpv",
        data="elpv",
        central_crop_share=1.0,  # cells break at their edges too
        augmentation=Augmentation(crop_share=(1.0, 1.0), vertical_flip=True, quarter_turns=True),
        epochs=12,
        learning_rate=3e-3,
        label_smoothing=0.0,
        averaging_decay=0.98,
        evaluate_epochs=2,
    )


def small() -> TrainingConfig:
    """A folder of a few thousand photos, from scratch on a CPU. Ours, not the paper's.

    Expected: see docs/results.md for the flowers. Hardware: two CPU cores, half an hour.
    Command: halonet train --data folder:PATH
    """
    return TrainingConfig(
        recipe="small",
        cutmix=0.5,
        epochs=40,
        optimizer="muon",
        learning_rate=0.02,
        evaluate_epochs=5,
    )


RECIPES: dict[str, Callable[[], TrainingConfig]] = {"elpv": elpv, "small": small}


def get_recipe(name: str) -> TrainingConfig:
    """The configuration of the recipe called `name`; ValueError for an unknown one."""
    if name not in RECIPES:
        raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, got {name!r}")
    return RECIPES[name]()
