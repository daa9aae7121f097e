"""Named cases from the real models, and who competes in each.

A contestant is built in a process of its own and gives a function to time; `check` compares it
with the reference where it computes the same function, and returns what it found.
"""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

IMAGE_SIZES = {"halonet_h0": 256, "halonet_h1": 256, "halonet_h4": 384, "halonet_h7": 600}
# The paper's comparison: each H model beside the EfficientNet of its size.
EFFICIENTNETS = {
    "halonet_h0": ("efficientnet_b0", 224),
    "halonet_h1": ("efficientnet_b1", 240),
    "halonet_h4": ("efficientnet_b4", 380),
}
# The paper's table of detection, all beside R50 + SE; ours with timm's layer in its place too.
DETECTION_BACKBONES = {
    "convolutions": ["resnet_50", "resnet_101_se"],
    "resnet_50_halo8": ["resnet_50_se_halo8", "resnet_50_se_halo8/timm-layer"],
    "resnet_50_halo32": ["resnet_50_se_halo32", "resnet_50_se_halo32/timm-layer"],
    "resnet_101_halo8": ["resnet_101_se_halo8", "resnet_101_se_halo8/timm-layer"],
}


@dataclass(frozen=True)
class Contestant:
    """What is timed: a step without arguments, and whether its result was found right.

    `layer_times` grows by the seconds of each call of the layers that the case is about, if it is
    about some layers of a model.
    """

    step: Callable[[], object]
    checked: str
    layer_times: list[float] | None = None


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
            for direction in ("forward", "both"):
                cases[f"operator/{model}/{stage}/{direction}"] = ["cpu", "sdpa"]
    for channels in (16, 32, 64):
        cases[f"operator/64x64/{channels}_channels/forward"] = ["cpu", "sdpa"]
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


def build(case: str, contestant: str, compiled: bool) -> Contestant:
    """Set up a contestant of a case in this process."""
    torch.manual_seed(0)
    kind, *rest = case.split("/")
    if kind == "operator":
        return _operator(rest[0], rest[1], rest[2], contestant)
    if kind == "timm":
        return _timm_checkpoint(rest[0], rest[1], contestant, compiled)
    if kind == "detection":
        return _detection_backbone(contestant, compiled)
    if kind == "layer":
        return _layer(rest[0], rest[1], rest[2], contestant, compiled)
    return _model(rest[0], rest[1], contestant, compiled)


def operator_flops(case: str) -> int | None:
    """Operations of q.k and p.v on cells inside the map, forward, of an operator's case."""
    kind, *rest = case.split("/")
    if kind != "operator":
        return None
    stage = _stage(rest[0], rest[1])
    batch = _batch(rest[0])

    def cells_by_query(side: int) -> int:
        total = 0
        for start in range(0, side, stage.block_size):
            first = max(0, start - stage.halo_size)
            last = min(side, start + stage.block_size + stage.halo_size)
            queries = len(range(start, min(start + stage.block_size, side), stage.stride))
            total += queries * (last - first)
        return total

    pairs = cells_by_query(stage.map_size) ** 2
    return 2 * batch * pairs * (stage.width + stage.value_width)


def _batch(model: str) -> int:
    return {"halonet_h4": 2, "halonet_h7": 1}.get(model, 4)


def _stage(model: str, name: str) -> Stage:
    if model == "64x64":
        width = 4 * int(name.removesuffix("_channels"))
        return Stage(64, 1, width, width, 4, 8, 3)
    return stages(model)[name]


def _operator(model: str, name: str, direction: str, backend: str) -> Contestant:
    from halonet import halo_attention

    stage = _stage(model, name)
    heads, size, batch = stage.heads, stage.map_size, _batch(model)
    small = -(-size // stage.stride)
    channels, value_channels = stage.width // heads, stage.value_width // heads
    length = 2 * (stage.block_size + stage.halo_size) - 1
    shapes = [
        (batch, small, small, heads, channels),
        (batch, size, size, heads, channels),
        (batch, size, size, heads, value_channels),
        (length, channels // 2),
        (length, channels // 2),
    ]
    inputs = [torch.randn(shape, requires_grad=direction == "both") for shape in shapes]

    def forward(which: str) -> Tensor:
        return halo_attention(
            *inputs,
            block_size=stage.block_size,
            halo_size=stage.halo_size,
            stride=stage.stride,
            backend=which,
        )

    gradient = torch.randn(batch, small, small, heads, value_channels)
    if direction == "forward":

        def step() -> object:
            with torch.no_grad():
                return forward(backend)
    else:

        def step() -> object:
            return torch.autograd.grad(forward(backend), inputs, gradient)

    reference = forward("reference")
    error = (forward(backend) - reference).abs().max().item()
    if direction == "both":
        expected = torch.autograd.grad(reference, inputs, gradient)
        pairs = zip(torch.autograd.grad(forward(backend), inputs, gradient), expected, strict=True)
        error = max(error, *((found - e).abs().max() / e.abs().max() for found, e in pairs))
    if not error < 1e-4:
        raise AssertionError(f"{backend} is {error} off the reference")
    return Contestant(step, f"{float(error):.1e} off the reference")


def _layer(model: str, name: str, direction: str, peer: str, compiled: bool) -> Contestant:
    stage = _stage(model, name)
    layer = _make_layer(peer, stage)
    maps = torch.randn(4, stage.width, stage.map_size, stage.map_size)
    maps = maps.to(memory_format=torch.channels_last).requires_grad_(direction == "both")
    return _timed(layer, maps, direction == "both", compiled)


def _make_layer(peer: str, stage: Stage) -> nn.Module:
    if peer == "timm":
        from timm.layers.halo_attn import HaloAttn

        return HaloAttn(
            stage.width,
            stage.value_width,
            stride=stage.stride,
            num_heads=stage.heads,
            block_size=stage.block_size,
            halo_size=stage.halo_size,
        )
    if peer == "halonet-pytorch":
        from halonet_pytorch import HaloAttention as Peer

        return Peer(
            dim=stage.width,
            block_size=stage.block_size,
            halo_size=stage.halo_size,
            dim_head=stage.width // stage.heads,
            heads=stage.heads,
        )
    from halonet import HaloAttention

    return HaloAttention(
        stage.width,
        stage.value_width,
        heads=stage.heads,
        block_size=stage.block_size,
        halo_size=stage.halo_size,
        stride=stage.stride,
        backend=peer,
    )


def _model(name: str, mode: str, peer: str, compiled: bool) -> Contestant:
    training = mode.startswith("training")
    dtype = torch.bfloat16 if mode.endswith("bfloat16") and peer == "cpu" else torch.float32
    batch = int("".join(filter(str.isdigit, mode.removesuffix("_bfloat16"))))
    size = EFFICIENTNETS[name][1] if peer == "efficientnet" else IMAGE_SIZES[name]
    network = _make_network(name, peer)
    checked = "its own function"
    images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    if not training:
        network.eval()
        fuse = getattr(network, "fuse", None)
        if fuse is not None and peer != "timm-layer":
            _shake_norms(network)
            plain = network
            network = fuse()
            with torch.no_grad():
                expected = plain(images)
                error = ((network(images) - expected).abs().max() / expected.abs().max()).item()
            if not error < 1e-3:
                raise AssertionError(f"the fused model is {error} off the unfused one")
            checked = f"fused, {error:.1e} off the unfused model"
    network = network.to(dtype)
    contestant = _timed(network, images.to(dtype), training, compiled)
    return Contestant(contestant.step, checked)


def _shake_norms(network: nn.Module) -> None:
    """As after training: fresh norms leave every branch at zero, and nothing to compare."""
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.1, 0.1)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            nn.init.uniform_(norm.running_mean, -0.1, 0.1)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)


def _make_network(name: str, peer: str) -> nn.Module:
    if peer == "efficientnet":
        import timm

        return timm.create_model(EFFICIENTNETS[name][0])
    if peer == "timm-halonet_h1":
        import timm

        return timm.create_model("halonet_h1", num_classes=1000)
    import halonet

    backend = None if peer == "timm-layer" else peer.removesuffix("-float32")
    network = halonet.create_model(name, backend=backend)
    if peer == "timm-layer":
        put_in_timms_layer(network)
    return network


def put_in_timms_layer(network: nn.Module) -> None:
    """Replace each of our attention layers by timm's of the same widths and heads."""
    from timm.layers.halo_attn import HaloAttn

    for module in network.modules():
        layer: Any = getattr(module, "spatial", None)
        if layer is not None and hasattr(layer, "halo_size"):
            module.spatial = HaloAttn(
                layer.in_channels,
                layer.out_channels,
                stride=layer.stride,
                num_heads=layer.heads,
                block_size=layer.block_size,
                halo_size=layer.halo_size,
            )


def _detection_backbone(peer: str, compiled: bool) -> Contestant:
    """Forward and backward of a backbone's four maps, one image of 1024 px."""
    import halonet

    name, _, layer = peer.partition("/")
    network = halonet.create_model(name, num_classes=0)
    if layer == "timm-layer":
        put_in_timms_layer(network)
    network = network.to(memory_format=torch.channels_last).train()
    images = torch.randn(1, 3, 1024, 1024).to(memory_format=torch.channels_last)
    run = torch.compile(network.feature_maps) if compiled else network.feature_maps
    gradients = [torch.ones_like(maps) for maps in run(images).values()]

    def step() -> object:
        network.zero_grad()
        torch.autograd.backward(list(run(images).values()), gradients)
        return None

    millions = sum(one.numel() for one in network.parameters()) / 1e6
    return Contestant(step, f"{millions:.2f} M parameters, without classifier")


def _timm_checkpoint(name: str, mode: str, peer: str, compiled: bool) -> Contestant:
    """One of timm's models at its own image size: with our layers, with its own, and with its
    projections alone (the floor: what no attention operator can go below)."""
    import timm

    from halonet import replace_timm_layers

    network: Any = timm.create_model(name).eval()
    batch = int(mode.removeprefix("inference"))
    images = torch.randn(batch, *network.default_cfg["input_size"])
    images = images.to(memory_format=torch.channels_last)
    checked = "its own function"
    if peer == "cpu":
        with torch.no_grad():
            expected = network(images)
            found = replace_timm_layers(network, backend="cpu")(images)
        error = ((found - expected).abs().max() / expected.abs().max()).item()
        if not error < 1e-3:
            raise AssertionError(f"our layers are {error} off timm's")
        checked = f"{error:.1e} off timm's own layers, relative"
    elif peer == "floor":
        _skip_attention(replace_timm_layers(network))
        checked = "projections without attention, not the same function"
    layer_times = None if compiled else _time_halo_layers(network)
    return Contestant(_timed(network, images, False, compiled).step, checked, layer_times)


def _time_halo_layers(network: nn.Module) -> list[float]:
    """A list that grows by the seconds of each call of a halo attention layer of timm's or ours."""
    from timm.layers.halo_attn import HaloAttn

    from halonet.integrations.timm_checkpoints import TimmHaloAttention

    seconds: list[float] = []
    started = []
    for layer in network.modules():
        if isinstance(layer, (HaloAttn, TimmHaloAttention)):
            layer.register_forward_pre_hook(lambda *_: started.append(time.perf_counter()))
            layer.register_forward_hook(
                lambda *_: seconds.append(time.perf_counter() - started.pop())
            )
    return seconds


def _skip_attention(network: nn.Module) -> None:
    """Let the values through where the queries' attention would come out."""
    from halonet.integrations.timm_checkpoints import TimmHaloAttention

    for layer in network.modules():
        if isinstance(layer, TimmHaloAttention):

            def attend(
                query: Tensor, key: Tensor, value: Tensor, stride: int = layer.stride
            ) -> Tensor:
                return value[:, ::stride, ::stride]

            layer.attend = attend


def _timed(module: nn.Module, images: Tensor, training: bool, compiled: bool) -> Contestant:
    for parameter in module.parameters():
        if parameter.dim() == 4:  # timm's lambda layer has a Conv3d, which `module.to` refuses
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    run: Callable[[Tensor], Tensor] = torch.compile(module) if compiled else module
    if training:
        module.train()
        gradient = torch.ones_like(run(images))

        def step() -> object:
            module.zero_grad()
            run(images).backward(gradient)
            return None
    else:
        module.eval()

        def step() -> object:
            with torch.no_grad():
                return run(images)

    return Contestant(step, "its own function")


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
