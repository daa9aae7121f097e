"""The native kernel's build: which compilers take it, and what the others are told."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = [
    *(f"g++-{n}" for n in range(11, 17)),
    *(f"clang++-{n}" for n in range(14, 23)),
    "g++",
    "clang++",
]
# By file, so that g++ and clang++ count only where they are no other names of those before.
FOUND = {os.path.realpath(path): name for name in reversed(NAMES) if (path := shutil.which(name))}
COMPILERS = sorted(FOUND.values())

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cmake"), reason="needs cmake, on Linux"
)


def configure(folder: Path, compiler: str, *options: str) -> "subprocess.CompletedProcess[str]":
    command = ["cmake", "-S", str(ROOT), "-B", str(folder), f"-DCMAKE_CXX_COMPILER={compiler}"]
    return subprocess.run([*command, *options], capture_output=True, text=True)


@pytest.mark.skipif("CI" not in os.environ, reason="only CI promises more than one compiler")
def test_ci_has_both_kinds_of_compiler() -> None:
    assert {name.split("++")[0] for name in COMPILERS} == {"g", "clang"}


@pytest.mark.parametrize("compiler", COMPILERS)
def test_every_variant_compiles_without_a_warning(compiler: str, tmp_path: Path) -> None:
    configured = configure(tmp_path, compiler)
    assert configured.returncode == 0, configured.stderr
    commands = json.loads((tmp_path / "compile_commands.json").read_text())
    assert any("HALONET_VARIANT=baseline" in command["command"] for command in commands)
    for command in commands:
        check = f"{command['command']} -Werror -fsyntax-only"
        finished = subprocess.run(check, shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert finished.returncode == 0, f"{check}\n{finished.stderr}"


def test_an_unsupported_system_is_told_what_is_needed(tmp_path: Path) -> None:
    windows = ("-DCMAKE_SYSTEM_NAME=Windows", "-DCMAKE_CXX_COMPILER_WORKS=1")
    configured = configure(tmp_path, "g++", *windows)
    assert configured.returncode != 0
    told = " ".join(configured.stderr.split())
    assert "on Linux or macOS; this is GNU" in told
    assert "on Windows" in told
