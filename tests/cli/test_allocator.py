"""Whether a process keeps the memory that it frees: of the command line, and of others."""

import os
import platform
import subprocess
import sys

import pytest

from halonet.allocator import SETTINGS

# The pages that a block of 64 MiB takes from the system, the second time.
SCRIPT = """
import resource, sys
sys.argv[0] = {program!r}
from halonet.allocator import keep_freed_memory
keep_freed_memory()
size = 64 << 20
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = b"1" * size
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
@pytest.mark.parametrize(
    ("program", "own", "kept"),
    [
        ("halonet", {}, True),
        ("halonet", {"MALLOC_MMAP_THRESHOLD_": "1048576"}, False),
        ("halonet", {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1048576"}, False),
        ("train.py", {}, False),
    ],
    ids=["command line", "its user's setting", "its user's tunable", "library"],
)
def test_freed_memory(program, own, kept):
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(program=program)],
        env=environment | own,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert (int(found) < 8) == kept  # 31 or more even where pages are huge
