"""The native kernel on 64-bit Arm: built by a cross compiler, run by an emulator.

Torch stays on this processor. What it would pass to the kernel's library goes through a file to a
program for Arm, and the results come back into torch's memory, so that the tests are those of
`test_cpu.py`.
"""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from halonet.ops import cpu
from tests.ops.test_cpu import (  # noqa: F401
    _nan_in_fresh_memory,
    test_gradients_of_norm_and_silu,
    test_kernel_is_the_reference,
    test_nan_and_infinity_reach_the_result_that_they_reach,
    test_pooling_after_silu,
    test_random_shapes,
    test_same_result_for_any_number_of_threads,
    test_scores_far_from_zero,
    test_silu_of_numbers_at_the_ends,
    test_silu_of_sums,
    test_statistics_of_a_batch,
)

fcntl = pytest.importorskip("fcntl", reason="the tools that this needs run on Linux")
ROOT = Path(__file__).parents[2]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
ARM_ROOT = "/usr/aarch64-linux-gnu"  # where Debian keeps that compiler's libraries


class Map(ctypes.Structure):
    """HaloMap of csrc/halonet_cpu.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "row", "column", "head")),
    )


COUNTS = (
    *("batch", "height", "width", "heads", "channels", "value_channels"),
    *("block_size", "halo_size", "stride", "position_stride", "mask_padding"),
    *("table_width", "data_type", "threads"),
)


class Problem(ctypes.Structure):
    """HaloProblem of csrc/halonet_cpu.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in COUNTS),
        ("scale", ctypes.c_double),
        ("position_scale", ctypes.c_double),
        *((name, Map) for name in ("query", "key", "value", "output", "log_sum")),
        ("row_table", ctypes.c_void_p),
        ("column_table", ctypes.c_void_p),
        ("output_gradient", Map),
        ("query_gradient", Map),
        ("key_gradient", Map),
        ("value_gradient", Map),
        ("row_table_gradient", ctypes.c_void_p),
        ("column_table_gradient", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
    )

    def map_bytes(self, name: str) -> int:
        """From the first number of a map to the end of the last."""
        given = getattr(self, name)
        kind = name.removesuffix("_gradient")
        at_queries = kind not in ("key", "value")
        stride = self.stride if at_queries else 1
        channels = {"query": self.channels, "key": self.channels, "log_sum": 1}
        last = (
            (self.batch - 1) * given.batch
            + (-(-self.height // stride) - 1) * given.row
            + (-(-self.width // stride) - 1) * given.column
            + (self.heads - 1) * given.head
            + channels.get(kind, self.value_channels)
        )
        is_float32 = name in ("log_sum", "key_gradient", "value_gradient") or self.data_type == 0
        return last * (4 if is_float32 else 2)

    def table_bytes(self) -> int:
        return 4 * (2 * (self.block_size + self.halo_size) - 1) * self.table_width


class Activation(ctypes.Structure):
    """HaloActivation of csrc/halonet_cpu.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("output", "maps", "scale", "shift", "added")),
        *((name, ctypes.c_int64) for name in ("pixels", "channels", "data_type", "threads")),
    )


class Pooling(ctypes.Structure):
    """HaloPooling of csrc/halonet_cpu.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("output", "maps")),
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "channels")),
        *((name, ctypes.c_int64) for name in ("data_type", "threads")),
    )


class Statistics(ctypes.Structure):
    """HaloStatistics of csrc/halonet_cpu.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("maps", "mean", "variance", "workspace")),
        *((name, ctypes.c_int64) for name in ("pixels", "channels", "data_type", "threads")),
    )


class NormGradient(ctypes.Structure):
    """HaloNormGradient of csrc/halonet_cpu.h."""

    MAPS = ("maps_gradient", "added_gradient", "maps", "added", "gradient")
    CHANNELS = ("weight_gradient", "bias_gradient", "scale", "shift", "mean", "inverse_deviation")
    _fields_ = (
        *((name, ctypes.c_void_p) for name in (*MAPS[:2], *CHANNELS[:2], *MAPS[2:])),
        *((name, ctypes.c_void_p) for name in (*CHANNELS[2:], "workspace")),
        *((name, ctypes.c_int64) for name in ("batch_statistics", "pixels", "channels")),
        *((name, ctypes.c_int64) for name in ("data_type", "threads")),
    )


class EmulatedLibrary:
    """Stands in for the kernel's library in `halonet.ops.cpu`."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.file = folder / "call"
        self.process = subprocess.Popen(
            [EMULATOR, "-L", ARM_ROOT, program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def halonet_forward(self, problem: bytes) -> int:
        return self._call_with_problem("forward", problem)

    def halonet_backward(self, problem: bytes) -> int:
        return self._call_with_problem("backward", problem)

    def halonet_affine_silu(self, activation: bytes) -> int:
        given = Activation.from_buffer_copy(activation)
        numbers = given.pixels * given.channels * (4 if given.data_type == 0 else 2)
        sizes = dict.fromkeys(("output", "maps", "added"), numbers)
        sizes |= dict.fromkeys(("scale", "shift"), 4 * given.channels)
        return self._call_with_memory("affine_silu", given, sizes)

    def halonet_statistics(self, statistics: bytes) -> int:
        given = Statistics.from_buffer_copy(statistics)
        sizes = dict.fromkeys(("mean", "variance"), 4 * given.channels)
        sizes["maps"] = given.pixels * given.channels * (4 if given.data_type == 0 else 2)
        sizes["workspace"] = 24 * given.channels * given.threads
        return self._call_with_memory("statistics", given, sizes)

    def halonet_norm_gradient(self, gradient: bytes) -> int:
        given = NormGradient.from_buffer_copy(gradient)
        numbers = given.pixels * given.channels * (4 if given.data_type == 0 else 2)
        sizes = dict.fromkeys(NormGradient.MAPS, numbers)
        sizes |= dict.fromkeys(NormGradient.CHANNELS, 4 * given.channels)
        sizes["workspace"] = 24 * given.channels * given.threads
        return self._call_with_memory("norm_gradient", given, sizes)

    def halonet_pool_silu(self, pooling: bytes) -> int:
        given = Pooling.from_buffer_copy(pooling)
        numbers = given.batch * given.channels * (4 if given.data_type == 0 else 2)
        halved = -(-given.height // 2) * -(-given.width // 2)
        sizes = {"output": numbers * halved, "maps": numbers * given.height * given.width}
        return self._call_with_memory("pool_silu", given, sizes)

    def halonet_backward_workspace(self, problem: bytes) -> int:
        given = Problem.from_buffer_copy(problem)
        counts = {name: getattr(given, name) for name in COUNTS}
        self.file.write_bytes(bytes(Problem(**counts)))
        return self._call("workspace")

    def close(self) -> None:
        self.process.communicate()

    def _call_with_problem(self, function: str, packed: bytes) -> int:
        problem = Problem.from_buffer_copy(packed)
        sizes = {}
        for name, kind in Problem._fields_:
            if kind is Map:
                sizes[name] = problem.map_bytes(name)
            elif kind is ctypes.c_void_p:
                sizes[name] = problem.table_bytes()
        sizes["workspace"] = 4 * self.halonet_backward_workspace(packed)
        return self._call_with_memory(function, problem, sizes)

    def _call_with_memory(
        self, function: str, arguments: ctypes.Structure, sizes: dict[str, int]
    ) -> int:
        """Call with copies of the memory that fields of these names point to, of so many bytes."""
        memory = bytearray(ctypes.sizeof(arguments))
        places: dict[int, tuple[int, int]] = {}  # by address here: offset in the file, bytes
        for name, size in sizes.items():
            given = getattr(arguments, name)
            address = given.data if isinstance(given, Map) else given
            if not address:
                continue
            if address not in places:
                memory.extend(bytes(-len(memory) % 64))
                places[address] = (len(memory), size)
                memory.extend(ctypes.string_at(address, size))
            if isinstance(given, Map):
                given.data = places[address][0]
            else:
                setattr(arguments, name, places[address][0])
        memory[: ctypes.sizeof(arguments)] = bytes(arguments)
        self.file.write_bytes(memory)
        result = self._call(function)
        memory = self.file.read_bytes()
        for address, (offset, size) in places.items():
            ctypes.memmove(address, memory[offset : offset + size], size)
        return result

    def _call(self, function: str) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{function} {self.file}\n")
        self.process.stdin.flush()
        result = self.process.stdout.readline()
        assert result, f"the emulated kernel died in {function}, exit status {self.process.wait()}"
        return int(result)


@pytest.fixture(scope="session")
def arm_library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedLibrary]:
    """The kernel as CMakeLists.txt builds it for Arm, loaded by a program that the emulator runs."""
    missing = [tool for tool in (COMPILER, EMULATOR, "cmake") if not shutil.which(tool)]
    if missing:
        reason = f"to run the kernel as on Arm, install {', '.join(missing)}"
        if os.environ.get("CI") and sys.platform == "linux" and platform.machine() == "x86_64":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    build, program = shared / "arm", shared / "arm" / "emulated_kernel"
    with (shared / "arm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of the processes builds for all
        if not program.exists():
            settings = {
                "CMAKE_SYSTEM_NAME": "Linux",
                "CMAKE_SYSTEM_PROCESSOR": "aarch64",
                "CMAKE_CXX_COMPILER": COMPILER,
                "CMAKE_CXX_FLAGS": "-Werror",
            }
            run(["cmake", "-S", ROOT, "-B", build, *(f"-D{k}={v}" for k, v in settings.items())])
            run(["cmake", "--build", build])
            source = Path(__file__).with_name("emulated_kernel.cpp")
            kernel = [build / "libhalonet_cpu.so", f"-Wl,-rpath,{build}"]
            run([COMPILER, f"-I{ROOT}/csrc", "-O1", source, *kernel, "-o", program])
    library = EmulatedLibrary(program, folder)
    yield library
    library.close()


def run(command: list[str | Path]) -> None:
    finished = subprocess.run(command, capture_output=True, text=True)
    assert not finished.returncode, finished.stdout + finished.stderr


@pytest.fixture(autouse=True)
def variant(arm_library: EmulatedLibrary, monkeypatch: pytest.MonkeyPatch) -> str:
    """In place of the fixture of `test_cpu.py`, so that its tests run Arm's kernel here."""
    monkeypatch.setattr(cpu, "_library", arm_library)
    monkeypatch.setattr(cpu, "MISSING", None)
    return "arm"
