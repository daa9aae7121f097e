"""Named cases from the real models, and who competes in each."""

import importlib.util
from dataclasses import dataclass

IMAGE_SIZES = {"halonet_h0": 256, "halonet_h1": 256, "halonet_h4": 384, "halonet_h7": 600}
MATRIX_SIDE = 1024  # of the square float32 matrices whose product gives the machine's rate
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


@dataclass(frozen=True)
class Stage:
    """The maps that one attention layer of a model sees."""

    map_size: int
    stride: int
    width: int
    value_width: int
    heads: int
    block_size: int
    halo_size: int


def stages(model: str) -> dict[str, Stage]:
    """The attention layers of a model at its image size: one for each stage and stride."""
    from halonet import get_variant

    variant = get_variant(model)
    found = {}
    side = -(-variant.image_size // 4)
    for stage in range(4):
        width = variant.base_width * 2**stage
        for stride in (2, 1) if stage else (1,):
            name = f"stage{stage + 1}{'_down' if stride == 2 else ''}"
            found[name] = Stage(
                side,
                stride,
                width,
                round(width * variant.value_ratio),
                variant.heads[stage],
                variant.block_size,
                variant.halo_size,
            )
            side = -(-side // stride)
    return found


def list_cases() -> dict[str, list[str]]:
    """Every case and its contestants, the first being the one that the others are compared with."""
    from halonet.integrations.timm_checkpoints import TIMM_CHECKPOINTS

    cases: dict[str, list[str]] = {}
    for model in ("halonet_h0", "halonet_h1", "halonet_h4", "halonet_h7"):
        if model == "halonet_h0":
            continue  # its attention layers are H1's
        for stage in stages(model):
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
            peers += ["timm-halonet_h1", "sdpa"]
        for mode in ("inference1", "inference4", "training8"):
            cases[f"model/{model}/{mode}"] = ["cpu", *peers]
    cases["model/halonet_h1/inference4_bfloat16"] = ["cpu", "cpu-float32"]
    for row, backbones in DETECTION_BACKBONES.items():
        cases[f"detection/{row}/training1"] = ["resnet_50_se", *backbones]
    for model in TIMM_CHECKPOINTS:
        for mode in ("inference1", "inference4"):
            cases[f"timm/{model}/{mode}"] = ["cpu", "timm", "floor"]
    return cases


def operator_flops(case: str) -> int | None:
    """Operations of an operator's case on cells inside the map: its products, and nothing else.

    Forward there are two, q.k and p.v. The backward pass has five: q.k again, the output's gradient
    with the values, and the gradients of queries, keys and values.
    """
    kind, *rest = case.split("/")
    if kind != "operator":
        return None
    stage = find_stage(rest[0], rest[1])
    batch = batch_size(rest[0])

    def cells_by_query(side: int) -> int:
        total = 0
        for start in range(0, side, stage.block_size):
            first = max(0, start - stage.halo_size)
            last = min(side, start + stage.block_size + stage.halo_size)
            queries = len(range(start, min(start + stage.block_size, side), stage.stride))
            total += queries * (last - first)
        return total

    pairs = cells_by_query(stage.map_size) ** 2
    of_keys, of_values = (4, 3) if rest[2] == "both" else (1, 1)
    return 2 * batch * pairs * (of_keys * stage.width + of_values * stage.value_width)


def batch_size(model: str) -> int:
    """Images of an operator's or a layer's case."""
    return {"halonet_h4": 2, "halonet_h7": 1}.get(model, 4)


def find_stage(model: str, name: str) -> Stage:
    """The attention of an operator's or a layer's case."""
    if model == "64x64":
        width = 4 * int(name.removesuffix("_channels"))
        return Stage(64, 1, width, width, 4, 8, 3)
    return stages(model)[name]


def available(contestant: str) -> bool:
    """Whether the package of a contestant is installed."""
    package = {
        "timm": "timm",
        "timm-layer": "timm",
        "timm-halonet_h1": "timm",
        "efficientnet": "timm",
        "halonet-pytorch": "halonet_pytorch",
    }.get(contestant.partition("/")[2] or contestant)
    return package is None or importlib.util.find_spec(package) is not None
