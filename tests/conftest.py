"""A drawn image folder and a run on it, made once for all tests of a process."""

import os
import shutil
import sys
import threading
from contextlib import ExitStack
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec

import pytest

# Tests run side by side, one process a core: each takes one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Two folders of twelve images."""
    from tests.pictures import draw_folder

    return draw_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def whole_run(images, tmp_path_factory):
    """A run that nothing interrupted; tests don't change its folder."""
    from halonet.classification.training import train
    from tests.pictures import small_config

    config = small_config(images, checkpoint_steps=1)
    return train(config, output=str(tmp_path_factory.mktemp("runs") / "whole"))


@pytest.fixture(scope="session")
def launch(tmp_path_factory):
    """Runs a command in several processes, as torchrun does: see `start_launcher`."""
    from tests.training.processes import start_launcher

    with start_launcher(tmp_path_factory.mktemp("launcher")) as launch:
        yield launch


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve():
    """Serves a folder at a URL of this machine, which it returns."""
    with ExitStack() as stack:

        def start(folder):
            handler = partial(Quiet, directory=folder)
            serving = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
            threading.Thread(target=serving.serve_forever, daemon=True).start()
            stack.callback(serving.shutdown)
            return f"http://127.0.0.1:{serving.server_port}"

        yield start


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium."""
    program = shutil.which("chromium")
    if program is None or find_spec("playwright") is None:
        reason = "to see a page in a browser, install chromium and playwright"
        if os.environ.get("CI") and sys.platform == "linux":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Root, as which CI runs, has no sandbox.
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()
