"""Batch norm with its activation against the plain modules, and what it keeps."""

import copy
import functools
import gc
import weakref

import pytest
import torch
from torch import nn

from halonet import HaloAttention, create_model
from halonet.layers import normalization
from halonet.layers.normalization import (
    ChannelShift,
    apply_to_activated,
    normalize_and_activate,
)
from halonet.layers.pointwise import PointwiseConvolution
from halonet.ops import cpu, cpu_norm

CHANNELS_LAST = torch.channels_last


def make_norm(training: bool, **options) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(5, **options).train(training)
    for tensor in norm.state_dict().values():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    return norm


def make_maps(count: int, **options) -> list[torch.Tensor]:
    maps = [torch.randn(3, 5, 7, 2, **options) for _ in range(count)]
    return [one.contiguous(memory_format=CHANNELS_LAST).requires_grad_() for one in maps]


def plain(maps, norm, activation, added=None):
    normed = norm(maps)
    return activation(normed if added is None else normed + added)


def outcome(function, norm, activation, maps, gradient) -> dict[str, torch.Tensor]:
    """Everything that a step leaves behind."""
    norm = copy.deepcopy(norm)
    leaves = [one.detach().clone().requires_grad_() for one in maps]
    result = function(leaves[0], norm, activation, *leaves[1:])
    result.backward(gradient)
    found = {"result": result.detach(), **norm.state_dict()}
    found |= {f"{name}.grad": p.grad for name, p in norm.named_parameters() if p.grad is not None}
    return found | {f"input {i}": leaf.grad for i, leaf in enumerate(leaves)}


def kept_bytes(step, weights=()) -> int:
    """Of what is kept for the backward pass beside the weights, each storage once."""
    storages = {}
    addresses = {weight.data_ptr() for weight in weights}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in addresses:
            storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = step()
    assert result.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("count", [1, 2], ids=["norm", "norm and sum"])
@pytest.mark.parametrize("activation", [nn.SiLU(inplace=True), nn.ReLU(inplace=True), nn.GELU()])
@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.3}],
    ids=str,
)
def test_is_the_plain_modules(training, count, activation, options):
    norm, maps = make_norm(training, **options), make_maps(count)
    gradient = torch.randn(3, 5, 7, 2)
    found = outcome(normalize_and_activate, norm, activation, maps, gradient)
    expected = outcome(plain, norm, activation, maps, gradient)
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_maps(training, count, dtype):
    torch.manual_seed(0)
    norm, maps = make_norm(training).to(dtype), make_maps(count, dtype=torch.bfloat16)
    gradient = torch.randn(3, 5, 7, 2, dtype=torch.bfloat16)
    found = outcome(normalize_and_activate, norm, nn.SiLU(), maps, gradient)
    expected = outcome(plain, norm, nn.SiLU(), maps, gradient)
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        # Sums in which numbers cancel: an error is small beside the whole, not beside each number.
        error = (found[name].float() - expected[name].float()).norm()
        assert error <= 0.03 * expected[name].float().norm(), name


@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_both_orders(training):
    norm = make_norm(training).double()
    inputs = (*make_maps(2, dtype=torch.float64), *norm.parameters())

    def run(maps, added, *weights):
        return normalize_and_activate(maps, norm, nn.SiLU(), added)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("frozen", ["weights", "maps", "all but what is added"])
def test_frozen_parts_get_no_gradient(frozen):
    norm, (maps, added) = make_norm(True), make_maps(2)
    norm.requires_grad_(frozen == "maps")
    maps.requires_grad_(frozen == "weights")
    normalize_and_activate(maps, norm, nn.SiLU(), added).sum().backward()
    assert (maps.grad is not None) == (frozen == "weights")
    assert (norm.weight.grad is not None) == (frozen == "maps")
    assert added.grad is not None


@pytest.mark.parametrize("count", [1, 2])
def test_keeps_its_inputs_only_and_their_order(count):
    norm, maps = make_norm(True), make_maps(count)
    results = []

    def step() -> torch.Tensor:
        results.append(normalize_and_activate(maps[0], norm, nn.SiLU(inplace=True), *maps[1:]))
        return results[0]

    weights_and_statistics = 4 * 5 * 4
    kept = kept_bytes(step)
    assert kept <= count * maps[0].untyped_storage().nbytes() + weights_and_statistics
    (result,) = results
    result.backward(torch.ones(3, 5, 7, 2))
    assert result.is_contiguous(memory_format=CHANNELS_LAST)
    assert all(one.grad.is_contiguous(memory_format=CHANNELS_LAST) for one in maps)


def plain_layer(layer):
    return lambda maps, norm, activation: layer(activation(norm(maps)))


def assert_as_plain(step, layer, norm, atol: float = 1e-5) -> None:
    """The result and every gradient, the layer's weights among them, are the plain modules'."""
    maps, steps = make_maps(1), (plain_layer(layer), step)
    gradient = torch.randn_like(steps[0](maps[0], copy.deepcopy(norm), nn.SiLU()))
    expected, found = [], []
    for one, left in zip(steps, (expected, found), strict=True):
        layer.zero_grad()
        left.append(outcome(one, norm, nn.SiLU(), maps, gradient))
        left += [weight.grad.clone() for weight in layer.parameters()]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=atol)


class Gated(nn.Module):
    """Reads its input inside of another norm and activation."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.norm = nn.Conv2d(5, 1, 1), nn.BatchNorm2d(1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return apply_to_activated(lambda gates: gates * maps, self.gate(maps), self.norm, nn.SiLU())


LAYERS = {
    "convolution": lambda: nn.Conv2d(5, 3, 3, padding=1),
    "matrix product of every second pixel": lambda: PointwiseConvolution(5, 3, stride=2),
    "attention": lambda: HaloAttention(
        5, 4, heads=1, query_key_channels=4, block_size=3, halo_size=1, position="none"
    ),
    "attention, stride 2": lambda: HaloAttention(
        5, 4, heads=2, query_key_channels=4, block_size=2, halo_size=1, stride=2
    ),
    "maximum": lambda: nn.MaxPool2d(3, stride=2, padding=1),
    "two of them": lambda: nn.Sequential(nn.Conv2d(5, 5, 1), nn.Conv2d(5, 2, 1)),
    "changes its input": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(5, 2, 1)),
    "nothing": nn.Identity,
    "another norm": Gated,
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_after_the_activation(name, training):
    layer = LAYERS[name]()
    assert_as_plain(functools.partial(apply_to_activated, layer), layer, make_norm(training))


@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_both_orders_after_the_activation(training):
    layer = nn.Conv2d(5, 2, 1).double()
    (maps,) = make_maps(1, dtype=torch.float64)
    norm = make_norm(training).double()
    inputs = (maps, layer.weight)

    def run(maps, weight):
        return apply_to_activated(
            lambda activated: torch.nn.functional.conv2d(activated, weight), maps, norm, nn.SiLU()
        )

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_keeps_one_map_of_the_two():
    norm, (maps,), layer = make_norm(True), make_maps(1), nn.Conv2d(5, 2, 1)

    def step() -> torch.Tensor:
        return apply_to_activated(layer, maps, norm, nn.SiLU())

    statistics = 4 * 5 * 4
    map_bytes = maps.untyped_storage().nbytes()
    assert kept_bytes(step, layer.parameters()) <= map_bytes + statistics
    whole = kept_bytes(lambda: layer(normalize_and_activate(maps, norm, nn.SiLU())))
    assert whole >= 2 * map_bytes


# Kept as other numbers, which gives who reads them without these hooks wrong gradients, and in another
# order, as torch's own save_on_cpu does.
OTHER_HOOKS = {
    "other numbers": (lambda kept: kept + 7, lambda kept: kept - 7),
    "another order": (lambda kept: kept.contiguous(), lambda kept: kept),
}


@pytest.mark.parametrize("hooks", OTHER_HOOKS)
@pytest.mark.parametrize("name", ["convolution", "matrix product of every second pixel"])
def test_other_hooks_of_saved_tensors_see_what_is_kept(hooks, name):
    layer = LAYERS[name]()

    def step(maps, norm, activation):
        with torch.autograd.graph.saved_tensors_hooks(*OTHER_HOOKS[hooks]):
            return apply_to_activated(layer, maps, norm, activation)

    assert_as_plain(step, layer, make_norm(True), atol=1e-4)  # 7 more cost digits


class Mark(nn.Module):
    """What a graph holds as long as it lives."""


class Marked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, maps, mark):
        ctx.mark = mark
        return maps.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def test_a_graph_without_a_backward_pass_is_freed():
    norm, (maps,), layer, mark = make_norm(True), make_maps(1), nn.Conv2d(5, 5, 1), Mark()
    # A sigmoid keeps its own result, which must not keep the graph that made it.
    result = apply_to_activated(
        lambda one: layer(one).sigmoid(), Marked.apply(maps, mark), norm, nn.SiLU()
    )
    held = weakref.ref(mark)
    del mark
    assert held() is not None
    del result
    gc.collect()
    assert held() is None


def test_changes_after_the_forward_pass_are_refused():
    norm, (maps,), layer = make_norm(True), make_maps(1), nn.Conv2d(5, 2, 1)
    result = apply_to_activated(layer, maps, norm, nn.SiLU())
    with torch.no_grad():
        layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match="was changed in place since"):
        result.sum().backward()


def test_gradient_checkpointing_keeps_as_little_as_without():
    images = torch.randn(2, 3, 64, 64)

    def kept(recompute: bool, monkeypatch: pytest.MonkeyPatch) -> int:
        model = create_model("halonet_tiny", activation="silu").to(memory_format=CHANNELS_LAST)
        model.set_gradient_checkpointing()
        if not recompute:
            monkeypatch.setattr(normalization, "_can_recompute", lambda *_: False)
        return kept_bytes(lambda: model(images), model.parameters())

    with pytest.MonkeyPatch.context() as monkeypatch:
        assert kept(True, monkeypatch) <= kept(False, monkeypatch)


def test_transforms_of_functions():
    norm, (maps,), layer = make_norm(False), make_maps(1), nn.Conv2d(5, 2, 1)

    def loss(maps: torch.Tensor) -> torch.Tensor:
        return apply_to_activated(layer, maps, norm, nn.SiLU()).square().sum()

    loss(maps).backward()
    torch.testing.assert_close(torch.func.grad(loss)(maps.detach()), maps.grad)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_a_models_step_is_the_same_and_keeps_less(autocast, monkeypatch):
    model = create_model("halonet_tiny", activation="silu").to(memory_format=CHANNELS_LAST)
    for name, parameter in model.named_parameters():
        if name.endswith("expand_norm.weight"):
            nn.init.ones_(parameter)
    images = torch.randn(2, 3, 64, 64)

    def run(autocast=autocast) -> tuple[int, dict[str, torch.Tensor]]:
        network = copy.deepcopy(model)

        def forward() -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                return network(images).float()

        kept = kept_bytes(forward, network.parameters())
        forward().square().sum().backward()
        return kept, {name: weight.grad for name, weight in network.named_parameters()}

    kept, found = run()
    monkeypatch.setattr(normalization, "_can_recompute", lambda *_: False)
    plain_kept, expected = run()
    assert kept < (0.9 if autocast else 0.7) * plain_kept
    _, exact = run(autocast=False)
    for name in exact:
        error, plain_error = (
            (one[name] - exact[name]).norm() / exact[name].norm().clamp_min(1e-6)
            for one in (found, expected)
        )
        assert error < (2 * plain_error if autocast else 1e-3), f"{name}: {error:.3g}"


def test_the_norm_still_refuses_one_number_of_a_channel():
    with pytest.raises(ValueError, match="more than 1 value"):
        normalize_and_activate(torch.randn(1, 5, 1, 1), make_norm(True), nn.SiLU())


def test_hooks_and_other_norms_are_respected():
    norm, (maps,) = make_norm(True), make_maps(1)
    seen = []
    norm.register_forward_hook(lambda *_: seen.append("norm"))
    normalize_and_activate(maps, norm, nn.SiLU())
    assert seen == ["norm"]
    torch.testing.assert_close(
        normalize_and_activate(maps, nn.Identity(), nn.SiLU()), nn.SiLU()(maps)
    )
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(make_norm(False))
    torch.testing.assert_close(
        normalize_and_activate(maps, synchronized, nn.SiLU()), nn.SiLU()(synchronized(maps))
    )


@pytest.mark.parametrize("changed", ["nothing", "hook", "copying", "autocast", "order"])
def test_silu_after_a_folded_norm_is_the_plain_one(changed):
    maps, added = (one.detach() for one in make_maps(2))
    shift, activation = ChannelShift(torch.randn(5)), nn.SiLU(inplace=changed != "copying")
    seen = []
    if changed == "hook":
        shift.register_forward_hook(lambda *_: seen.append("shift"))
    if changed == "autocast":
        maps, added = maps.bfloat16(), added.bfloat16()
    if changed == "order":
        maps = maps.contiguous()
    before = maps.clone()
    with torch.no_grad():
        expected = plain(maps, shift, nn.SiLU(), added)
        found = normalize_and_activate(maps, shift, activation, added)
    assert found.dtype == maps.dtype
    tolerances = {"rtol": 0.02, "atol": 0.02} if changed == "autocast" else {}
    torch.testing.assert_close(found, expected, **tolerances)
    over_maps = changed in ("nothing", "autocast")
    assert (found.data_ptr() == maps.data_ptr()) == (over_maps and cpu.MISSING is None)
    assert over_maps or torch.equal(maps, before)
    assert seen == ["shift"] * 2 * (changed == "hook")


@pytest.mark.parametrize("changed", ["nothing", "hook", "kernel", "indices", "order", "gradient"])
def test_pooling_after_a_folded_norm_is_the_plain_one(changed, monkeypatch):
    maps = make_maps(1)[0].detach().requires_grad_(changed == "gradient")
    pool = nn.MaxPool2d(
        2 if changed == "kernel" else 3, stride=2, padding=1, return_indices=changed == "indices"
    )
    seen, native = [], []
    if changed == "hook":
        pool.register_forward_hook(lambda *_: seen.append("pool"))
    if changed == "order":
        maps = maps.contiguous()
    pool_silu = cpu_norm.pool_silu
    monkeypatch.setattr(cpu_norm, "pool_silu", lambda maps: native.append(1) or pool_silu(maps))
    with torch.set_grad_enabled(changed == "gradient"):
        expected = pool(nn.SiLU()(maps))
        found = apply_to_activated(pool, maps, nn.Identity(), nn.SiLU())
    torch.testing.assert_close(found, expected)
    assert seen == ["pool"] * 2 * (changed == "hook")
    assert len(native) == (changed == "nothing" and cpu.MISSING is None)
