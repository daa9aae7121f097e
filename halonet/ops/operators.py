"""Kernels as torch operators, each one step for autograd, torch.compile and torch.export."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from halonet.ops import reference
from halonet.ops.problem import SCHEMA, TENSORS, Problem, Window

Gradients = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]

_library = torch.library.Library("halonet", "FRAGMENT")


def differentiates_by_rules() -> bool:
    """Whether a transform of torch.func, or forward-mode differentiation, is under way.

    They need a rule for every operation, which torch has for its own only. Without one, the
    derivatives of forward mode are zero, without a word.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def transform_objection() -> str | None:
    """Why a kernel can't run under a transform of torch.func, or None where there is none."""
    if differentiates_by_rules():
        return "it has no rules for torch.func and forward-mode derivatives"
    return None


def register_operators(
    backend: str,
    dispatch_key: str,
    *,
    forward: Callable[[Problem, Tensor | None], Tensor],
    backward: Callable[[Problem, Tensor, Tensor, Tensor], Gradients],
    empty_statistics: Callable[[Problem], Tensor],
) -> Callable[[Problem], Tensor]:
    """Define halonet::BACKEND_inference, BACKEND_forward and BACKEND_backward.

    Their arguments are a problem's fields. "Statistics" are what the backward pass needs of
    the softmax to compute the weights again, in a shape of the backend's own.

    Args:
        backend: what the operators' names begin with.
        dispatch_key: torch's name for the devices that the kernels run on.
        forward: gives the output; writes the statistics unless they are None.
        backward: takes the problem, the output's gradient, the output and the statistics; gives the
            gradients of the problem's tensors.
        empty_statistics: fresh memory for the statistics.

    Returns:
        The backend's `run`.
    """

    def run_inference(*fields: Any) -> Tensor:
        return forward(_problem_of(*fields), None)

    def run_forward(*fields: Any) -> tuple[Tensor, Tensor]:
        problem = _problem_of(*fields)
        statistics = empty_statistics(problem)
        return forward(problem, statistics), statistics

    def fake_forward(*fields: Any) -> tuple[Tensor, Tensor]:
        return _fake_inference(*fields), empty_statistics(_problem_of(*fields))

    def run_backward(
        gradient: Tensor, output: Tensor, statistics: Tensor, *fields: Any
    ) -> tuple[Tensor, ...]:
        gradients = backward(_problem_of(*fields), gradient, output, statistics)
        return tuple(gradient.new_empty(0) if found is None else found for found in gradients)

    def differentiate(
        ctx: Any, gradient: Tensor | None, statistics_gradient: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        *tensors, output, statistics = ctx.saved_tensors
        gradients: list[Tensor | None] = [None] * TENSORS
        if gradient is not None:
            found = backward_operator(gradient, output, statistics, *tensors, *ctx.options)
            pairs = zip(tensors, found, strict=True)
            gradients = [None if tensor is None else of_it for tensor, of_it in pairs]
        return (*gradients, *(None for _ in ctx.options))

    # torch.library.custom_op imports torch's compiler at the first call, which takes seconds, and
    # costs twice as much a call.
    results = ", ".join(["Tensor"] * TENSORS)
    saved = "Tensor gradient, Tensor output, Tensor statistics"
    inference_operator = define_operator(
        f"{backend}_inference",
        f"({SCHEMA}) -> Tensor",
        dispatch_key,
        run_inference,
        _fake_inference,
    )
    forward_operator = define_operator(
        f"{backend}_forward",
        f"({SCHEMA}) -> (Tensor, Tensor)",
        dispatch_key,
        run_forward,
        fake_forward,
    )
    backward_operator = define_operator(
        f"{backend}_backward",
        f"({saved}, {SCHEMA}) -> ({results})",
        dispatch_key,
        run_backward,
        _fake_backward,
    )
    torch.library.register_autograd(
        f"halonet::{backend}_forward", differentiate, setup_context=_setup_context, lib=_library
    )
    torch.library.register_autograd(
        f"halonet::{backend}_backward",
        _differentiate_backward,
        setup_context=_setup_backward_context,
        lib=_library,
    )

    def run(problem: Problem) -> Tensor:
        *tensors, window, scale, position_scale = problem
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
            return forward_operator(*tensors, list(window), scale, position_scale)[0]
        return inference_operator(*tensors, list(window), scale, position_scale)

    return run


def define_operator(
    name: str, schema: str, dispatch_key: str, run: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """The operator halonet::NAME: `run` for the devices of this key, `fake` for shapes alone."""
    _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, run, dispatch_key)
    torch.library.register_fake(f"halonet::{name}", fake, lib=_library)
    return getattr(torch.ops.halonet, name).default


def _problem_of(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_table: Tensor | None,
    column_table: Tensor | None,
    window: Sequence[int],
    scale: float,
    position_scale: float,
) -> Problem:
    return Problem(
        query, key, value, row_table, column_table, Window(*window), scale, position_scale
    )


def _fake_inference(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
    return query.new_empty((*query.shape[:4], value.shape[4]))


def _fake_backward(
    gradient: Tensor, output: Tensor, statistics: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    return tuple(
        gradient.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape)
        for tensor in arguments[:TENSORS]
    )


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.options = inputs[TENSORS:]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:TENSORS], *output)


def _setup_backward_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    gradient, _, _, *fields = inputs
    ctx.options = fields[TENSORS:]
    ctx.save_for_backward(gradient, *fields[:TENSORS])


def _differentiate_backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
    """The second derivative, through the reference, which torch differentiates again and again.

    The forward pass's output and statistics follow from the problem's tensors: what reaches them
    reaches the tensors here, and they get nothing.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves: list[Any] = [None if one is None else _alias(one) for one in ctx.saved_tensors]
        gradient, *tensors = leaves
        given = [tensor for tensor in tensors if tensor is not None]
        result = reference.run(_problem_of(*tensors, *ctx.options))
        first = torch.autograd.grad(result, given, gradient, create_graph=True)
        pairs = zip(tensors, outer, strict=True)
        of_gradient, *found = torch.autograd.grad(
            first,
            [gradient, *given],
            [of_it for tensor, of_it in pairs if tensor is not None],
            create_graph=create_graph,
            materialize_grads=True,
        )
    of_given = iter(found)
    of_tensors = (None if tensor is None else next(of_given) for tensor in tensors)
    return (of_gradient, None, None, *of_tensors, *(None for _ in ctx.options))


def _alias(tensor: Tensor) -> Tensor:
    """The same numbers, to differentiate by: how they came about isn't part of this step."""
    return tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()
