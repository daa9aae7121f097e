"""Named cases from the real models, and who competes in each."""

import importlib.util

from halonet.check.stages import Stage, list_stages
from halonet.devices import MATRIX_SIDE
from halonet.models.flops import count_flops
from halonet.models.variants import get_variant

IMAGE_SIZES = {"halonet_h0": 256, "halonet_h1": 256, "halonet_h4": 384, "halonet_h7": 600}
# The paper's comparison: each H model with the EfficientNet of its size.
EFFICIENTNETS = {
    "halonet_h0": ("efficientnet_b0", 224),
    "halonet_h1": ("efficientnet_b1", 240),
    "halonet_h4": ("efficientnet_b4", 380),
}
# The paper's table of detection, compared with R50 + SE; with timm's layer in place of ours too.
DETECTION_BACKBONES = {
    "convolutions": ["resnet_50", "resnet_101_se"],
    "resnet_50_halo8": ["resnet_50_se_halo8", "resnet_50_se_halo8/timm-layer"],
    "resnet_50_halo32": ["resnet_50_se_halo32", "resnet_50_se_halo32/timm-layer"],
    "resnet_101_halo8": ["resnet_101_se_halo8", "resnet_101_se_halo8/timm-layer"],
}


def list_cases() -> dict[str, list[str]]:
    """Every case and its contestants, the first being the one that the others are compared with."""
    from halonet.models.timm_variants import TIMM_CHECKPOINTS

    cases: dict[str, list[str]] = {}
    for model in ("halonet_h0", "halonet_h1", "halonet_h4", "halonet_h7"):
        if model == "halonet_h0":
            continue  # its attention layers are H1's
        for stage in list_stages(model):
            cases[f"operator/{model}/{stage}/forward"] = ["cpu", "sdpa", "matrix-product"]
            cases[f"operator/{model}/{stage}/both"] = ["cpu", "sdpa", "matrix-product"]
    for channels in (16, 32, 64):
        cases[f"operator/64x64/{channels}_channels/forward"] = ["cpu", "sdpa", "matrix-product"]
    for stage in ("stage1", "stage2", "stage3"):
        for direction in ("forward", "both"):
            cases[f"layer/halonet_h1/{stage}/{direction}"] = ["cpu", "timm", "halonet-pytorch"]
    for model in EFFICIENTNETS:
        peers = ["efficientnet", "timm-layer"]
        if model == "halonet_h1":
            peers += ["timm-halonet_h1", "sdpa", "matrix-product"]
        for mode in ("inference1", "inference4", "training8"):
            cases[f"model/{model}/{mode}"] = ["cpu", *peers]
    cases["model/halonet_h1/inference16"] = ["cpu", "matrix-product"]
    for mode in ("inference1", "inference4", "training8"):
        cases[f"model/halonet_h1/{mode}_bfloat16"] = [
            "cpu",
            "cpu-float32",
            "efficientnet",
            "efficientnet-float32",
        ]
    for row, backbones in DETECTION_BACKBONES.items():
        cases[f"detection/{row}/training1"] = ["resnet_50_se", *backbones]
    for model in TIMM_CHECKPOINTS:
        for mode in ("inference1", "inference4"):
            cases[f"timm/{model}/{mode}"] = ["cpu", "timm", "floor"]
    return cases


def count_operations(case: str, contestant: str) -> int | None:
    """Floating-point operations of a turn, where they are compared with the matrix rate.

    That is of the operator, and of our models in float32, whose backward pass counts twice.
    """
    if contestant == "matrix-product":
        return 2 * MATRIX_SIDE**3
    kind, *rest = case.split("/")
    if kind == "operator":
        stage = find_stage(rest[0], rest[1])
        return stage.count_operations(batch_size(rest[0]), backward=rest[2] == "both")
    if kind == "model" and contestant == "cpu" and not case.endswith("_bfloat16"):
        images = int("".join(filter(str.isdigit, rest[1])))
        passes = 3 if rest[1].startswith("training") else 1
        return passes * images * count_flops(get_variant(rest[0]), IMAGE_SIZES[rest[0]])
    return None


def batch_size(model: str) -> int:
    """Images of an operator's or a layer's case."""
    return {"halonet_h4": 2, "halonet_h7": 1}.get(model, 4)


def find_stage(model: str, name: str) -> Stage:
    """The attention of an operator's or a layer's case."""
    if model == "64x64":
        width = 4 * int(name.removesuffix("_channels"))
        return Stage(64, 1, width, width, 4, 8, 3)
    return list_stages(model)[name]


def available(contestant: str) -> bool:
    """Whether the package of a contestant is installed."""
    peer = contestant.removesuffix("-float32")
    package = {
        "timm": "timm",
        "timm-layer": "timm",
        "timm-halonet_h1": "timm",
        "efficientnet": "timm",
        "halonet-pytorch": "halonet_pytorch",
    }.get(peer.partition("/")[2] or peer)
    return package is None or importlib.util.find_spec(package) is not None
