"""Memory that the command line has freed is kept for its next step.

glibc returns blocks above 32 MiB to the system when they are freed, and takes them anew, page by
page, at the next step. A program that imports halonet as a library decides for itself, as by
`MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=4294967296` in its environment.
"""

import ctypes
import os
import platform
import sys

from halonet.openmp import is_command_line

SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Return none until 2 GiB lie free in a row, unless the user's environment has own settings."""
    set_by_user = any(name in os.environ for name in SETTINGS)
    set_by_user = set_by_user or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    decides = is_command_line(sys.argv, sys.orig_argv) and not set_by_user
    if decides and platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
