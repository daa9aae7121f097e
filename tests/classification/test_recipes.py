"""Recipes: each can be run, and holds every value that the paper states, as its text has it."""

import dataclasses
import functools
import json

import pytest
import torch

from halonet.classification.config import check_config, make_config
from halonet.classification.recipes import RECIPES, get_recipe
from halonet.models.halonet import HaloNet
from halonet.models.variants import get_variant
from halonet.training.config import flatten_fields

# For H0 to H7: image, RandAugment, M parameters, top-1.
FAMILY = {
    "h0": (256, 6, 5.5, 77.9),
    "h1": (256, 8, 8.1, 79.9),
    "h2": (256, 10, 9.4, 80.4),
    "h3": (320, 14, 11.8, 81.9),
    "h4": (384, 17, 19.1, 83.3),
    "h5": (448, 19, 30.7, 84.0),
    "h6": (512, 24, 43.4, 84.4),
    "h7": (600, 31, 67.4, 84.9),
    "h7_conv1": (600, 31, 67.3, 84.6),
    "h7_conv12": (600, 31, 66.9, 84.7),
    "h7_conv123": (600, 31, 54.5, 83.8),
}
# HaloNet-50, ResNet-50; label smoothing, squeeze-and-excitation, activation, RandAugment.
COMPONENTS = {
    "baseline": (78.6, 77.6, 0.0, False, "relu", 0),
    "smoothing": (79.7, 78.1, 0.1, False, "relu", 0),
    "smoothing_randaugment": (79.9, 78.4, 0.1, False, "relu", 10),
    "excitation": (78.6, 78.6, 0.0, True, "relu", 0),
    "excitation_silu": (79.0, 78.9, 0.0, True, "silu", 0),
    "smoothing_excitation": (79.7, 78.9, 0.1, True, "relu", 0),
    "smoothing_excitation_silu": (79.9, 79.1, 0.1, True, "silu", 0),
    "smoothing_excitation_silu_randaugment": (80.5, 79.5, 0.1, True, "silu", 10),
}
# Options of the model, M parameters.
STUDIES = {
    "window_6_block_4": ({"block_size": 4, "halo_size": 1}, 18.0),
    "window_8_block_8": ({"block_size": 8, "halo_size": 0}, 18.0),
    "window_12_block_4": ({"block_size": 4, "halo_size": 4}, 18.0),
    "window_12_block_6": ({"block_size": 6, "halo_size": 3}, 18.0),
    "window_12_block_8": ({"block_size": 8, "halo_size": 2}, 18.0),
    "sasa_mask": ({"block_size": 8, "halo_size": 3, "kernel_size": 7}, 18.0),
    "absolute_position": ({"block_size": 8, "halo_size": 3, "position": "absolute"}, 18.2),
    "scaling_layers": ({"layers": (3, 4, 22, 3)}, 29.6),
    "scaling_value_ratio": ({"value_ratio": 3.0}, 30.6),
    "scaling_base_width": ({"base_width": 80}, 27.5),
    "scaling_bottleneck_ratio": ({"bottleneck_ratio": 6.5}, 29.7),
    "scaling_query_key_ratio": ({"query_key_ratio": 6.5}, 31.9),
}
# Top-1 at 384 and 512 pixels, M parameters.
TRANSFER = {
    "h4_base128": (85.6, 85.8, 85),
    "h4_base128_patch4": (85.4, 85.4, 85),
    "h4_base128_conv12": (85.5, 85.8, 87),
}
# AP of boxes and masks.
BACKBONES = {
    "resnet_50_se": (44.5, 39.6),
    "resnet_50_se_halo8": (45.2, 40.3),
    "resnet_50_se_halo32": (45.4, 40.5),
    "resnet_101_se": (45.9, 40.6),
    "resnet_101_se_halo8": (46.8, 41.2),
}


def make_meta_model(name):
    config = get_recipe(name)
    size = {} if config.image_size is None else {"image_size": config.image_size}
    return make_variant_on_meta(get_variant(config.model, **size, **config.model_options))


@functools.cache
def make_variant_on_meta(variant):
    with torch.device("meta"):
        return HaloNet(variant)


def millions(name):
    return sum(parameter.numel() for parameter in make_meta_model(name).parameters()) / 1e6


def test_every_result_has_its_recipe():
    components = (
        f"components_{model}_{row}" for model in ("halonet_50", "resnet_50") for row in COMPONENTS
    )
    assert [*RECIPES] == [
        "elpv",
        "small",
        "finetune",
        "tiny_imagenet",
        *(f"imagenet_{model}" for model in FAMILY),
        *components,
        *STUDIES,
        *(f"pretrain_{model}" for model in TRANSFER),
        *(f"finetune_{model}_{size}" for model in TRANSFER for size in (384, 512)),
        *(f"backbone_{model}" for model in BACKBONES),
    ]


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_can_run(name):
    recipe = RECIPES[name]
    config = get_recipe(name)
    check_config(config)
    assert config.recipe == recipe.name == name
    assert f"--recipe {name}" in recipe.command
    assert all((recipe.reproduces, recipe.expected, recipe.data, recipe.hardware))
    assert make_config(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    assert config.image_size in (None, make_meta_model(name).variant.image_size)


OURS = ("elpv", "small", "finetune", "tiny_imagenet")


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in OURS])
def test_recipe_of_the_paper_names_what_is_ours(name):
    recipe = RECIPES[name]
    assert "not run by us" in recipe.hardware
    assert "momentum 0.9" in recipe.ours
    averaged = any("averaging decay" in value for value in recipe.ours)
    assert averaged == (recipe.config.averaging_decay > 0)
    changed = any("RandAugment" in value for value in recipe.ours)
    assert changed == (recipe.config.augmentation.randaugment > 0)
    assert recipe.config.optimizer == "sgd"
    assert recipe.config.schedule == "cosine"


@pytest.mark.parametrize("model", FAMILY)
def test_family_is_the_papers(model):
    image_size, magnitude, parameters, accuracy = FAMILY[model]
    config = get_recipe(f"imagenet_{model}")
    steps_per_epoch = 1_281_167 // 4096
    assert config.model == f"halonet_{model}"
    assert config.image_size == image_size
    assert config.augmentation.randaugment == magnitude
    assert (config.epochs, config.batch_size, config.learning_rate) == (350, 4096, 1.6)
    assert round(350 * steps_per_epoch * config.warmup_share) == 10 * steps_per_epoch
    assert config.warmup_start_share == 0
    assert config.final_learning_rate_share == 1 / 128
    assert (config.weight_decay, config.label_smoothing) == (2e-5, 0.1)
    assert config.averaging_decay > 0
    assert config.model_options["dropout"] > 0
    assert (config.model_options["stochastic_depth"] > 0) == (model[:2] in ("h4", "h5", "h6", "h7"))
    assert round(millions(f"imagenet_{model}"), 1) == parameters
    assert f"{accuracy} %" in RECIPES[f"imagenet_{model}"].expected


def check_ablation(name, *, smoothing=0.0, magnitude=0):
    config = get_recipe(name)
    steps_per_epoch = 1_281_167 // config.batch_size
    assert (config.epochs, config.image_size) == (150, 256)
    assert config.learning_rate == pytest.approx(0.1 * config.batch_size / 256)
    assert round(150 * steps_per_epoch * config.warmup_share) == 10 * steps_per_epoch
    assert config.weight_decay == (4e-5 if magnitude else 8e-5)
    assert config.label_smoothing == smoothing
    assert config.augmentation.randaugment == magnitude


@pytest.mark.parametrize("row", COMPONENTS)
@pytest.mark.parametrize("model", ["halonet_50", "resnet_50"])
def test_components_are_the_papers(model, row):
    halonet, resnet, smoothing, excitation, activation, magnitude = COMPONENTS[row]
    name = f"components_{model}_{row}"
    check_ablation(name, smoothing=smoothing, magnitude=magnitude)
    variant = make_meta_model(name).variant
    assert variant.name == model
    assert variant.squeeze_excitation == (excitation,) * 4
    assert variant.activation == activation
    assert (variant.block_size, variant.halo_size) == (8, 3)
    assert RECIPES[name].expected == f"{halonet if model == 'halonet_50' else resnet} %"


@pytest.mark.parametrize("name", STUDIES)
def test_studies_are_the_papers(name):
    options, parameters = STUDIES[name]
    check_ablation(name)
    variant = make_meta_model(name).variant
    assert variant.name == "halonet_50"
    assert {field: getattr(variant, field) for field in options} == options
    assert round(millions(name), 1) == parameters
    if name.startswith("window"):
        assert int(name.split("_")[1]) == variant.block_size + 2 * variant.halo_size
    if name.startswith("scaling"):
        assert any(f"{millions(name):.2f} M" in value for value in RECIPES[name].ours)


def test_scaled_models_keep_their_heads_and_the_deep_one_has_98_layers():
    assert 3 * sum(make_meta_model("scaling_layers").variant.layers) + 2 == 98
    wide = make_meta_model("scaling_base_width").variant
    assert [wide.base_width * 2**stage / wide.heads[stage] for stage in range(4)] == [16] * 4


@pytest.mark.parametrize("model", TRANSFER)
def test_transfer_is_the_papers(model):
    *accuracies, parameters = TRANSFER[model]
    pretraining = get_recipe(f"pretrain_{model}")
    assert (pretraining.epochs, pretraining.batch_size) == (90, 4096)
    assert (pretraining.learning_rate, pretraining.weight_decay) == (0.16, 8e-5)
    assert pretraining.warmup_share == 2 / 90
    variant = make_meta_model(f"pretrain_{model}").variant
    assert (variant.image_size, variant.block_size, variant.halo_size) == (256, 8, 2)
    assert variant.bottleneck_ratio == 4
    assert variant.final_width is None
    assert variant.layers[1] == 4
    assert round(millions(f"pretrain_{model}")) == parameters
    for size, block, halo, accuracy in zip((384, 512), (12, 16), (2, 1), accuracies, strict=True):
        name = f"finetune_{model}_{size}"
        config = get_recipe(name)
        assert (config.epochs, config.batch_size, config.learning_rate) == (8, 512, 0.016)
        assert config.warmup_share == 0.5 / 8
        assert (config.label_smoothing, config.averaging_decay) == (0.1, 0)
        assert (config.weight_decay, config.augmentation.randaugment) == (0, 0)
        assert config.init == f"runs/pretrain_{model}"
        variant = make_meta_model(name).variant
        assert (variant.image_size, variant.block_size, variant.halo_size) == (size, block, halo)
        assert RECIPES[name].expected == f"{accuracy} %"


@pytest.mark.parametrize("model", BACKBONES)
def test_backbones_are_the_papers(model):
    box, mask = BACKBONES[model]
    config = get_recipe(f"backbone_{model}")
    assert (config.epochs, config.image_size) == (350, 512)
    assert config.augmentation.randaugment == 15
    variant = make_meta_model(f"backbone_{model}").variant
    assert variant.stochastic_depth == 0.1
    assert variant.squeeze_excitation == (True,) * 4
    halo = "halo" in model
    assert variant.spatial == ("convolution",) * 3 + (("attention" if halo else "convolution"),)
    assert f"box AP {box}, mask AP {mask}" in RECIPES[f"backbone_{model}"].reproduces


def test_configuration_is_the_callers_own():
    get_recipe("imagenet_h0").model_options["dropout"] = 0.9
    assert get_recipe("imagenet_h0").model_options["dropout"] == 0.2


def test_unknown_recipe_names_those_that_are_near():
    with pytest.raises(ValueError, match=r"got 'imagenet_h9'; near it are imagenet_h\d"):
        get_recipe("imagenet_h9")
    with pytest.raises(ValueError, match=r"which `halonet recipes` lists, got 'zzz'$"):
        get_recipe("zzz")


def test_flat_fields_have_the_names_of_the_options():
    flat = flatten_fields(
        {"epochs": 3, "augmentation": {"crop_share": [1, 1]}, "model_options": {}}
    )
    assert flat == {"epochs": 3, "augmentation.crop_share": [1, 1]}
