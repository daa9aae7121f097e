"""The paper's classifiers (arXiv 2103.12731): a recipe for each result, with the values it states.

Values that the paper doesn't state are our choice; `Recipe.ours` names them. We have run none of
these recipes.
"""

from collections.abc import Iterator
from typing import Any

from halonet.classification.config import TrainingConfig
from halonet.data.augmentation import Augmentation
from halonet.models.variants import get_variant
from halonet.training.config import Recipe

HARDWARE = "TPUv3 in the paper; not run by us"
IMAGENET = "folder:imagenet"
IMAGENET_21K = "shards:imagenet21k"

# The training of H0 to H7; the other recipes give their differences from it.
_STATED: dict[str, Any] = {
    "epochs": 350,
    "batch_size": 4096,
    "optimizer": "sgd",  # Nesterov's
    "learning_rate": 1.6,  # 0.1 for 256 images
    "warmup_share": 10 / 350,
    "final_learning_rate_share": 1 / 128,
    "weight_decay": 2e-5,
    "label_smoothing": 0.1,
}
_CHOSEN: dict[str, Any] = {
    "averaging_decay": 0.9999,
    "clip_norm": 0.0,
    "mixed_precision": "bf16",
    "evaluate_epochs": 5,
    "workers": 8,
}
_OURS = (
    "momentum 0.9",
    "random crops of 8 to 100 % of the area, mirrored at random",
    "evaluated on the central s / (s + 32) of the resized image",
    "no weight decay of norms, biases and relative tables",
    "no limit on the gradient's norm",
    "bfloat16",
)
_OURS_AVERAGED = (*_OURS, "averaging decay 0.9999")
_OURS_RANDAUGMENT = "two changes of RandAugment an image"

# Top-1 in %, RandAugment's magnitude (table 3); dropout and stochastic depth are ours.
_FAMILY = {
    "h0": (77.9, 6, 0.2, 0.0),
    "h1": (79.9, 8, 0.2, 0.0),
    "h2": (80.4, 10, 0.3, 0.0),
    "h3": (81.9, 14, 0.3, 0.0),
    "h4": (83.3, 17, 0.4, 0.1),
    "h5": (84.0, 19, 0.4, 0.1),
    "h6": (84.4, 24, 0.5, 0.2),
    "h7": (84.9, 31, 0.5, 0.2),
}
_HYBRIDS = {
    "conv1": ("stage 1", 84.6),
    "conv12": ("stages 1 and 2", 84.7),
    "conv123": ("stages 1 to 3", 83.8),
}

# Top-1 in % of HaloNet-50 and of ResNet-50.
_COMPONENTS = {
    (): (78.6, 77.6),
    ("smoothing",): (79.7, 78.1),
    ("smoothing", "randaugment"): (79.9, 78.4),
    ("excitation",): (78.6, 78.6),
    ("excitation", "silu"): (79.0, 78.9),
    ("smoothing", "excitation"): (79.7, 78.9),
    ("smoothing", "excitation", "silu"): (79.9, 79.1),
    ("smoothing", "excitation", "silu", "randaugment"): (80.5, 79.5),
}
_COMPONENT_WORDS = {
    "smoothing": "label smoothing",
    "excitation": "squeeze-and-excitation",
    "silu": "SiLU",
    "randaugment": "RandAugment",
}

# (window, block) to the accuracy that the paper finds; halo = (window - block) / 2.
_WINDOWS = {
    (6, 4): "above window_8_block_8",
    (8, 8): "below window_6_block_4",
    (12, 4): "as window_12_block_8",
    (12, 6): "as window_12_block_8",
    (12, 8): "1.3 % above window_6_block_4",
}

# Options, gain in accuracy (%) over HaloNet-50, what is ours.
_SCALING: dict[str, tuple[dict[str, Any], str, str]] = {
    "layers": (
        {"layers": [3, 4, 22, 3]},
        "+0.9",
        "all 16 more bottlenecks (98 layers) in the third stage: 29.61 M parameters",
    ),
    "value_ratio": ({"value_ratio": 3.0}, "+0.5", "the same number of heads: 30.61 M parameters"),
    "base_width": (
        {"base_width": 80, "heads": [5, 10, 20, 40]},
        "+0.4",
        "more heads, still of 16 channels, and the same stem: 27.48 M parameters",
    ),
    "bottleneck_ratio": ({"bottleneck_ratio": 6.5}, "+0.1", "29.69 M parameters"),
    "query_key_ratio": (
        {"query_key_ratio": 6.5},
        "-0.2",
        "the same number of heads: 31.88 M parameters",
    ),
}

# Variant of the base-128 model to what it is, and its top-1 in % at 384 and 512 pixels.
_TRANSFER = {
    "h4_base128": ("attention in all stages", 85.6, 85.8),
    "h4_base128_patch4": ("a stem of 4x4 patches", 85.4, 85.4),
    "h4_base128_conv12": ("convolutions in stages 1 and 2", 85.5, 85.8),
}

# Model to box and mask AP of Mask R-CNN with it.
_BACKBONES = {
    "resnet_50_se": (44.5, 39.6),
    "resnet_50_se_halo8": (45.2, 40.3),
    "resnet_50_se_halo32": (45.4, 40.5),
    "resnet_101_se": (45.9, 40.6),
    "resnet_101_se_halo8": (46.8, 41.2),
}


def paper_recipes() -> Iterator[Recipe[TrainingConfig]]:
    """All recipes, in the paper's order."""
    yield from imagenet_recipes()
    yield from component_recipes()
    yield from study_recipes()
    yield from scaling_recipes()
    yield from transfer_recipes()
    yield from backbone_recipes()


def imagenet_recipes() -> Iterator[Recipe[TrainingConfig]]:
    """H0 to H7 (table 3), and H7 with convolutions (appendix B)."""
    for size, (accuracy, *_) in _FAMILY.items():
        read_off = "" if size == "h7" else " (read off a figure)"
        yield _imagenet_recipe(
            size,
            size,
            reproduces=f"{size.upper()} on ImageNet (table 3)",
            expected=f"{accuracy} %{read_off}",
        )
    for kind, (stages, accuracy) in _HYBRIDS.items():
        yield _imagenet_recipe(
            f"h7_{kind}",
            "h7",
            reproduces=f"H7 with convolutions in {stages} (appendix B)",
            expected=f"{accuracy} %",
        )


def _imagenet_recipe(model: str, size: str, **texts: Any) -> Recipe[TrainingConfig]:
    _, magnitude, dropout, stochastic_depth = _FAMILY[size]
    return _make_recipe(
        f"imagenet_{model}",
        f"halonet_{model}",
        options={"dropout": dropout, "stochastic_depth": stochastic_depth},
        magnitude=magnitude,
        ours=(*_OURS_AVERAGED, f"dropout {dropout}", f"stochastic depth {stochastic_depth}"),
        **texts,
    )


def component_recipes() -> Iterator[Recipe[TrainingConfig]]:
    """HaloNet-50 and ResNet-50 with some of four components (section 4.2)."""
    for place, (model, title) in enumerate(
        (("halonet_50", "HaloNet-50"), ("resnet_50", "ResNet-50"))
    ):
        for parts, accuracies in _COMPONENTS.items():
            words = ", ".join(_COMPONENT_WORDS[part] for part in parts) or "none of the components"
            options: dict[str, Any] = {}
            if "excitation" in parts:
                options["squeeze_excitation"] = True
            if "silu" in parts:
                options["activation"] = "silu"
            yield _make_ablation(
                f"components_{model}_{'_'.join(parts) or 'baseline'}",
                model,
                reproduces=f"{title}, {words} (section 4.2)",
                expected=f"{accuracies[place]} %",
                options=options,
                magnitude=10 if "randaugment" in parts else 0,
                weight_decay=4e-5 if "randaugment" in parts else 8e-5,
                label_smoothing=0.1 if "smoothing" in parts else 0.0,
            )


def study_recipes() -> Iterator[Recipe[TrainingConfig]]:
    """HaloNet-50's windows, blocks and halos, SASA's mask, and absolute position."""
    for (window, block), expected in _WINDOWS.items():
        halo = (window - block) // 2
        yield _make_ablation(
            f"window_{window}_block_{block}",
            reproduces=f"HaloNet-50, window {window} by block {block} and halo {halo}",
            expected=expected,
            options={"block_size": block, "halo_size": halo},
            ours=("the block and the halo that make up the window",) if window == 12 else (),
        )
    yield _make_ablation(
        "sasa_mask",
        reproduces="HaloNet-50 masked to 7x7 around each pixel, as SASA",
        expected="below components_halonet_50_baseline",
        options={"kernel_size": 7},
    )
    yield _make_ablation(
        "absolute_position",
        reproduces="HaloNet-50 with absolute instead of relative position",
        expected="77.5 %",
        options={"position": "absolute"},
    )


def scaling_recipes() -> Iterator[Recipe[TrainingConfig]]:
    """HaloNet-50 scaled to about 30 M parameters, along one dimension each."""
    for name, (options, gain, ours) in _SCALING.items():
        yield _make_ablation(
            f"scaling_{name}",
            reproduces=f"HaloNet-50 scaled to about 30 M parameters by {name.replace('_', ' ')}",
            expected=f"{gain} % over HaloNet-50",
            options=options,
            ours=(ours, "trained as components_halonet_50_baseline"),
        )


def transfer_recipes() -> Iterator[Recipe[TrainingConfig]]:
    """The base-128 models: ImageNet-21k, then ImageNet at higher resolution (section 4.4)."""
    common = {"averaging_decay": 0.0, "final_learning_rate_share": 0.0}
    for model, (kind, *_) in _TRANSFER.items():
        yield _make_recipe(
            f"pretrain_{model}",
            f"halonet_{model}",
            reproduces=f"pretraining of H4 of base width 128 on ImageNet-21k, {kind} (section 4.4)",
            expected="not stated",
            data=IMAGENET_21K,
            ours=(
                *_OURS,
                "learning rate falls to 0",
                "no label smoothing",
                "no averaging",
                "0.5 % of each class held out, where the data has no held-out part",
            ),
            epochs=90,
            learning_rate=0.16,
            warmup_share=2 / 90,
            weight_decay=8e-5,
            label_smoothing=0.0,
            validation_share=0.005,
            **common,
        )
    for model, (_, *accuracies) in _TRANSFER.items():
        for image_size, block, halo, accuracy in zip(
            (384, 512), (12, 16), (2, 1), accuracies, strict=True
        ):
            yield _make_recipe(
                f"finetune_{model}_{image_size}",
                f"halonet_{model}",
                reproduces=f"pretrain_{model} fine-tuned at {image_size} px (section 4.4)",
                expected=f"{accuracy} %",
                options={"block_size": block, "halo_size": halo},
                image_size=image_size,
                ours=(
                    *_OURS,
                    "learning rate falls to 0",
                    "no weight decay, taking it for regularisation",
                ),
                init=f"runs/pretrain_{model}",
                epochs=8,
                batch_size=512,
                learning_rate=0.016,
                warmup_share=0.5 / 8,
                weight_decay=0.0,
                evaluate_epochs=1,
                **common,
            )


def backbone_recipes() -> Iterator[Recipe[TrainingConfig]]:
    """Backbones for detection, pretrained on ImageNet."""
    for model, (box, mask) in _BACKBONES.items():
        yield _make_recipe(
            f"backbone_{model}",
            model,
            reproduces=f"{model} for detection (box AP {box}, mask AP {mask} in Mask R-CNN)",
            expected="not stated",
            options={"stochastic_depth": 0.1},
            magnitude=15,
            ours=(
                *_OURS_AVERAGED,
                "weight decay 4e-5, as the components' ResNet-50 with RandAugment",
                "batch, learning rate, its course and label smoothing of H0 to H7",
            ),
            weight_decay=4e-5,
        )


def _make_ablation(
    name: str, model: str = "halonet_50", *, ours: tuple[str, ...] = (), **changes: Any
) -> Recipe[TrainingConfig]:
    """HaloNet-50 or ResNet-50 trained as in the ablations, with changes to the baseline."""
    values: dict[str, Any] = {
        "epochs": 150,
        "warmup_share": 10 / 150,
        "weight_decay": 8e-5,
        "label_smoothing": 0.0,
    }
    return _make_recipe(
        name,
        model,
        ours=(
            *_OURS_AVERAGED,
            "batch 4096",
            "warm-up, cosine to 1/128 and averaging of H0 to H7",
            *ours,
        ),
        **(values | changes),
    )


def _make_recipe(
    name: str,
    model: str,
    *,
    reproduces: str,
    expected: str,
    ours: tuple[str, ...],
    data: str = IMAGENET,
    options: dict[str, Any] | None = None,
    magnitude: int = 0,
    image_size: int | None = None,
    **changes: Any,
) -> Recipe[TrainingConfig]:
    """The training of H0 with changes, at the model's own image size unless another is given."""
    size = image_size or get_variant(model).image_size
    config = TrainingConfig(
        recipe=name,
        data=data,
        model=model,
        model_options=options or {},
        image_size=size,
        central_crop_share=size / (size + 32),
        augmentation=Augmentation(crop_share=(0.08, 1.0), randaugment=magnitude),
        **_STATED | _CHOSEN | changes,
    )
    return Recipe(
        config,
        reproduces=reproduces,
        expected=expected,
        data=data,
        hardware=HARDWARE,
        command=f"halonet train --recipe {name} --data {data}",
        ours=(*ours, _OURS_RANDAUGMENT) if magnitude else ours,
    )
