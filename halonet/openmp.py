"""How the command line's threads wait for each other; imported before torch, which loads libgomp.

libgomp's threads spin while they wait. Beside a busy neighbour a spinning thread takes the core
that the thread it waits for needs, and two threads are then many times slower than one. The command
line lets them sleep; a program that imports halonet as a library decides for itself.
"""

import itertools
import os
import sys
from collections.abc import Sequence

SETTINGS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}


def is_command_line(arguments: Sequence[str], original: Sequence[str]) -> bool:
    """Whether this process is `halonet ...` or `python -m halonet ...`.

    Args:
        arguments: sys.argv.
        original: sys.orig_argv; a module's name isn't in sys.argv while it is imported.
    """
    if os.path.basename(arguments[0]) in ("halonet", "halonet.exe"):
        return True
    return any(pair == ("-m", "halonet") for pair in itertools.pairwise(original))


if is_command_line(sys.argv, sys.orig_argv) and not SETTINGS.keys() & os.environ.keys():
    os.environ.update(SETTINGS)
