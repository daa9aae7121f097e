"""torch.export's programs, without the model's classes, and what AOTInductor compiles of them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halonet.export.description import ExportDescription, to_metadata
from halonet.models.classifier import Classifier

# Of a map of one pixel torch.export makes a case of its own.
SMALLEST_FREE = 33  # pixels, where the size is free
EXAMPLE = (70, 101)  # height and width that a program of free size is traced with


def write_program(
    model: Classifier,
    path: Path,
    description: ExportDescription,
    *,
    size: tuple[int, int] | None,
    batch: int | None,
) -> None:
    """Write a model as a program of torch.export, with the metadata as extra files.

    Args:
        model: fused, in float32 on the CPU.
        path: of the file.
        description: of the model.
        size: height and width; None for any from 33 on.
        batch: number of images; None for any.
    """
    program = _trace(model, size=size, batch=batch)
    torch.export.save(program, path, extra_files=to_metadata(description))


def run_program(path: Path) -> Any:
    """A function from an array of images to an array of logits."""
    return _on_arrays(torch.export.load(path).module())


def find_compiler() -> str:
    """The C++ compiler that AOTInductor takes.

    Raises:
        ValueError: there is none.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return get_cpp_compiler()
    except RuntimeError:
        raise ValueError(
            "format aoti needs a C++ compiler: install g++ or clang++, or name one in CXX"
        ) from None


def write_compiled(
    model: Classifier,
    path: Path,
    description: ExportDescription,
    *,
    size: tuple[int, int] | None,
    batch: int | None,
) -> None:
    """Compile a model by AOTInductor, for this kind of processor; arguments as `write_program`.

    Raises:
        ValueError: it can't be compiled.
    """
    program = _trace(model, size=size, batch=batch)
    options = {
        "aot_inductor.metadata": to_metadata(description),
        # torch.export takes a free batch for 2 or more; the code is right for 1.
        "aot_inductor.check_lowerbound": False,
        # Headers compiled beforehand take longer than one file gains by them.
        "aot_inductor.precompile_headers": False,
    }
    try:
        torch._inductor.aoti_compile_and_package(
            program, package_path=os.fspath(path), inductor_configs=options
        )
    except RuntimeError as error:  # the compiler's output follows in many lines
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"AOTInductor can't compile the model: {reason}") from None


def run_compiled(path: Path) -> Any:
    """A function from an array of images to an array of logits."""
    return _on_arrays(torch._inductor.aoti_load_package(os.fspath(path)))


def _trace(
    model: Classifier, *, size: tuple[int, int] | None, batch: int | None
) -> torch.export.ExportedProgram:
    free: dict[int, Any] = {}
    if batch is None:
        free[0] = torch.export.Dim("batch")
    if size is None:
        free[2] = torch.export.Dim("height", min=SMALLEST_FREE)
        free[3] = torch.export.Dim("width", min=SMALLEST_FREE)
    images = torch.zeros(batch or 2, model.in_channels, *(size or EXAMPLE))
    with torch.no_grad():
        return torch.export.export(model, (images,), dynamic_shapes=(free,) if free else None)


def _on_arrays(program: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    def run(images: Any) -> Any:
        with torch.no_grad():
            return program(torch.from_numpy(images)).numpy()

    return run
