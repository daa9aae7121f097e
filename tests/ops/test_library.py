"""The native library: what is said where it is missing or doesn't fit, and that CI has it."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import halonet.ops
from halonet import explain_backend
from halonet.check.cases import CASES
from halonet.ops import cpu

ROOT = Path(__file__).parents[2]
C_COMPILER = next(filter(shutil.which, ("cc", "gcc", "clang")), None)


def test_a_missing_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = cpu.load_library("absent.so")
    assert reason == "the native library absent.so was not built with this installation"
    monkeypatch.setattr(cpu, "MISSING", reason)
    choice = explain_backend(**CASES[0].inputs(torch.float32), **CASES[0].options)
    assert choice.chosen == "sdpa"
    assert choice.reasons["cpu"] == reason


def test_a_file_that_is_no_library_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.so").write_text("no library")
    monkeypatch.setattr(halonet.ops, "__path__", [str(tmp_path)])
    assert "the native library can't be loaded: " in str(cpu.load_library("text.so"))


SIZE = cpu._PROBLEM.size
INTERFACES = {
    "none": ("", "unknown"),
    "older": (f"int halonet_interface() {{ return 0; }} int halonet_problem_size() {{ return {SIZE}; }}", f"0 ({SIZE} bytes)"),
    "other_size": (f"int halonet_interface() {{ return {cpu.INTERFACE}; }} int halonet_problem_size() {{ return 8; }}", f"{cpu.INTERFACE} (8 bytes)"),
}  # fmt: skip


@pytest.mark.skipif(C_COMPILER is None, reason="there is no C compiler")
@pytest.mark.parametrize("name", INTERFACES)
def test_a_library_of_other_sources_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, found = INTERFACES[name]
    (tmp_path / "fake.c").write_text(
        source + "\nint halonet_forward(void *p) { return *(int *)0; }\n"
    )
    library = tmp_path / f"{name}.so"
    command = [str(C_COMPILER), "-shared", "-fPIC", "-w", "-o", library, tmp_path / "fake.c"]
    subprocess.run(command, check=True)
    monkeypatch.setattr(halonet.ops, "__path__", [str(tmp_path)])
    reason = cpu.load_library(library.name)
    assert reason == (
        "the native library was built from another version of the sources: its interface is "
        f"{found}, not {cpu.INTERFACE} ({SIZE} bytes); install halonet again"
    )


def test_the_interface_has_a_new_number_whenever_its_struct_changes() -> None:
    header = (ROOT / "csrc" / "halonet_cpu.h").read_text(encoding="utf-8")
    number = re.search(r"#define HALONET_INTERFACE (\d+)", header)
    assert number is not None
    assert int(number[1]) == cpu.INTERFACE
    code = " ".join(re.sub(r"//.*", "", header).split())
    structs = "".join(re.findall(r"typedef struct \{.*?\} \w+;|enum \{.*?\};", code))
    fingerprint = hashlib.sha256(structs.encode()).hexdigest()[:16]
    # Other fields? Raise HALONET_INTERFACE, cpu.INTERFACE and this number, and take the new hash.
    assert (cpu.INTERFACE, fingerprint) == (4, "a4dfaaf9e4797449")


@pytest.mark.parametrize(("ci", "outcome"), [("true", "error"), ("", "skipped")])
def test_the_kernels_tests_do_not_skip_themselves_in_ci(ci: str, outcome: str) -> None:
    if shutil.which("c++") is None:
        pytest.skip("there is no compiler")
    without = (
        "import sys, pytest; from halonet.ops import cpu\n"
        "cpu._library = cpu.MISSING = 'the library is not there'\n"
        "sys.exit(pytest.main(['-n0', '-p', 'no:cacheprovider', 'tests/ops/test_cpu.py',"
        " '-k', 'any_strides']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", without],
        cwd=ROOT, env=os.environ | {"CI": ci}, capture_output=True, text=True,
    )  # fmt: skip
    assert f"1 {outcome}" in done.stdout, done.stdout + done.stderr
