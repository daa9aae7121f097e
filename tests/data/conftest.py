"""Three classes of eight images: as a folder, and as shards."""

import pytest
from PIL import Image

from halonet.data.shard_writer import write_shards
from halonet.data.sources import load_data
from tests.pictures import draw_folder

SHARD_BYTES = 6000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of eight images; the names of files repeat, and not all are PNG."""
    folder = draw_folder(tmp_path_factory.mktemp("images") / "images", classes=3, images=7)
    for color in ("red", "green", "blue"):
        Image.new("RGB", (40, 50), color).save(folder / color / "a photo.v2.JPEG")
    return folder


@pytest.fixture(scope="module")
def written(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("shards") / "written"
    data = load_data(f"folder:{folder}", validation_share=0.25)
    result = write_shards(data, output, shard_bytes=SHARD_BYTES)
    assert result.problems == []
    assert result.images == 24
    return output
