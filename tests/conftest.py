"""A drawn image folder and a run on it, made once for all tests of a process."""

import os

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
