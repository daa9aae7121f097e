"""Folds: they part the images of any source, evenly in each class."""

import dataclasses
from collections import Counter

import pytest

from halonet.data.shard_writer import write_shards
from halonet.data.sources import load_data
from tests.pictures import draw_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return draw_folder(tmp_path_factory.mktemp("drawn") / "images", classes=3, images=10)


def test_folds_part_the_images(folder):
    parts = [load_data(f"folder:{folder}", fold=f"{fold}/5") for fold in range(1, 6)]
    whole = load_data(f"folder:{folder}", validation_share=1).validation
    held_out = [source for data in parts for source in data.validation.sources]
    assert sorted(held_out) == sorted(whole.sources)
    for data in parts:
        assert Counter(data.validation.labels) == {0: 2, 1: 2, 2: 2}
        assert sorted([*data.training.sources, *data.validation.sources]) == sorted(whole.sources)
    assert load_data(f"folder:{folder}", fold="2/5") == parts[1]
    assert load_data(f"folder:{folder}", fold="2/5", fold_seed=1) != parts[1]


def test_folds_of_other_sources(folder, tmp_path):
    everything = load_data("elpv", fold="1/4")
    assert len(everything.training) + len(everything.validation) == 2624
    assert len(everything.validation) == 656
    write_shards(load_data(f"folder:{folder}"), tmp_path / "shards")
    with pytest.raises(ValueError, match="fold is for data without a held-out part; shards:"):
        load_data(f"shards:{tmp_path / 'shards'}", fold="1/2")
    data = load_data(f"shards:{tmp_path / 'shards' / 'train-000000.tar'}", fold="1/2")
    assert (len(data.training), len(data.validation)) == (12, 12)


@pytest.mark.parametrize("fold", ["0/5", "6/5", "1/1", "2", "a/b", "", "-1/5", "1/5/2"])
def test_folds_that_are_none(folder, fold):
    with pytest.raises(ValueError, match="fold must be as 1/5"):
        load_data(f"folder:{folder}", fold=fold)


def test_more_folds_than_images(folder):
    with pytest.raises(
        ValueError, match="11 folds need a class of as many images, the largest has 10"
    ):
        load_data(f"folder:{folder}", fold="1/11")


def test_class_with_fewer_images_than_folds(folder, tmp_path):
    draw_folder(tmp_path / "images", classes=2, images=6)
    for index in range(3, 6):
        (tmp_path / "images" / "red" / f"{index}.png").unlink()
    parts = [load_data(f"folder:{tmp_path / 'images'}", fold=f"{fold}/4") for fold in (1, 2, 3, 4)]
    assert sorted(data.validation.labels.count(1) for data in parts) == [0, 1, 1, 1]
    lacking = next(data for data in parts if data.validation.labels.count(1) == 0)
    assert lacking.describe().splitlines()[1] == "no held-out images of red"
    alike = dataclasses.replace(lacking, class_names=("Red", "red"))
    assert alike.describe().splitlines()[1] == "classes that differ in case only: Red, red"
