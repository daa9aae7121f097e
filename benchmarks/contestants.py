"""Contestants of the cases: each built in a process of its own, and checked before it is timed."""

import copy
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from cases import EFFICIENTNETS, IMAGE_SIZES, batch_size, find_stage
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from halonet.check.stages import Stage
from halonet.devices import MATRIX_SIDE


@dataclass(frozen=True)
class Contestant:
    """What is timed: a step without arguments, and how its result was checked.

    In cases that time some layers of a model, each call of such a layer appends its seconds to
    `layer_times`.
    """

    step: Callable[[], object]
    checked: str
    layer_times: list[float] | None = None


def build(case: str, contestant: str, compiled: bool) -> Contestant:
    """Set up a contestant of a case in this process."""
    torch.manual_seed(0)
    kind, *rest = case.split("/")
    if contestant == "matrix-product":
        return _matrix_product()
    if kind == "operator":
        return _operator(rest[0], rest[1], rest[2], contestant)
    if kind == "timm":
        return _timm_checkpoint(rest[0], rest[1], contestant, compiled)
    if kind == "detection":
        return _detection_backbone(contestant, compiled)
    if kind == "layer":
        return _layer(rest[0], rest[1], rest[2], contestant, compiled)
    return _model(rest[0], rest[1], contestant, compiled)


def _matrix_product() -> Contestant:
    left, right = torch.randn(MATRIX_SIDE, MATRIX_SIDE), torch.randn(MATRIX_SIDE, MATRIX_SIDE)
    return Contestant(lambda: torch.mm(left, right), "torch's, for the machine's rate")


def _operator(model: str, name: str, direction: str, backend: str) -> Contestant:
    from halonet import halo_attention

    stage = find_stage(model, name)
    inputs = stage.make_inputs(batch_size(model), requires_grad=direction == "both")

    def forward(which: str) -> Tensor:
        return halo_attention(**inputs, **stage.options, backend=which)

    leaves = list(inputs.values())
    if direction == "forward":

        def step() -> object:
            with torch.no_grad():
                return forward(backend)
    else:

        def step() -> object:
            return torch.autograd.grad(forward(backend), leaves, gradient)

    reference = forward("reference")
    gradient = torch.randn_like(reference)
    error = (forward(backend) - reference).abs().max().item()
    if direction == "both":
        expected = torch.autograd.grad(reference, leaves, gradient)
        pairs = zip(torch.autograd.grad(forward(backend), leaves, gradient), expected, strict=True)
        error = max(error, *((found - e).abs().max() / e.abs().max() for found, e in pairs))
    if not error < 1e-4:
        raise AssertionError(f"{backend} is {error} off the reference")
    return Contestant(step, f"{float(error):.1e} off the reference")


def _layer(model: str, name: str, direction: str, peer: str, compiled: bool) -> Contestant:
    stage = find_stage(model, name)
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
    in_bfloat16 = mode.endswith("bfloat16") and not peer.endswith("-float32")
    peer = peer.removesuffix("-float32")
    batch = int("".join(filter(str.isdigit, mode.removesuffix("_bfloat16"))))
    size = EFFICIENTNETS[name][1] if peer == "efficientnet" else IMAGE_SIZES[name]
    network: Any = _make_network(name, peer)
    checked = "its own function"
    images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    if not training:
        network.eval()
        if not peer.startswith("timm"):
            _shake_norms(network)
            plain = network
            network = _fold_norms(plain) if peer == "efficientnet" else plain.fuse()
            with torch.no_grad():
                expected = plain(images)
                error = ((network(images) - expected).abs().max() / expected.abs().max()).item()
            if not error < 1e-3:
                raise AssertionError(f"the fused model is {error} off the unfused one")
            checked = f"fused, {error:.1e} off the unfused model"
    if in_bfloat16 and not training:
        network, images = network.to(torch.bfloat16), images.to(torch.bfloat16)
    contestant = _timed(network, images, training, compiled)
    step = contestant.step
    if in_bfloat16 and training:

        def step() -> object:
            with torch.autocast("cpu", torch.bfloat16):
                return contestant.step()

    return Contestant(step, checked)


def _fold_norms(network: nn.Module) -> nn.Module:
    """A copy of timm's EfficientNet with batch norms folded into the convolutions before them."""
    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        children = list(parent.named_children())
        for (name, convolution), (norm_name, norm) in itertools.pairwise(children):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(convolution, norm))
                setattr(parent, norm_name, norm.act)
    return network


def _shake_norms(network: nn.Module) -> None:
    """Draw the norms' parameters: fresh ones leave every branch at zero, and nothing to compare."""
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

    backend = None if peer == "timm-layer" else peer
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
    """One of timm's models at its own image size, with our layers, its own, or none (the floor).

    The floor keeps the layers' projections: no attention operator can be faster.
    """
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
    """A list to which each call of a halo attention layer, timm's or ours, appends its seconds."""
    from timm.layers.halo_attn import HaloAttn

    from halonet.layers.timm_attention import TimmHaloAttention

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
    """Return the values in place of the attention's output."""
    from halonet.layers.timm_attention import TimmHaloAttention

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
