"""Where data lie: signs of patterns in names, and the home folder."""

import shutil

import pytest

from halonet.data.sources import load_data
from halonet.detection.sources import load_detection_data
from tests.data.test_shards import picture, write_tar


@pytest.mark.parametrize("name", ["[v1]", "{a}", "{a,b}", "what?", "100*"])
def test_signs_of_patterns_in_names(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    for shard in range(2):
        files = {}
        for key in "ab":
            files |= {f"{key}.cls": b"%d" % shard, f"{key}.png": picture()}
        write_tar(folder / f"train-[{shard}].tar", files)
    for pattern, labels in (
        ("train-[0].tar", [0, 0]),
        ("train-*.tar", [0, 0, 1, 1]),
        ("train-[[][01]].tar", [0, 0, 1, 1]),
        ("train-[{0..1}].tar", [0, 0, 1, 1]),
    ):
        data = load_data(f"shards:{folder}/{pattern}", validation_share=1)
        assert list(data.validation.labels) == labels


def test_folder_of_shards_named_as_a_pattern(written, tmp_path):
    copy = shutil.copytree(written, tmp_path / "{x}")
    assert load_data(f"shards:{copy}").class_names == ("blue", "green", "red")


def test_home_folder(folder, written, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(written, tmp_path / "shards")
    shutil.copytree(folder, tmp_path / "photos")
    assert load_data("folder:~/photos").class_names == ("blue", "green", "red")
    assert len(load_data("shards:~/shards").training) == 18
    data = load_data(
        "shards:~/shards/train-*.tar", validation_data="shards:~/shards/val-000000.tar"
    )
    assert len(data.training) == 18
    (tmp_path / "labels.csv").write_text(
        "path,label\n"
        + "".join(f"photos/{name}/{n}.png,{name}\n" for name in ("red", "blue") for n in (0, 1))
    )
    assert len(load_data("csv:~/labels.csv", validation_share=0.5).training) == 2
    with pytest.raises(FileNotFoundError, match=f"no folder at {tmp_path}/absent"):
        load_detection_data("coco:~/absent")
