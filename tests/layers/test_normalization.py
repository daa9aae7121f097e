"""Batch norm with its activation against the plain modules, and what it keeps."""

import copy

import pytest
import torch
from torch import nn

from halonet import create_model
from halonet.layers import normalization
from halonet.layers.normalization import normalize_and_activate

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
        return tensor

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
    norm, maps = make_norm(training).to(dtype), make_maps(count, dtype=torch.bfloat16)
    gradient = torch.randn(3, 5, 7, 2, dtype=torch.bfloat16)
    found = outcome(normalize_and_activate, norm, nn.SiLU(), maps, gradient)
    expected = outcome(plain, norm, nn.SiLU(), maps, gradient)
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        torch.testing.assert_close(found[name], expected[name], rtol=0.03, atol=0.03)


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


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_a_models_step_is_the_same_and_keeps_less(autocast, monkeypatch):
    model = create_model("halonet_tiny", activation="silu").to(memory_format=CHANNELS_LAST)
    for name, parameter in model.named_parameters():
        if name.endswith("expand_norm.weight"):
            nn.init.ones_(parameter)
    images = torch.randn(2, 3, 64, 64)

    def run() -> tuple[int, dict[str, torch.Tensor]]:
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
    assert kept < 0.95 * plain_kept
    for name in expected:
        error = (found[name] - expected[name]).norm() / expected[name].norm().clamp_min(1e-6)
        assert error < (0.1 if autocast else 1e-3), f"{name}: {error:.3g}"


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
