"""The native CPU kernel: every instruction set that runs here, against the reference."""

import os
import shutil
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import batch_norm, max_pool2d, silu

from halonet import create_model, explain_backend, halo_attention
from halonet.check.cases import CASES, KERNEL_CASES, Case, run_with_gradients
from halonet.ops import cpu, cpu_norm
from tests.comparison import assert_as_exact

TYPES = [torch.float32, torch.bfloat16]
LARGER_CASES = (
    Case("h1_stage", 21, 13, {"block_size": 8, "halo_size": 3}, channels=16, value_channels=16),
    Case(
        "h1_downsampling",
        21,
        13,
        {"block_size": 8, "halo_size": 3, "stride": 2},
        channels=16,
        value_channels=16,
    ),
    Case("block_14", 23, 29, {"block_size": 14, "halo_size": 2}, 1, 1, 18, 33),
    Case("very_wide_heads", 9, 10, {"block_size": 5, "halo_size": 2}, 1, 1, 80, 200),
    Case("odd_heads", 9, 10, {"block_size": 6, "halo_size": 2}, 1, 2, 37, 41, tables="full"),
    Case("two_channels", 6, 5, {"block_size": 4, "halo_size": 1}, 1, 3, 2, 1),
    Case("several_strips", 9, 60, {"block_size": 4, "halo_size": 3}, 1, 1, 66, 65),
    # Most cells have equal weights: a hundred equal roundings show.
    Case(
        "mostly_padding",
        11,
        9,
        {"block_size": 10, "halo_size": 3, "stride": 2, "mask_padding": False},
        1,
        2,
        3,
        17,
        tables="none",
    ),
)
FLOAT_CASES = [*CASES, *LARGER_CASES]


def runnable_variants() -> list[str]:
    """The kernel's instruction sets that this processor has."""
    found = []
    for name in ("amx", "avx512", "avx2", "baseline"):
        try:
            cpu.select_variant(name)
            found.append(name)
        except (ValueError, RuntimeError):
            continue
    if found:
        cpu.select_variant(None)
    return found


@pytest.fixture(autouse=True)
def _kernel() -> None:
    """Without a kernel there is nothing to test; where one can be built, CI must have it."""
    if cpu.variant() is not None:
        return
    compiler = next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if os.environ.get("CI") == "true" and compiler is not None:
        pytest.fail(f"{cpu.MISSING}, and {compiler} is there")
    pytest.skip(str(cpu.MISSING))


@pytest.fixture(params=runnable_variants())
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    cpu.select_variant(request.param)
    yield request.param
    cpu.select_variant(None)


@pytest.fixture(autouse=True)
def _nan_in_fresh_memory() -> Iterator[None]:
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before


def assert_is_the_reference(
    inputs: dict[str, Tensor], options: dict[str, Any], without: str | None = None
) -> None:
    wide = {name: tensor.double() for name, tensor in inputs.items()}
    exact = run_with_gradients(halo_attention, wide, options | {"backend": "reference"})
    plain = run_with_gradients(halo_attention, inputs, options | {"backend": "reference"})
    found = outcomes(inputs, options)
    for name, tensor in found.items():
        if name != without:
            assert_as_exact(name, tensor, exact[name], plain[name])


def outcomes(inputs: dict[str, Tensor], options: dict[str, Any]) -> dict[str, Tensor]:
    return run_with_gradients(halo_attention, inputs, options | {"backend": "cpu"})


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("case", FLOAT_CASES, ids=str)
def test_kernel_is_the_reference(case: Case, dtype: torch.dtype, variant: str) -> None:
    assert_is_the_reference(case.inputs(dtype), case.options)


def draw_case(random: Random) -> Case:
    """A case with a window of several cells and a map of several rows and columns.

    Of one alone, gradients are 0 however large what cancels in them; the next two tests have those.
    """
    stride = random.choice([1, 2])
    tables = random.choice(["none", "half", "full"])
    block_size = random.randint(1, 5) * stride
    options = {
        "block_size": block_size,
        "halo_size": random.randint(block_size == 1, 4),
        "stride": stride,
        "position_stride": random.randint(1, stride),
        "mask_padding": random.choice([False, True]),
    }
    return Case(
        "random",
        random.randint(2, 20),
        random.randint(2, 20),
        options,
        batch=random.randint(1, 3),
        heads=random.randint(1, 3),
        channels=random.randint(1, 20) * (2 if tables == "half" else 1),
        value_channels=random.randint(1, 40),
        tables=tables,
    )


# Not by hypothesis, which takes numbers from the package's sources: any change there would draw
# other cases.
@pytest.mark.parametrize("seed", range(60))
def test_random_shapes(seed: int) -> None:
    random = Random(seed)
    case = draw_case(random)
    assert_is_the_reference(case.inputs(random.choice(TYPES)), case.options)


@pytest.mark.parametrize("value_channels", [1, 8, 17])
def test_window_of_one_cell(value_channels: int, variant: str) -> None:
    options = {"block_size": 1, "halo_size": 0, "stride": 1, "mask_padding": False}
    case = Case("one", 3, 7, options, batch=2, heads=2, channels=4, value_channels=value_channels)
    inputs = case.inputs(torch.float32)
    found = outcomes(inputs, options)
    exact = run_with_gradients(halo_attention, inputs, options | {"backend": "reference"})
    torch.testing.assert_close(found["result"], inputs["value"])
    products = inputs["value"].abs().sum(-1).max() * inputs["key"].abs().max()
    for name, tensor in found.items():
        if name in ("result", "gradient of value"):
            assert_as_exact(name, tensor, exact[name].double(), exact[name])
        else:  # 0, but for the rounding of what cancels
            assert tensor.abs().max() <= 16 * torch.finfo(torch.float32).eps * products, name


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("height", "width"), [(1, 17), (17, 1)])
def test_map_of_one_row_or_column(
    height: int, width: int, dtype: torch.dtype, variant: str
) -> None:
    """The relative logits across it are the same for all cells: they get no gradient."""
    options = {"block_size": 4, "halo_size": 3}
    case = Case("line", height, width, options, channels=8, value_channels=5, tables="full")
    inputs = case.inputs(dtype)
    across = "gradient of row_table" if height == 1 else "gradient of column_table"
    assert_is_the_reference(inputs, options, without=across)
    products = inputs["value"].abs().sum(-1).max() * inputs["query"].abs().max()
    found = outcomes(inputs, options)[across].abs().max()
    assert found <= max(torch.finfo(dtype).eps, 16 * torch.finfo(torch.float32).eps) * products


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("case", [CASES[0], CASES[3], *LARGER_CASES[:3], LARGER_CASES[6]], ids=str)
def test_same_result_for_any_number_of_threads(case: Case, dtype: torch.dtype) -> None:
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3, 2):
        torch.set_num_threads(count)
        results.append(outcomes(case.inputs(dtype), case.options))
    torch.set_num_threads(threads)
    for other in results[1:]:
        for name, tensor in other.items():
            assert torch.equal(tensor, results[0][name]), name


def test_slices_of_one_projection_are_read_where_they_lie() -> None:
    case = LARGER_CASES[0]
    inputs = case.inputs(torch.float32)
    names = ("query", "key", "value")
    fused = torch.cat([inputs[name].flatten(3) for name in names], -1)
    slices = [part.unflatten(-1, (case.heads, -1)) for part in fused.chunk(3, -1)]
    sliced = inputs | dict(zip(names, slices, strict=True))
    assert not sliced["key"].is_contiguous()
    found, expected = outcomes(sliced, case.options), outcomes(inputs, case.options)
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def test_any_strides() -> None:
    case = CASES[0]
    inputs = case.inputs(torch.float32)
    strange = {name: tensor.mT.contiguous().mT for name, tensor in inputs.items()}
    result = halo_attention(**strange, **case.options, backend="cpu")
    assert torch.equal(result, halo_attention(**inputs, **case.options, backend="cpu"))
    # The gradient of a sum is one number, expanded.
    query = inputs["query"].requires_grad_()
    result = halo_attention(**inputs, **case.options, backend="cpu")
    (expected,) = torch.autograd.grad(result, query, torch.ones_like(result), retain_graph=True)
    (found,) = torch.autograd.grad(result.sum(), query)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("which", ["query", "key", "value"])
def test_nan_and_infinity_reach_the_result_that_they_reach(
    which: str, bad: float, variant: str
) -> None:
    case = LARGER_CASES[0]
    inputs = case.inputs(torch.float32)
    inputs[which][0, 2, 3, 1, 4] = bad
    expected = halo_attention(**inputs, **case.options, backend="reference")
    assert not expected.isfinite().all()
    found = halo_attention(**inputs, **case.options, backend="cpu")
    assert torch.equal(found.isfinite(), expected.isfinite())


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("mask_padding", [True, False], ids=["masked", "padded"])
@pytest.mark.parametrize("score", [-300, -64, -20, 20, 64, 300])
def test_scores_far_from_zero(
    score: int, mask_padding: bool, dtype: torch.dtype, variant: str
) -> None:
    case = LARGER_CASES[0]
    options = case.options | {"mask_padding": mask_padding}
    inputs = case.inputs(dtype)
    inputs["query"][..., 0] = 1
    inputs["key"][..., 0] = score / case.channels**-0.5  # adds to all scores inside the map
    # The gradients of queries are sums of errors, too, times keys as large as these.
    assert_is_the_reference(inputs, options, without="gradient of query")


def test_large_scores() -> None:
    case = LARGER_CASES[0]
    inputs = case.inputs(torch.float32)
    inputs["query"] *= 300
    wide = {name: tensor.double() for name, tensor in inputs.items()}
    exact = halo_attention(**wide, **case.options, backend="reference")
    found = halo_attention(**inputs, **case.options, backend="cpu")
    # Scores go up to about 1000: a rounding of theirs is an error of that size in the weights.
    error = 1000 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(
        found, exact.float(), rtol=error, atol=error * exact.abs().max().item()
    )


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck's own
def test_registered_operator_is_sound() -> None:
    tensors = [tensor.requires_grad_() for tensor in CASES[0].inputs(torch.float32).values()]
    arguments = (*tensors, [4, 2, 1, 0, 1, 1], 0.5, 0.25)
    torch.library.opcheck(torch.ops.halonet.cpu_forward.default, arguments)
    plain = [tensor.detach() for tensor in tensors]
    torch.library.opcheck(torch.ops.halonet.cpu_inference.default, (*plain, *arguments[5:]))


def test_compiles_and_exports_as_one_operator() -> None:
    case = CASES[0]
    inputs = case.inputs(torch.float32)
    compiled = torch.compile(halo_attention, fullgraph=True, backend="aot_eager")
    plain = halo_attention(**inputs, **case.options, backend="cpu")
    assert torch.equal(compiled(**inputs, **case.options, backend="cpu"), plain)
    found = run_with_gradients(compiled, inputs, case.options | {"backend": "cpu"})
    for name, tensor in outcomes(inputs, case.options).items():
        assert torch.equal(tensor, found[name]), name

    class Module(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return halo_attention(query, key, value, block_size=4, halo_size=2)

    tensors = (inputs["query"], inputs["key"], inputs["value"])
    exported = torch.export.export(Module(), tensors)
    assert "halonet.cpu_inference" in str(exported.graph)
    assert torch.equal(exported.module()(*tensors), Module()(*tensors))


def test_exports_with_free_height_and_width() -> None:
    class Module(torch.nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return halo_attention(pixels, pixels, pixels, block_size=4, halo_size=2)

    height, width = (torch.export.Dim(name, min=5, max=64) for name in ("height", "width"))
    exported = torch.export.export(
        Module(), (torch.randn(2, 7, 10, 3, 4),), dynamic_shapes=({1: height, 2: width},)
    ).module()
    for shape in ((7, 10), (10, 7), (8, 8), (5, 17)):
        pixels = torch.randn(2, *shape, 3, 4)
        assert torch.equal(exported(pixels), Module()(pixels)), shape


@pytest.mark.skipif(
    torch.__version__ < "2.14", reason="torch 2.11 can't prove that odd and even sizes halve alike"
)
def test_a_model_exports_with_free_height_and_width() -> None:
    network = create_model("halonet_tiny", num_classes=5).eval()
    height, width = (torch.export.Dim(name, min=64, max=256) for name in ("height", "width"))
    with torch.no_grad():
        exported = torch.export.export(
            network, (torch.randn(1, 3, 64, 96),), dynamic_shapes=({2: height, 3: width},)
        ).module()
        for shape in ((64, 96), (96, 64), (70, 101)):
            images = torch.randn(1, 3, *shape)
            torch.testing.assert_close(exported(images), network(images))


@pytest.mark.parametrize(
    ("case", "dtype", "reason"),
    [
        (CASES[0], torch.float64, "float32 and bfloat16, not torch.float64"),
        (KERNEL_CASES[0], torch.float32, "kernel_size"),
        (
            CASES[0]._replace(options=CASES[0].options | {"scale": 0, "position_scale": 1}),
            torch.float32,
            "no scale of 0",
        ),
    ],
    ids=str,
)
def test_says_why_it_cannot_run(case: Case, dtype: torch.dtype, reason: str) -> None:
    inputs = case.inputs(dtype)
    choice = explain_backend(**inputs, **case.options)
    assert choice.chosen == "sdpa"
    assert reason in (choice.reasons["cpu"] or "")
    with pytest.raises(NotImplementedError, match="backend 'cpu' can't run this"):
        halo_attention(**inputs, **case.options, backend="cpu")


def activation_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """What `affine_silu` and `norm_silu_gradient` take, maps in channels-last order."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name in ("maps", "added", "gradient"):
        numbers = 4 * torch.randn(shape, generator=generator)
        found[name] = numbers.to(dtype, memory_format=torch.channels_last)
    for name in ("scale", "shift"):
        found[name] = torch.randn(shape[1], generator=generator)
    return found


def plain_affine_silu(
    maps: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    added: Tensor | None,
) -> Tensor:
    dtype = maps.dtype
    summed = maps if scale is None else maps * scale.to(dtype)[:, None, None]
    summed = summed if shift is None else summed + shift.to(dtype)[:, None, None]
    return silu(summed if added is None else summed + added)


@pytest.mark.parametrize("channels", [1, 4, 7, 16, 64, 67, 145])
@pytest.mark.parametrize(
    "given", ["", "shift", "added", "scale shift", "scale shift added", "scale added"]
)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_silu_of_sums(dtype: torch.dtype, given: str, channels: int, variant: str) -> None:
    inputs = activation_inputs((2, channels, 3, 5), dtype)
    chosen = {name: inputs[name] if name in given else None for name in ("scale", "shift", "added")}
    maps = inputs["maps"]
    arguments = {"maps": maps, **chosen}
    wide = {name: None if one is None else one.double() for name, one in arguments.items()}
    exact, plain = plain_affine_silu(**wide), plain_affine_silu(**arguments)
    before = maps.clone()
    with torch.no_grad():
        assert cpu_norm.can_affine_silu(maps, chosen["added"])
        found = cpu_norm.affine_silu(**arguments)
        assert torch.equal(maps, before)
        over = cpu_norm.affine_silu(**(arguments | {"maps": before}), in_place=True)
    assert_as_exact(given, found, exact, plain)
    assert torch.equal(over, found)


def norm_gradients(
    maps: Tensor,
    added: Tensor | None,
    gradient: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    training: bool,
    native: bool = False,
) -> list[Tensor]:
    """Gradients of maps, of what is added, of weight and bias, of SiLU after a batch norm.

    Without training, the statistics that the norm has are 0.5 and 2.
    """
    kept = torch.full_like(weight, 0.5), torch.full_like(weight, 2.0)
    mean, variance = kept
    if training:
        mean, variance = maps.float().mean((0, 2, 3)), maps.float().var((0, 2, 3), correction=0)
    if native:
        inverse_deviation = (variance + 1e-5).rsqrt()
        found = cpu_norm.norm_silu_gradient(
            *(maps, added, gradient, weight, bias, mean, inverse_deviation),
            batch_statistics=training,
        )
        return [one for one in found if one is not None]
    leaves = [
        one.clone().requires_grad_() for one in (maps, added, weight, bias) if one is not None
    ]
    normed = batch_norm(leaves[0], *kept, *leaves[-2:], training=training)
    result = silu(normed if added is None else normed + leaves[1])
    return list(torch.autograd.grad(result, leaves, gradient))


@pytest.mark.parametrize("channels", [1, 7, 16, 64, 67, 145])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("sums", [True, False], ids=["sum", "alone"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_gradients_of_norm_and_silu(
    dtype: torch.dtype, sums: bool, training: bool, channels: int, variant: str
) -> None:
    inputs = activation_inputs((2, channels, 13, 7), dtype)
    weight, bias = inputs.pop("scale"), inputs.pop("shift")
    inputs["added"] = inputs["added"] if sums else None
    wide = {name: None if one is None else one.double() for name, one in inputs.items()}
    exact = norm_gradients(**wide, weight=weight.double(), bias=bias.double(), training=training)
    plain = norm_gradients(**inputs, weight=weight, bias=bias, training=training)
    with torch.no_grad():
        found = norm_gradients(**inputs, weight=weight, bias=bias, training=training, native=True)
    names = ["maps", "added", "weight", "bias"] if sums else ["maps", "weight", "bias"]
    for name, *tensors in zip(names, found, exact, plain, strict=True):
        assert_as_exact(name, *tensors)


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (2, 67, 3, 5), (2, 16, 23, 29)], ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_statistics_of_a_batch(dtype: torch.dtype, shape: tuple[int, ...], variant: str) -> None:
    maps = activation_inputs(shape, dtype)["maps"]
    maps[:, -1] += 1000  # far from zero beside its deviation
    maps[0, :, 0, 0] = 300
    mean, variance = cpu_norm.norm_statistics(maps)
    torch.testing.assert_close(mean.double(), maps.double().mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
    exact = maps.double().var((0, 2, 3), correction=0)
    torch.testing.assert_close(variance.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_silu_of_numbers_at_the_ends(dtype: torch.dtype, variant: str) -> None:
    numbers = torch.tensor([0.0, -0.0, -1e30, 1e30, -100, 100, -85, float("inf"), float("nan")])
    maps = numbers.to(dtype)[:, None, None, None].repeat(1, 19, 1, 1)
    with torch.no_grad():
        found = cpu_norm.affine_silu(maps, None, None, None)
        finite, zeros, ones = maps[:-2], torch.zeros(19), torch.ones(19)
        slopes = cpu_norm.norm_silu_gradient(
            *(finite, None, torch.ones_like(finite), None, None, zeros, ones),
            batch_statistics=False,
        )[0]
    expected = silu(maps)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-30, equal_nan=True)
    steps = torch.tensor([0.5, 0.5, 0, 1, 0, 1, 0])
    assert_close = torch.testing.assert_close
    assert_close(slopes, steps.to(dtype)[:, None, None, None].expand_as(slopes), rtol=0, atol=1e-30)


@pytest.mark.parametrize(
    "shape", [(2, 7, 5, 7), (1, 64, 1, 1), (2, 64, 13, 8), (1, 67, 16, 2), (3, 16, 2, 9)], ids=str
)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_pooling_after_silu(dtype: torch.dtype, shape: tuple[int, ...], variant: str) -> None:
    maps = activation_inputs(shape, dtype)["maps"]
    maps[0, 0, 0, 0] = float("nan")
    with torch.no_grad():
        found = cpu_norm.pool_silu(maps)
        expected = max_pool2d(cpu_norm.affine_silu(maps, None, None, None), 3, stride=2, padding=1)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(
        found.double(),
        max_pool2d(silu(maps.double()), 3, stride=2, padding=1),
        rtol=2**-8 if dtype is torch.bfloat16 else 1e-6,
        atol=1e-6,
        equal_nan=True,
    )


def test_silu_in_threads() -> None:
    assert_close = torch.testing.assert_close
    inputs = activation_inputs((1, 256, 21, 19), torch.float32)
    weight, bias, gradient = (inputs.pop(name) for name in ("scale", "shift", "gradient"))
    given = inputs | {"weight": weight, "bias": bias, "gradient": gradient, "training": True}
    gradients = norm_gradients(**given)
    maps = inputs["maps"]
    expected = plain_affine_silu(maps, weight, bias, inputs["added"])
    pooled = max_pool2d(silu(inputs["maps"]), 3, stride=2, padding=1)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with torch.no_grad():
                found = cpu_norm.affine_silu(maps, weight, bias, inputs["added"])
                assert_close(found, expected)
                assert_close(cpu_norm.pool_silu(maps), pooled)
                assert_close(norm_gradients(**given, native=True), gradients, rtol=1e-4, atol=1e-4)
                mean, variance = cpu_norm.norm_statistics(maps)
            assert_close(mean, maps.mean((0, 2, 3)))
            assert_close(variance, maps.var((0, 2, 3), correction=0))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 5])
def test_more_threads_than_pixels(threads: int) -> None:
    inputs = activation_inputs((2, 70000, 1, 1), torch.float32)
    inputs["weight"], inputs["bias"] = inputs.pop("scale"), inputs.pop("shift")
    maps, before = inputs["maps"], torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        mean, variance = cpu_norm.norm_statistics(maps)
        with torch.no_grad():
            found = norm_gradients(**inputs, training=True, native=True)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(mean, maps.mean((0, 2, 3)))
    torch.testing.assert_close(variance, maps.var((0, 2, 3), correction=0))
    expected = norm_gradients(**inputs, training=True)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_silu_is_left_to_torch_where_it_must_be() -> None:
    inputs = activation_inputs((2, 8, 3, 5), torch.float32)
    maps, added = inputs["maps"], inputs["added"]
    rows = maps.contiguous()
    assert not cpu_norm.can_affine_silu(maps, added)  # gradients may be wanted
    with torch.no_grad():
        assert cpu_norm.can_affine_silu(maps, added)
        assert cpu_norm.can_affine_silu(rows, rows, per_channel=False)  # as stems of images give
        assert not cpu_norm.can_affine_silu(rows)
        assert not cpu_norm.can_affine_silu(maps, rows)
        assert not cpu_norm.can_affine_silu(maps, added[:1])
        assert not cpu_norm.can_affine_silu(maps, added.bfloat16())
        assert not cpu_norm.can_affine_silu(maps[:, :, ::2])
        assert not cpu_norm.can_affine_silu(maps.double())
        assert not cpu_norm.can_affine_silu(maps.to("meta"))


def test_silu_takes_a_shift_in_any_order_and_no_other() -> None:
    maps = activation_inputs((2, 8, 3, 5), torch.float32)["maps"]
    strided, expanded = torch.arange(16.0)[::2], torch.ones(1).expand(8)
    with torch.no_grad():
        for shift in (strided, expanded):
            expected = plain_affine_silu(maps, None, shift, None)
            torch.testing.assert_close(cpu_norm.affine_silu(maps, None, shift, None), expected)
        for wrong in (torch.ones(3), torch.ones(8, device="meta"), torch.ones(1, 8)):
            with pytest.raises(ValueError, match="shift must have a number for each of 8 channels"):
                cpu_norm.affine_silu(maps, None, wrong, None)
        assert not cpu_norm.can_affine_silu(maps, maps.to("meta"))


def test_silu_in_place_is_seen_by_autograd() -> None:
    maps = activation_inputs((2, 8, 3, 5), torch.float32)["maps"].requires_grad_()
    product = maps * 1
    squares = (product * product).sum()
    with torch.no_grad():
        cpu_norm.affine_silu(product, None, None, None, in_place=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.backward()
    with torch.inference_mode():
        product = maps * 1
        cpu_norm.affine_silu(product, None, None, None, in_place=True)
        torch.testing.assert_close(product, silu(maps * 1))


def test_the_gradient_may_come_in_another_order() -> None:
    inputs = activation_inputs((2, 8, 3, 5), torch.float32)
    inputs["weight"], inputs["bias"] = inputs.pop("scale"), inputs.pop("shift")
    with torch.no_grad():
        expected = norm_gradients(**inputs, training=True, native=True)
        inputs["gradient"] = inputs["gradient"].contiguous()
        found = norm_gradients(**inputs, training=True, native=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck's own
def test_the_activations_operators_are_sound() -> None:
    inputs = activation_inputs((2, 8, 3, 5), torch.float32)
    maps, added, gradient, scale, shift = inputs.values()
    operators = torch.ops.halonet
    check = torch.library.opcheck
    output = torch.zeros_like(maps)
    check(operators.cpu_affine_silu_.default, (output, maps, scale, shift, added))
    check(operators.cpu_pool_silu.default, (maps,))
    check(operators.cpu_norm_statistics.default, (maps,))
    numbers = (scale, shift, shift, scale, True)
    check(operators.cpu_norm_gradient.default, (maps, added, gradient, *numbers))
    check(operators.cpu_norm_gradient.default, (maps, None, gradient, *numbers))
