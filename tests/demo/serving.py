"""The page of halonet demo, served by a process of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serve(folder: Path, *words: str, **variables: str) -> Iterator[str]:
    """Yields the page's address; when it ends, nothing may be left of what it was sent.

    Args:
        folder: empty, for what the page keeps meanwhile.
        words: of Python's command line.
        variables: of the environment.
    """
    environment = os.environ | {"TMPDIR": str(folder)} | variables
    with subprocess.Popen(
        [sys.executable, *words],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        try:
            line = server.stdout.readline()
            assert line.startswith("open http://127.0.0.1:"), server.stderr.read()
            yield line.split()[1].rstrip("/;")
        finally:
            server.send_signal(signal.SIGTERM)
            _, errors = server.communicate(timeout=180)
    assert server.returncode == 0, errors
    assert list(folder.iterdir()) == []
