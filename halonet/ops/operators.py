"""Kernels as torch operators, each one step for autograd, torch.compile and torch.export."""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from halonet.ops.problem import SCHEMA, TENSORS, Problem, Window

Gradients = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]

_library = torch.library.Library("halonet", "FRAGMENT")


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
    inference_operator = _define(
        f"{backend}_inference",
        f"({SCHEMA}) -> Tensor",
        dispatch_key,
        run_inference,
        _fake_inference,
    )
    forward_operator = _define(
        f"{backend}_forward",
        f"({SCHEMA}) -> (Tensor, Tensor)",
        dispatch_key,
        run_forward,
        fake_forward,
    )
    backward_operator = _define(
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
        f"halonet::{backend}_backward", _no_second_derivative, lib=_library
    )

    def run(problem: Problem) -> Tensor:
        *tensors, window, scale, position_scale = problem
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
            return forward_operator(*tensors, list(window), scale, position_scale)[0]
        return inference_operator(*tensors, list(window), scale, position_scale)

    return run


def _define(
    name: str, schema: str, dispatch_key: str, run: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
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


def _no_second_derivative(ctx: Any, *gradients: Tensor | None) -> NoReturn:
    raise RuntimeError(
        "the kernels of halo attention have no second derivative; use backend='reference' for it"
    )
