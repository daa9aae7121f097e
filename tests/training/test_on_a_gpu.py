"""What training does on a GPU, by tensors that are none: nothing waits, nothing is laid out anew."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from halonet.classification.training import Classification
from halonet.data.loader import InOrder, make_loader
from halonet.ops import halo_attention, triton_backend
from tests.pictures import small_config


@pytest.fixture(scope="module")
def make_task(images):
    """Gives the task of a small run."""

    def make(**changes):
        accelerator = SimpleNamespace(
            device=torch.device("cpu"),
            is_main_process=False,
            local_main_process_first=nullcontext,
        )
        return Classification(small_config(images, **changes), accelerator)

    return make


def take_batch(task, monkeypatch):
    """The first batch, and how it was loaded: as on a machine with a GPU, but for the pinning."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    loader = make_loader(task.training, InOrder(4), 4, 0)
    monkeypatch.undo()
    assert loader.pin_memory
    loader.pin_memory = False
    return next(iter(loader))


class Calls(TorchDispatchMode):
    """Notes each operation, and the devices of all tensors that go in and come out."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        result = operation(*arguments, **(options or {}))
        tensors = [
            one
            for one in tree_leaves((arguments, options, result))
            if isinstance(one, torch.Tensor)
        ]
        self.found.append((operation, {one.device.type for one in tensors}))
        return result


def draw_on_the_cpu(task):
    """Draws the mix's random numbers, CPU tensors on a GPU's machine too, as true ones."""
    if task.mix is None:
        return
    (task.mix,) = task.mix.transforms
    draw = task.mix.make_params

    def draw_outside(inputs):
        with unset_fake_temporarily():
            return draw(inputs)

    task.mix.make_params = draw_outside


@pytest.fixture(params=["sdpa", "triton"])
def attend_by(request, monkeypatch):
    """The backend that a GPU takes, and the one that it may; there is none to ask what it can."""
    if request.param == "sdpa":
        monkeypatch.setattr(triton_backend, "INSTALLED", False)
    elif not triton_backend.INSTALLED:
        pytest.skip("triton is not installed")
    monkeypatch.setattr(triton_backend, "_device_objection", lambda index: None)
    monkeypatch.setattr(halo_attention, "PREFERRED", request.param)


@pytest.mark.usefixtures("attend_by")
@pytest.mark.parametrize("mixes", [{}, {"mixup": 0.2}, {"cutmix": 1.0}], ids=str)
def test_a_step_waits_for_nothing(make_task, monkeypatch, mixes) -> None:
    task = make_task(**{"mixup": 0.0, "cutmix": 0.0} | mixes)
    draw_on_the_cpu(task)
    images, labels, broken = take_batch(task, monkeypatch)
    copies, layouts = [], []
    copy = torch.Tensor.to

    def note_copy(tensor, *arguments, **options):
        if torch.device("cuda") in arguments:
            copies.append(options.get("non_blocking"))
        return copy(tensor, *arguments, **options)

    def note_layout(module, inputs):
        layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    convolutions = [one for one in task.model.modules() if isinstance(one, torch.nn.Conv2d)]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        task.device = torch.device("cuda")
        task.model.to("cuda")
        task.loss.to("cuda")
        for one in convolutions:
            one.register_forward_pre_hook(note_layout)
        monkeypatch.setattr(torch.Tensor, "to", note_copy)
        batch = mode.from_tensor(images), mode.from_tensor(labels), broken
        with Calls() as calls:
            loss, figures = task.compute_loss(task.model, batch)
        with pytest.raises(DataDependentOutputException):
            loss.item()
    # Nothing of the host goes in but the batch, so that model and loss may be a CUDA graph: no
    # other copy, and no size that hangs on a value, which fakes would refuse.
    crossings = [str(one) for one, devices in calls.found if devices == {"cpu", "cuda"}]
    assert crossings == ["aten._to_copy.default"] * 3
    names = {str(operation) for operation, _ in calls.found}
    assert ("halonet.triton_forward.default" in names) == (halo_attention.PREFERRED == "triton")
    assert loss.device.type == "cuda"
    assert all(figure.device.type == "cuda" for figure in figures.values())
    assert copies == [True] * 3
    assert len(layouts) >= len(convolutions)
    assert all(layouts)


def test_a_backward_pass_waits_for_nothing(make_task, monkeypatch) -> None:
    # Without CUDA autograd refuses its fakes; those of a CPU refuse as well to be looked at.
    task = make_task(mixup=0.0, cutmix=0.0)
    images, labels, broken = take_batch(task, monkeypatch)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        weights = {name: mode.from_tensor(one) for name, one in task.model.named_parameters()}
        batch = mode.from_tensor(images), mode.from_tensor(labels), broken
        loss, _ = task.compute_loss(
            lambda inputs: functional_call(task.model, weights, inputs), batch
        )
        loss.backward()
        with pytest.raises(DataDependentOutputException):
            loss.item()
    assert all(one.grad is not None for one in weights.values())


@pytest.mark.parametrize("with_backward", [False, True])
def test_a_step_compiles_in_one_graph(make_task, monkeypatch, with_backward) -> None:
    # Up to the optimizer's own step, in which torch breaks the graph itself.
    if with_backward:
        if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
            pytest.skip("this torch compiles no function that goes backward")
        monkeypatch.setattr(torch._dynamo.config, "trace_autograd_ops", True)
    task = make_task()
    images = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.tensor([0, 1])

    def compute(images, labels):
        loss = task.loss(task.model(images).float(), labels)
        if with_backward:
            loss.backward()
            return loss.detach()
        return loss

    def run(function):
        task.model.zero_grad()
        loss = function(images, labels)
        if not with_backward:
            loss.backward()
        return loss.detach(), [one.grad.clone() for one in task.model.parameters()]

    expected = run(compute)
    torch.compiler.reset()
    found = run(torch.compile(compute, fullgraph=True, backend="eager"))
    torch.testing.assert_close(found, expected)
