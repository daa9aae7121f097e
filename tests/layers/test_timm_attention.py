"""timm's models with our operator inside: the same function, before and after."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.layers.halo_attn import HaloAttn
from torch import Tensor, nn

import halonet
from halonet.layers.pointwise import PointwiseConvolution
from halonet.layers.timm_attention import TimmHaloAttention
from halonet.models.timm_variants import TIMM_CHECKPOINTS

# A halonet26t of seconds: every stage and kind of layer, an eighth of its channels.
NARROW = {"width_factor": 0.125, "num_classes": 5}
IMAGES = torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))


def shake(model: nn.Module, images: Tensor) -> nn.Module:
    """Random weights and running statistics: what starts from zero would hide a difference.

    The statistics are near those of `images`: activations that grow from layer to layer would
    saturate the attention, where no two float32 computations agree.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    for norm in norms:
        norm.momentum = 0.1
        deviation = norm.running_var.sqrt()
        norm.running_mean.add_(0.02 * deviation * torch.randn_like(deviation))
        norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.95, 1.05))
    return model


def narrow_model(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("halonet26t", **NARROW | options)
    return shake(model, IMAGES.to(next(model.parameters()).dtype))


def logits_and_gradients(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The logits, and the gradients of a fixed function of them, by name."""
    images = images.clone().requires_grad_()
    logits = model(images)
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).reshape(logits.shape)
    model.zero_grad()
    (logits * weights).sum().backward()
    found = {"logits": logits.detach(), "images": images.grad}
    for name, parameter in model.named_parameters():
        found[name] = parameter.grad.clone()
    return found


@pytest.mark.parametrize("name", TIMM_CHECKPOINTS)
def test_seven_models_keep_logits_and_all_gradients(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name)
    images = torch.randn(2, *model.default_cfg["input_size"])
    shake(model, images)
    wide, theirs = copy.deepcopy(model).double(), copy.deepcopy(model)
    found = []
    for network in (wide, theirs, halonet.replace_timm_layers(model)):
        given = images.double() if network is wide else images
        quantities = logits_and_gradients(network, given)
        with torch.no_grad():
            quantities["logits in inference"] = network.eval()(given)
        found.append(quantities)
    exact, plain, ours = found
    assert ours.keys() == exact.keys()
    whole = torch.stack([value.norm() for value in exact.values()]).norm()
    for quantity, value in exact.items():
        # A bias before a norm has a gradient of zero, and only rounding to compare.
        size = value.norm().clamp_min(1e-3 * whole)
        error, plain_error = ((one[quantity] - value).norm() / size for one in (ours, plain))
        # Two float32 computations of one function: neither is nearer to it than the other.
        assert error <= 3 * plain_error + 1e-5, f"{quantity}: {error:.2g}, timm {plain_error:.2g}"


LAYERS = {
    "plain": {},
    "stride": {"stride": 2},
    "stride_does_not_divide_the_block": {"stride": 2, "block_size": 3},
    "average_pooling": {"stride": 2, "avg_down": True},
    "scaled_positions": {"scale_pos_embed": True},
    "scaled_positions_stride": {"scale_pos_embed": True, "stride": 2},
    "bias": {"qkv_bias": True},
    "narrow_queries": {"qk_ratio": 0.34},
    "head_width": {"dim_head": 5},
    "no_halo": {"halo_size": 0},
    "halo_larger_than_block": {"block_size": 2, "halo_size": 3},
    "one_head": {"num_heads": 1, "dim_out": 11},
}


def make_layer(**options: Any) -> HaloAttn:
    torch.manual_seed(1)
    options = {"dim_out": 18, "num_heads": 3, "block_size": 4, "halo_size": 1} | options
    layer = HaloAttn(10, **options).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


def run_layer(layer: nn.Module, maps: Tensor) -> list[Tensor]:
    maps = maps.clone().requires_grad_()
    result = layer(maps)
    layer.zero_grad()
    (result * torch.linspace(-1, 1, result.numel()).reshape(result.shape)).sum().backward()
    return [result, maps.grad, *(parameter.grad.clone() for parameter in layer.parameters())]


@pytest.mark.parametrize("name", LAYERS)
def test_layer_keeps_result_and_gradients(name: str) -> None:
    layer = make_layer(**LAYERS[name])
    block = layer.block_size
    maps = torch.randn(2, 10, 2 * block, 3 * block, dtype=torch.float64)
    expected = run_layer(layer, maps)
    found = run_layer(halonet.replace_timm_layers(layer), maps)
    for actual, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["plain", "stride", "average_pooling", "scaled_positions"])
def test_layer_on_any_map_is_timms_on_the_padded_map(name: str) -> None:
    layer = make_layer(**LAYERS[name])
    maps = torch.randn(2, 10, 7, 10, dtype=torch.float64)
    padded = F.pad(maps, (0, 2, 0, 1))
    pool, layer.pool = layer.pool, nn.Identity()
    step = layer.block_stride
    expected = layer(padded)[:, :, : -(-7 // step), : -(-10 // step)]
    layer.pool = pool
    found = halonet.replace_timm_layers(layer)(maps)
    torch.testing.assert_close(found, pool(expected), rtol=0, atol=1e-10)


def test_replaced_model_takes_images_that_timm_refuses() -> None:
    model = narrow_model().eval()
    images = torch.randn(1, 3, 200, 333)
    with pytest.raises(AssertionError):
        model(images)
    assert halonet.replace_timm_layers(model)(images).shape == (1, 5)


def test_parameters_and_keys_stay() -> None:
    model = narrow_model()
    before = dict(model.named_parameters())
    keys = list(model.state_dict())
    model.stages[3][0].self_attn.kv.weight.requires_grad_(False)
    assert halonet.replace_timm_layers(model) is model
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert list(model.state_dict()) == keys
    assert not any(isinstance(module, HaloAttn) for module in model.modules())
    assert sum(isinstance(module, TimmHaloAttention) for module in model.modules()) == 3
    untouched = narrow_model()
    untouched.load_state_dict(model.state_dict())
    model.load_state_dict(untouched.state_dict())
    assert not model.stages[3][0].self_attn.kv.weight.requires_grad


def test_restored_model_is_timms_own() -> None:
    model = narrow_model().eval()
    before = dict(model.named_parameters())
    expected = model(IMAGES[:1])
    halonet.replace_timm_layers(model)
    halonet.restore_timm_layers(model)
    assert not any(isinstance(module, TimmHaloAttention) for module in model.modules())
    assert all(value is before[name] for name, value in model.named_parameters())
    torch.testing.assert_close(model(IMAGES[:1]), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_restored_layer_has_all_of_timms_attributes(name: str) -> None:
    layer = make_layer(**LAYERS[name])
    restored = halonet.restore_timm_layers(halonet.replace_timm_layers(layer))
    assert type(restored) is HaloAttn
    for attribute, value in vars(layer).items():
        if not attribute.startswith("_"):
            assert getattr(restored, attribute) == value, attribute
    assert repr(restored) == repr(layer)


def test_compiled_copied_and_in_inference_mode() -> None:
    model = halonet.replace_timm_layers(narrow_model()).eval()
    expected = model(IMAGES[:1]).detach()
    copied = copy.deepcopy(model)
    assert all(
        one is not other for one, other in zip(copied.parameters(), model.parameters(), strict=True)
    )
    with torch.inference_mode():
        torch.testing.assert_close(copied(IMAGES[:1]), expected, rtol=0, atol=0)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(IMAGES[:1]), expected, rtol=1e-4, atol=1e-5)


def test_other_types_and_devices() -> None:
    model = halonet.replace_timm_layers(narrow_model(dtype=torch.bfloat16)).eval()
    assert model(IMAGES[:1].bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.float()(IMAGES[:1]).dtype == torch.bfloat16
    on_meta = halonet.replace_timm_layers(timm.create_model("halonet50ts", device="meta"))
    assert on_meta(torch.empty(2, 3, 256, 256, device="meta")).shape == (2, 1000)


def test_channels_last_maps_give_the_same() -> None:
    model = halonet.replace_timm_layers(narrow_model()).eval()
    expected = model(IMAGES)
    model.to(memory_format=torch.channels_last)
    found = model(IMAGES.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_features_and_checkpointing_stay_timms() -> None:
    model = halonet.create_model("halonet26t", **NARROW | {"num_classes": 0}, features_only=True)
    maps = model.eval()(torch.randn(1, 3, 96, 160))
    assert [found.shape[1] for found in maps] == model.feature_info.channels()
    whole = halonet.replace_timm_layers(narrow_model()).train()
    plain = logits_and_gradients(whole, IMAGES)
    whole.set_grad_checkpointing()
    for name, gradient in logits_and_gradients(whole, IMAGES).items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-3, atol=1e-4)


def test_fx_takes_the_layer_as_one_node() -> None:
    from timm.models import get_notrace_modules
    from torchvision.models.feature_extraction import create_feature_extractor

    model = halonet.replace_timm_layers(narrow_model()).eval()
    extractor = create_feature_extractor(
        model, ["stages.3"], tracer_kwargs={"leaf_modules": get_notrace_modules()}
    )
    expected = model.forward_features(IMAGES[:1])
    torch.testing.assert_close(extractor(IMAGES[:1])["stages.3"], expected)


class Twice(nn.Module):
    """A user's model: one layer in two places, a wrapped projection, a layer of another forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first = HaloAttn(12, num_heads=3, block_size=4)
        self.second = self.first
        self.wrapped = HaloAttn(12, num_heads=3, block_size=4)
        self.wrapped.q = nn.Sequential(self.wrapped.q, nn.Hardtanh())
        self.wrapped.q.weight = self.wrapped.q[0].weight
        self.other = Other(12, num_heads=3, block_size=4)
        self.calls: list[str] = []
        self.first.kv.register_forward_hook(lambda *_: self.calls.append("kv"))

    def forward(self, maps: Tensor) -> Tensor:
        return self.other(self.wrapped(self.second(self.first(maps))))


class Other(HaloAttn):
    """Not timm's function any more."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def test_layers_of_a_users_model() -> None:
    model = Twice().eval()
    maps = torch.randn(2, 12, 8, 8)
    expected = model(maps)
    halonet.replace_timm_layers(model, backend="reference")
    assert model.first is model.second
    assert isinstance(model.first, TimmHaloAttention)
    assert type(model.first.q) is PointwiseConvolution
    assert type(model.first.kv) is nn.Conv2d  # a hook listens there
    assert isinstance(model.wrapped.q, nn.Sequential)
    assert type(model.other) is Other
    model.calls.clear()
    torch.testing.assert_close(model(maps), expected)
    assert model.calls == ["kv", "kv"]
    again = copy.deepcopy(model.first.q.weight)
    model.first.reset_parameters()
    assert not torch.equal(model.first.q.weight, again)


def test_replacing_twice_changes_nothing_more() -> None:
    model = halonet.replace_timm_layers(narrow_model())
    layers = list(model.modules())
    halonet.replace_timm_layers(model)
    assert all(one is other for one, other in zip(model.modules(), layers, strict=True))


def test_what_can_not_be_replaced_is_named() -> None:
    with pytest.raises(ValueError, match="model must have layers of timm's HaloAttn, Linear has"):
        halonet.replace_timm_layers(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="model must have layers to restore, Linear has none"):
        halonet.restore_timm_layers(nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"backend must be one of .* got 'fast'"):
        halonet.replace_timm_layers(make_layer(), backend="fast")
    with pytest.raises(TypeError, match="layer must be timm's HaloAttn, got Linear"):
        TimmHaloAttention(nn.Linear(1, 1))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_pretrained_weights_come_through_timm(tmp_path: Path, suffix: str) -> None:
    # A local file stands in for the hub.
    source = narrow_model(num_classes=1000).eval()
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(source.state_dict(), path)
    options = {"width_factor": 0.125, "pretrained_cfg_overlay": {"file": str(path)}}
    model = halonet.create_model("halonet26t", pretrained=True, **options).eval()
    torch.testing.assert_close(model(IMAGES), source(IMAGES), rtol=1e-4, atol=1e-4)
    other = halonet.create_model(
        "halonet26t", pretrained=True, num_classes=7, in_channels=1, **options
    )
    assert other(IMAGES[:, :1]).shape == (2, 7)
    name = "stages.3.0.self_attn.kv.weight"
    assert torch.equal(other.get_parameter(name), source.get_parameter(name))


def test_the_hub_is_asked_for_timms_own_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm.models._hub

    save_file(narrow_model(num_classes=1000).state_dict(), tmp_path / "model.safetensors")
    asked = []

    def download(repo_id: str, filename: str, **_: Any) -> str:
        asked.append(repo_id)
        return str(tmp_path / filename)

    monkeypatch.setattr(timm.models._hub, "hf_hub_download", download)
    halonet.create_model("halonet26t", pretrained=True, width_factor=0.125)
    assert set(asked) == {"timm/halonet26t.a1h_in1k"}


@pytest.mark.parametrize("name", TIMM_CHECKPOINTS)
def test_each_of_the_seven_has_weights_to_load(name: str) -> None:
    assert timm.models.is_model_pretrained(name)
    model = halonet.create_model(name, num_classes=3, device="meta")
    assert model.num_classes == 3
    assert any(isinstance(module, TimmHaloAttention) for module in model.modules())


def test_bad_models_are_named() -> None:
    with pytest.raises(
        ValueError, match="pretrained must be False or a file for halonet_h1: only halonet_tiny, h"
    ):
        halonet.create_model("halonet_h1", pretrained=True)
    with pytest.raises(ValueError, match=r"model must be one of .*halonet50ts.* got 'resnet50'"):
        halonet.create_model("resnet50")
    with pytest.raises(ValueError, match=r"backend must be one of .* got 'fast'"):
        halonet.create_model("halonet26t", backend="fast")


def test_without_timm_one_line_says_so() -> None:
    code = (
        "import sys; sys.modules['timm'] = None; import halonet\n"
        "try: halonet.create_model('halonet50ts')\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        found.stdout == "timm is not installed; its models need it: pip install 'halonet[timm]'\n"
    )


@pytest.mark.parametrize("name", LAYERS)
def test_weights_times_values_are_what_the_layer_pools(name: str) -> None:
    layer = TimmHaloAttention(make_layer(**LAYERS[name]))
    maps = torch.randn(1, 10, 12, 24, dtype=torch.double)
    pooled: list[Tensor] = []
    layer.pool.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
    layer(maps)
    value = layer.operator_arguments(maps)["value"]
    halo, side = layer.halo_size, layer.block_size + 2 * layer.halo_size
    padded = F.pad(value[0], (0, 0, 0, 0, halo, side, halo, side))  # zeros outside, as timm's
    pixels = [(0, 0), (1, 3), (5, 2)]
    found = layer.attention_weights(maps, pixels)
    for place, (row, column) in enumerate(pixels):
        top, left = (found.corners[place] + halo).tolist()
        cells = padded[top : top + side, left : left + side]
        expected = torch.einsum("nuv,uvnd->nd", found.weights[0, place], cells)
        torch.testing.assert_close(pooled[0][0, :, row, column], expected.flatten())
