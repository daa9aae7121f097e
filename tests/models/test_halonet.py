"""The family: counts, shapes, and what users of timm and torchvision expect of a backbone."""

import copy
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import halonet
from halonet.models.variants import VARIANTS

SMALL: dict[str, Any] = {
    "layers": (1, 1, 1, 1),
    "base_width": 8,
    "stem_width": 8,
    "heads": (1, 2, 2, 2),
    "spatial": ("convolution", "attention", "attention", "attention"),
}


def small_model(**options: Any) -> halonet.HaloNet:
    """A model of seconds: every kind of layer, few of each."""
    return halonet.create_model("halonet_tiny", **{"num_classes": 5} | SMALL | options).eval()


def revive(model: halonet.HaloNet) -> halonet.HaloNet:
    """Undo the zero start of the residual branches, so that every layer matters."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # Not one stream for all: torch.fx lists the modules of a model in another order.
            numbers = torch.Generator().manual_seed(module.num_features)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5, numbers)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5, numbers)
    return model


PAPER_PARAMETERS = {
    "halonet_h0": 5_485_352,
    "halonet_h1": 8_081_288,
    "halonet_h2": 9_384_488,
    "halonet_h3": 11_817_928,
    "halonet_h4": 19_079_944,
    "halonet_h5": 30_679_016,
    "halonet_h6": 43_417_096,
    "halonet_h7": 67_393_288,
    "resnet_50": 25_557_032,
    "halonet_50": 18_017_576,
    "halonet_h4_base128": 85_138_760,
    "halonet_h4_base128_conv12": 87_002_280,
    "halonet_h4_base128_patch4": 85_132_424,
}
HYBRID_MILLIONS = {
    "halonet_h7_conv1": 67.30,
    "halonet_h7_conv12": 66.94,
    "halonet_h7_conv123": 54.54,
}


def test_parameters_in_the_table_are_the_papers() -> None:
    table = {name: variant.parameters for name, variant in VARIANTS.items()}
    assert {name: table[name] for name in PAPER_PARAMETERS} == PAPER_PARAMETERS
    assert {name: round(table[name] / 1e6, 2) for name in HYBRID_MILLIONS} == HYBRID_MILLIONS


@pytest.mark.parametrize("name", halonet.list_models())
def test_parameters_are_the_tables_and_flops_what_torch_counts(name: str) -> None:
    variant = halonet.get_variant(name)
    with torch.device("meta"):
        model = halonet.create_model(name, backend="reference").eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == variant.parameters
    for size in (None, 100):
        side = size or variant.image_size
        images = torch.empty(1, 3, side, side, device="meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(images)
        assert halonet.count_flops(variant, size) == counter.get_total_flops()


@pytest.mark.parametrize("name", halonet.list_models())
def test_every_model_runs_forward_and_backward(name: str) -> None:
    # One bottleneck a stage of the real widths, on the smallest image and an odd one.
    model = halonet.create_model(name, num_classes=3, layers=(1, 1, 1, 1)).train()
    model(torch.randn(2, 3, 32, 47)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("size", [(32, 32), (33, 70), (96, 40), (75, 75)], ids=str)
def test_features_keep_their_strides_at_any_image_size(size: tuple[int, int]) -> None:
    model = small_model()
    maps = model.feature_maps(torch.randn(2, 3, *size))
    for stride, found in maps.items():
        height, width = (-(-side // stride) for side in size)
        assert found.shape == (2, model.feature_channels[stride], height, width)
    assert model.forward_features(torch.randn(1, 3, *size)).shape[2:] == maps[32].shape[2:]


def test_h7_has_the_papers_maps_at_600() -> None:
    with torch.device("meta"):
        model = halonet.create_model("halonet_h7", backend="reference").eval()
        maps = model.feature_maps(torch.empty(1, 3, 600, 600))
    assert [found.shape[-1] for found in maps.values()] == [150, 75, 38, 19]


def test_features_at_chosen_strides() -> None:
    model = small_model()
    images = torch.randn(1, 3, 64, 64)
    everything = model.feature_maps(images)
    chosen = model.feature_maps(images, strides=(16, 4))
    assert list(chosen) == [16, 4]
    torch.testing.assert_close(chosen[16], everything[16])
    with pytest.raises(ValueError, match=r"strides must be some of \(4, 8, 16, 32\), got \(2,\)"):
        model.feature_maps(images, strides=(2,))


def test_head_and_features_make_the_whole() -> None:
    model = small_model()
    images = torch.randn(2, 3, 64, 64)
    features = model.forward_features(images)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.num_features)
    torch.testing.assert_close(model.forward_head(features), model(images))
    torch.testing.assert_close(model.get_classifier()(pooled), model(images))


def test_reset_classifier_starts_from_zero() -> None:
    model = small_model()
    model.reset_classifier(7)
    assert torch.equal(model(torch.randn(2, 3, 32, 32)), torch.zeros(2, 7))
    model.reset_classifier(0)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, model.num_features)


def test_bottlenecks_start_as_their_shortcuts() -> None:
    model = small_model(layers=(2, 1, 1, 1)).eval()
    second = model.stages[0][1]
    maps = torch.rand(1, model.feature_channels[4], 8, 8)
    torch.testing.assert_close(second(maps.clone()), second.activation(maps.clone()))


# Compiled, SiLU is as any other activation.
@pytest.mark.parametrize(
    ("activation", "compiled"), [("silu", False), ("relu", False), ("silu", True)]
)
def test_gradient_checkpointing_changes_no_gradient_and_no_statistics(
    activation: str, compiled: bool
) -> None:
    steps = []
    model = revive(small_model(layers=(2, 1, 1, 1), activation=activation)).train()
    images = torch.randn(2, 3, 32, 32)
    for enabled in (False, True):
        network = copy.deepcopy(model)
        network.set_gradient_checkpointing(enabled)
        forward = torch.compile(network, backend="aot_eager") if compiled else network
        forward(images).square().sum().backward()
        step = {f"{name}.grad": weight.grad for name, weight in network.named_parameters()}
        steps.append(step | dict(network.named_buffers()))
    plain, checkpointed = steps
    assert plain["stages.0.0.expand_norm.num_batches_tracked"] == 1
    torch.testing.assert_close(checkpointed, plain)


def test_gradient_checkpointing_reads_the_statistics_of_frozen_norms() -> None:
    outcomes = []
    model = revive(small_model())  # in eval mode
    images = torch.randn(2, 3, 32, 32)
    for enabled in (False, True):
        model.set_gradient_checkpointing(enabled)
        model.zero_grad()
        logits = model(images)
        logits.square().sum().backward()
        outcomes.append([logits, *(weight.grad.clone() for weight in model.parameters())])
    torch.testing.assert_close(outcomes[1], outcomes[0])


@pytest.mark.parametrize("options", [{"stochastic_depth": 0.4}, {"dropout": 0.1}], ids=str)
def test_randomness_acts_in_training_only(options: dict[str, float]) -> None:
    torch.manual_seed(0)
    model = revive(small_model(layers=(2, 1, 1, 1), **options))
    images = torch.randn(8, 3, 32, 32)
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))


def test_stochastic_depth_rises() -> None:
    model = small_model(layers=(2, 1, 1, 1), stochastic_depth=0.4)
    depths = [
        bottleneck.stochastic_depth.probability for stage in model.stages for bottleneck in stage
    ]
    assert depths == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    ("options", "plain_options"),
    [
        ({"squeeze_excitation": True}, {}),
        ({"activation": "gelu"}, {}),
        # Without tables, whose size is the block's and the halo's.
        ({"block_size": 2, "position": "none"}, {"position": "none"}),
        ({"halo_size": 1, "position": "none"}, {"position": "none"}),
        ({"heads": (1, 4, 4, 4), "position": "none"}, {"position": "none"}),
        ({"kernel_size": 3}, {}),
        ({"position": "absolute"}, {"position": "none"}),
        ({"position": "relative"}, {"position": "none"}),
        ({"spatial": ("convolution",) * 4}, {}),
        ({"stem": "patch"}, {}),
        ({"mask_padding": False}, {}),
        ({"final_width": 24, "num_classes": 0}, {"num_classes": 0}),
    ],
    ids=str,
)
def test_switches_change_the_function(
    options: dict[str, Any], plain_options: dict[str, Any]
) -> None:
    plain = revive(small_model(**plain_options))
    changed = revive(small_model(**options))
    # The same weights where both have them: nothing but the switch may make the difference.
    ours = changed.state_dict()
    shared = {name: one for name, one in plain.state_dict().items()
              if name in ours and one.shape == ours[name].shape}  # fmt: skip
    changed.load_state_dict(shared, strict=False)
    images = torch.randn(2, 3, 64, 64)
    one, other = changed(images), plain(images)
    assert one.shape != other.shape or not torch.allclose(one, other)


def test_grey_images_and_no_classes() -> None:
    model = small_model(in_channels=1, num_classes=0)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, model.num_features)


def test_compiles_and_exports_whole() -> None:
    model = revive(small_model())
    images = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), model(images))
    exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(exported(images), model(images))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("halonet_h9", {}, "model must be one of halonet_h0, .* got 'halonet_h9'"),
        ("halonet_h0", {"blocks": 8}, "options of a model are .*; got 'blocks'"),
        ("halonet_h0", {"activation": "swish"}, "activation must be one of .* got 'swish'"),
        ("halonet_h0", {"num_classes": -1}, "num_classes must be 0 or more, got -1"),
        ("halonet_h0", {"in_channels": 0}, "in_channels must be positive, got 0"),
        ("halonet_h0", {"stem": "conv"}, "stem must be convolution or patch, got 'conv'"),
        ("halonet_h0", {"layers": (1, 1)}, "layers must have four entries, got"),
        ("halonet_h0", {"spatial": ("conv",) * 4}, "spatial must be attention or convolution"),
        ("halonet_h0", {"dropout": 1.0}, "dropout must be from 0 to below 1, got 1.0"),
        ("halonet_h0", {"stochastic_depth": -0.1}, "stochastic_depth must be from 0 to below 1"),
        ("halonet_h0", {"block_size": 7}, "block_size must be a positive multiple of stride 2"),
        ("halonet_h0", {"base_width": 0}, "base_width must be positive, got 0"),
        ("halonet_h0", {"image_size": 31}, "image_size must be 32 pixels or more, got 31"),
        ("halonet_h0", {"image_size": float("nan")}, "image_size must be 32 .* got nan"),
        (None, {}, "model must be one of halonet_h0, .* got None"),
        ("halonet_h0", {"value_ratio": float("nan")}, "value_ratio must be positive, got nan"),
        ("halonet_h0", {"final_width": 0}, "final_width must be positive or None, got 0"),
    ],
)
def test_bad_options_are_named(name: Any, options: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        halonet.create_model(name, **options)


@pytest.mark.parametrize("option", ["num_classes", "in_channels"])
def test_numbers_that_are_none_are_named(option: str) -> None:
    with pytest.raises(TypeError, match=f"{option} must be an integer, got '5'"):
        halonet.create_model("halonet_tiny", **{option: "5"})
    if option == "num_classes":
        with pytest.raises(TypeError, match="num_classes must be an integer, got '5'"):
            halonet.load_model("model.safetensors", num_classes="5")


@pytest.mark.parametrize("shape", [(1, 3, 31, 64), (1, 1, 64, 64), (3, 64, 64)], ids=str)
def test_bad_images_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="images must have"):
        small_model()(torch.randn(shape))


def test_images_of_other_types_are_named() -> None:
    model = small_model()
    images = torch.zeros(1, 3, 32, 32)
    for wrong in (images.byte(), images.double()):
        with pytest.raises(
            ValueError, match=r"images must be torch.float32, .* got torch\.(ui|fl)"
        ):
            model(wrong)
    with pytest.raises(TypeError, match="images must be a tensor, got ndarray"):
        model(images.numpy())
    with torch.autocast("cpu", torch.bfloat16):
        model(images.bfloat16())


def test_one_stride_needs_no_list() -> None:
    model = small_model().eval()
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(model.feature_maps(images, 8)[8], model.feature_maps(images, [8])[8])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask_padding": False},
        {"spatial": ("convolution", "attention", "convolution", "attention")},
        {"squeeze_excitation": True, "final_width": 12},
        {"stem": "patch", "kernel_size": 3},
    ],
    ids=str,
)
def test_fused_model_has_no_norm_and_the_same_logits(options: dict[str, Any]) -> None:
    model = revive(small_model(**options)).double().train()
    images = torch.randn(3, 3, 70, 50, dtype=torch.float64)
    for _ in range(3):
        model(images)  # gives the norms something to fold
    model.eval()
    fused = model.fuse()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
    torch.testing.assert_close(fused(images), model(images), rtol=1e-9, atol=1e-9)
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    assert torch.equal(fused.fuse()(images), fused(images))
    synchronized = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert torch.equal(synchronized.fuse()(images), fused(images))


def test_other_norms_are_not_fused() -> None:
    model = small_model()
    model.stages[0][0].expand_norm = torch.nn.GroupNorm(1, 8)  # type: ignore
    with pytest.raises(TypeError, match=r"only batch norms .* can be fused, got GroupNorm"):
        model.fuse()


@pytest.mark.parametrize("squeeze_excitation", [False, True])
def test_channels_last_in_both_directions(squeeze_excitation: bool) -> None:
    # Batch norm has no fast backward pass where a map's and its gradient's orders differ.
    model = halonet.create_model("halonet_tiny", squeeze_excitation=squeeze_excitation)
    model = model.to(memory_format=torch.channels_last).train()
    orders = []

    def note(tensor: torch.Tensor) -> None:
        orders.append(tensor.is_contiguous(memory_format=torch.channels_last))

    def watch(_: torch.nn.Module, inputs: tuple, result: torch.Tensor) -> None:
        note(inputs[0])
        result.register_hook(note)

    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.register_forward_hook(watch)
    images = torch.randn(2, 3, 96, 96).contiguous(memory_format=torch.channels_last)
    model(images).sum().backward()
    assert orders == [True] * 2 * len(norms)
