"""Derivatives beyond the first backward pass: torch.func, forward mode, second order, the scales."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from halonet import HaloAttention, create_model, explain_backend, halo_attention
from halonet.check.cases import Case
from halonet.ops import cpu

# torch's own, on its first derivative in forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is:FutureWarning")

CASE = Case("", 5, 4, {"block_size": 3, "halo_size": 1}, batch=2, heads=2, value_channels=3)
Operator = Callable[[Tensor], Tensor]


def of_query(backend: str | None, dtype: torch.dtype) -> tuple[Operator, Tensor]:
    """The operator as a function of its query, and a query."""
    inputs = CASE.inputs(dtype)
    query = inputs.pop("query")
    return lambda given: halo_attention(given, **inputs, **CASE.options, backend=backend), query


def dual(operator: Operator, query: Tensor, *, tracked: bool = False) -> Tensor:
    with forward_ad.dual_level():
        given = forward_ad.make_dual(query.clone().requires_grad_(tracked), query.cos())
        tangent = forward_ad.unpack_dual(operator(given)).tangent
        assert tangent is not None
        return tangent.detach()


def penalty(operator: Operator, query: Tensor) -> Tensor:
    """The derivative of a gradient's norm, as gradient penalties take it."""
    leaf = query.clone().requires_grad_()
    (first,) = torch.autograd.grad(operator(leaf).square().sum(), leaf, create_graph=True)
    return torch.autograd.grad(first.square().sum(), leaf)[0]


def third(operator: Operator, query: Tensor) -> Tensor:
    leaf = query.clone().requires_grad_()
    found = operator(leaf).square().sum()
    for _ in range(2):
        found = torch.autograd.grad(found, leaf, create_graph=True)[0].square().sum()
    return torch.autograd.grad(found, leaf)[0]


def loss(operator: Operator) -> Operator:
    return lambda query: operator(query).square().sum()


def each(operator: Operator, query: Tensor) -> Tensor:
    """Gradients of three queries, one apart from the others."""
    return vmap(grad(loss(operator)))(torch.stack([query, -query, query.cos()]))


DERIVATIVES: dict[str, Callable[[Operator, Tensor], Tensor]] = {
    "grad": lambda operator, query: grad(loss(operator))(query),
    "vmap": lambda operator, query: vmap(operator)(torch.stack([query, -query])),
    "vmap of grad": each,
    "vjp": lambda operator, query: vjp(loss(operator), query)[1](torch.ones_like(query.sum()))[0],
    "jvp": lambda operator, query: jvp(operator, (query,), (query.cos(),))[1],
    "jacrev": lambda operator, query: jacrev(lambda q: operator(q).sum((0, 1, 2)))(query),
    "jacfwd": lambda operator, query: jacfwd(lambda q: operator(q).sum((0, 1, 2)))(query),
    "hessian": lambda operator, query: hessian(
        lambda part: loss(operator)(torch.cat([part, query[:, :, 1:]], 2))
    )(query[:, :, :1]),
    "dual numbers": dual,
    "dual numbers with a graph": lambda operator, query: dual(operator, query, tracked=True),
    "gradient penalty": penalty,
    "third order": third,
}
BACKENDS = ["sdpa", None, pytest.param("cpu", marks=pytest.mark.skipif(bool(cpu.MISSING), reason="no kernel"))]  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivative_is_the_references_or_refused(name: str, backend: str | None) -> None:
    derivative = DERIVATIVES[name]
    exact = derivative(*of_query("reference", torch.float64))
    assert exact.abs().max() > 0.1
    if backend == "cpu" and name not in ("gradient penalty", "third order"):
        with pytest.raises(NotImplementedError, match=r"it has no rules for torch\.func"):
            derivative(*of_query(backend, torch.float32))
        return
    found = derivative(*of_query(backend, torch.float32))
    torch.testing.assert_close(
        found.double(), exact, rtol=1e-3, atol=1e-4 * exact.abs().max().item()
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives_of_all_inputs(backend: str | None) -> None:
    def second(backend: str | None, dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = {name: one.requires_grad_() for name, one in CASE.inputs(dtype).items()}
        result = halo_attention(**leaves, **CASE.options, backend=backend)
        outer = torch.linspace(-1, 1, result.numel(), dtype=dtype).view_as(result).requires_grad_()
        given = list(leaves.values())
        first = torch.autograd.grad(result, given, outer, create_graph=True)
        return torch.autograd.grad(sum(one.square().sum() for one in first), [outer, *given])

    exact = second("reference", torch.float64)
    for found, expected in zip(second(backend, torch.float32), exact, strict=True):
        largest = expected.abs().max().item()
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4 * largest)


def test_choice_of_a_backend_says_why() -> None:
    reasons: list[Any] = []

    def note(query: Tensor) -> Tensor:
        choice = explain_backend(**CASE.inputs(torch.float32) | {"query": query}, **CASE.options)
        reasons.append((choice.chosen, choice.reasons["cpu"]))
        return query.sum()

    grad(note)(CASE.inputs(torch.float32)["query"])
    expected = cpu.MISSING or "it has no rules for torch.func and forward-mode derivatives"
    assert reasons == [("sdpa", expected)]


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
@pytest.mark.parametrize("given", ["scale", "position_scale"])
def test_a_scale_that_is_a_parameter_gets_its_gradient(backend: str | None, given: str) -> None:
    inputs = CASE.inputs(torch.float32)

    def run(factor: Any, backend: str | None, inputs: dict[str, Tensor]) -> Tensor:
        return halo_attention(**inputs, **CASE.options, **{given: factor}, backend=backend)

    factor = torch.nn.Parameter(torch.tensor([0.3]))
    result = run(factor, backend, inputs)
    torch.testing.assert_close(result, run(0.3, backend, inputs))
    result.square().sum().backward()
    wide = {name: one.double() for name, one in inputs.items()}
    high, low = (run(0.3 + step, "reference", wide).square().sum() for step in (1e-6, -1e-6))
    assert factor.grad is not None
    assert factor.grad.item() == pytest.approx(((high - low) / 2e-6).item(), rel=1e-3)


@pytest.mark.parametrize(
    ("factor", "error", "message"),
    [
        (torch.ones(2), ValueError, r"scale must be a number or a tensor of one, got .* \[2\]"),
        (float("nan"), ValueError, "scale must be finite, got nan"),
        ("large", TypeError, "scale must be a number or a tensor of one, got 'large'"),
        ([1.0], TypeError, r"scale must be a number or a tensor of one, got \[1.0\]"),
    ],
    ids=str,
)
def test_a_scale_that_is_no_number_is_named(
    factor: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        halo_attention(**CASE.inputs(), **CASE.options, scale=factor)


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_gradients_of_each_image_through_a_model(activation: str) -> None:
    torch.manual_seed(0)
    model = create_model("halonet_tiny", num_classes=3, activation=activation).eval()
    for module in model.modules():  # otherwise the bottlenecks are their shortcuts
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    weights, images = dict(model.named_parameters()), torch.randn(3, 3, 40, 33)

    def of_one(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(model, weights, (image[None],)).square().sum()

    found = vmap(grad(of_one), in_dims=(None, 0))(weights, images)
    for index, image in enumerate(images):
        model.zero_grad()
        model(image[None]).square().sum().backward()
        for name, weight in model.named_parameters():
            expected = weight.grad
            assert expected is not None
            error = (found[name][index] - expected).abs().max()
            assert error <= 1e-3 * expected.abs().max() + 1e-5, name


def test_forward_mode_through_a_layer() -> None:
    layer = HaloAttention(4, heads=2, block_size=3, halo_size=1).double()
    maps = torch.randn(2, 4, 5, 7, dtype=torch.float64)
    step = torch.randn_like(maps)
    _, tangent = jvp(layer, (maps,), (step,))
    slope = (layer(maps + 1e-6 * step) - layer(maps - 1e-6 * step)) / 2e-6
    torch.testing.assert_close(tangent, slope, rtol=1e-5, atol=1e-7)
