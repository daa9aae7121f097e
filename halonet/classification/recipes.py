"""Recipes of classifiers: configurations by name, each with what it is for.

The command line takes a recipe and overrides some of its fields. The paper's recipes are in
`paper_recipes`.
"""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from halonet.classification.config import TrainingConfig
from halonet.classification.paper_recipes import paper_recipes
from halonet.data.augmentation import Augmentation
from halonet.models.creation import PACKAGED
from halonet.models.pretrained import ADAPTABLE_FIELDS
from halonet.training.config import Recipe, find_recipe


def elpv() -> Recipe[TrainingConfig]:
    """Defective and intact solar cells, in the photos of elpv-dataset."""
    config = TrainingConfig(
        recipe="elpv",
        data="elpv",
        pretrained=True,
        central_crop_share=1.0,  # cells break at their edges too
        augmentation=Augmentation(crop_share=(1.0, 1.0), vertical_flip=True, quarter_turns=True),
        epochs=12,
        optimizer="muon",
        learning_rate=5e-3,
        label_smoothing=0.0,
        averaging_decay=0.98,
        evaluate_epochs=3,
    )
    return Recipe(
        config,
        reproduces="ours, not the paper's: is a solar cell defective?",
        expected="86.5 % (mean of three seeds)",
        data="elpv",
        hardware="two CPU cores, three or four minutes",
        command="halonet train --recipe elpv",
    )


def small() -> Recipe[TrainingConfig]:
    """Any photos in a folder for each class, trained from scratch."""
    config = TrainingConfig(
        recipe="small",
        cutmix=0.5,
        epochs=40,
        optimizer="muon",
        learning_rate=0.02,
        evaluate_epochs=5,
    )
    return Recipe(
        config,
        reproduces="ours, not the paper's: a few thousand photos, from scratch",
        expected="docs/results.md has the flowers",
        data="folder:PATH",
        hardware="two CPU cores, half an hour",
        command="halonet train --recipe small --data folder:PATH",
    )


def finetune() -> Recipe[TrainingConfig]:
    """Any photos in a folder for each class, from weights."""
    config = TrainingConfig(
        recipe="finetune",
        pretrained=True,
        epochs=12,
        optimizer="muon",
        learning_rate=5e-3,
        evaluate_epochs=3,
    )
    return Recipe(
        config,
        reproduces="ours, not the paper's: some hundred photos or more, from weights",
        expected="docs/results.md has the flowers",
        data="folder:PATH",
        hardware="two CPU cores, minutes",
        command="halonet train --recipe finetune --data folder:PATH",
    )


def tiny_imagenet() -> Recipe[TrainingConfig]:
    """Tiny ImageNet, from scratch: the weights that come with the package."""
    config = TrainingConfig(
        recipe="tiny_imagenet",
        data="folder:data/tiny-imagenet-200",
        image_size=64,
        central_crop_share=1.0,
        augmentation=Augmentation(crop_share=(0.5, 1.0)),
        epochs=24,
        batch_size=128,
        optimizer="muon",
        learning_rate=0.02,
        averaging_decay=0.998,
        checkpoint_steps=100,
    )
    return Recipe(
        config,
        reproduces="ours, not the paper's: weights of halonet_tiny to start from",
        expected="39.8 %, a part of the data",
        data="folder:PATH, its archive unpacked",
        hardware="two CPU cores, an hour or two",
        command="halonet train --recipe tiny_imagenet --data folder:PATH",
    )


RECIPES: dict[str, Recipe[TrainingConfig]] = {
    recipe.name: recipe
    for recipe in (elpv(), small(), finetune(), tiny_imagenet(), *paper_recipes())
}


def get_recipe(name: str) -> TrainingConfig:
    """The configuration of the recipe called `name`; ValueError for an unknown one."""
    return copy.deepcopy(find_recipe(RECIPES, name).config)  # model_options can be changed


def choose_config(given: Mapping[str, Any]) -> TrainingConfig:
    """The configuration to start from, by some of the values that a run was given.

    Without a recipe it is elpv's for the data elpv, for any other finetune's where the run starts
    from weights, and small's where it doesn't. The weights that come with the package are left out
    where others are named, or a model that they don't fit.

    Args:
        given: fields of `TrainingConfig`; `recipe`, `data`, `init`, `pretrained`, `model` and
            `model_options` decide.

    Raises:
        ValueError: an unknown recipe.
    """
    starts_otherwise = (
        given.get("init") is not None
        or not set(given.get("model_options", ())) <= set(ADAPTABLE_FIELDS)
        or given.get("model") not in (None, *PACKAGED)
    )
    name = given.get("recipe")
    if name is None and given.get("data") in (None, "elpv"):
        name = "elpv"
    elif name is None:
        from_weights = given.get("init") is not None or not starts_otherwise
        name = "finetune" if given.get("pretrained", from_weights) else "small"
    config = get_recipe(name)
    return dataclasses.replace(config, pretrained=False) if starts_otherwise else config
