"""Hugging Face data sets, made here and saved."""

import sys

import pytest
from PIL import Image

from halonet.data.pixels import read_image
from halonet.data.shard_writer import write_shards
from halonet.data.sources import load_data
from tests.pictures import draw_folder

datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="module", autouse=True)
def quiet():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def make_part(labels, **columns):
    images = [Image.new("RGB", (40, 36), (10 * index, 0, 0)) for index in range(len(labels))]
    features = {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])}
    features |= {name: values[0] for name, values in columns.items()}
    return datasets.Dataset.from_dict(
        {"picture": images, "kind": labels, **{name: one[1] for name, one in columns.items()}},
        features=datasets.Features(features),
    )


def save(folder, **parts):
    datasets.DatasetDict(parts).save_to_disk(str(folder))
    return f"hf:{folder}"


def test_columns_are_found_by_type(tmp_path):
    name = save(
        tmp_path / "saved",
        train=make_part([0, 1, 1], number=(datasets.Value("int64"), [1, 2, 3])),
        test=make_part([1, 0]),
        validation=make_part([1]).select([0]),
    )
    data = load_data(name)
    assert data.class_names == ("cat", "dog")
    assert list(data.training.labels) == [0, 1, 1]
    assert list(data.validation.labels) == [1]
    assert read_image(data.training.sources[2]).getpixel((0, 0)) == (20, 0, 0)
    assert str(data.training.sources[2]).startswith("image 2 of ")
    assert [len(data.training.sources), len(data.training.sources[1:])] == [3, 2]
    write_shards(data, tmp_path / "shards")
    again = load_data(f"shards:{tmp_path / 'shards'}")
    stored = [one.read_bytes() for one in again.training.sources]
    assert stored == [one.read_bytes() for one in data.training.sources]


def test_share_is_held_out_where_there_is_no_other_part(tmp_path):
    shuffled = make_part([1] * 4 + [0] * 8).select([*range(11, -1, -1)])
    shuffled.save_to_disk(str(tmp_path / "single"))
    data = load_data(f"hf:{tmp_path / 'single'}", validation_share=0.25)
    assert list(data.training.labels) == [0] * 6 + [1] * 3
    assert list(data.validation.labels) == [0, 0, 1]
    for split in (data.training, data.validation):
        for source, label in zip(split.sources, split.labels, strict=True):
            assert (read_image(source).getpixel((0, 0))[0] < 40) == label


def test_folder_of_images(tmp_path, monkeypatch):
    draw_folder(tmp_path / "images" / "train", images=2)
    draw_folder(tmp_path / "images" / "validation", images=1)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = load_data(f"hf:{tmp_path / 'images'}")
    assert data.class_names == ("green", "red")
    assert list(data.training.labels) == [0, 0, 1, 1]
    assert read_image(data.validation.sources[1]).getpixel((10, 10)) == (255, 0, 0)


def test_missing_columns_and_labels_are_named(tmp_path):
    part = make_part([0, 1])
    with pytest.raises(ValueError, match=r"ClassLabel, has none among picture \(Image\)$"):
        load_data(save(tmp_path / "no_label", train=part.remove_columns("kind")))
    second = part.rename_column("kind", "coarse").features["coarse"]
    several = make_part([0, 1], coarse=(second, [1, 1]))
    with pytest.raises(ValueError, match="one column of type ClassLabel, has kind, coarse"):
        load_data(save(tmp_path / "two_labels", train=several))
    named = save(tmp_path / "named", train=several.rename_column("kind", "label"), test=part)
    with pytest.raises(ValueError, match="split test must have picture and label as train has"):
        load_data(named)
    with pytest.raises(ValueError, match="must have a split train, has test"):
        load_data(save(tmp_path / "test_only", test=part))
    one = datasets.Features(picture=datasets.Image(), kind=datasets.ClassLabel(names=["cat"]))
    single = save(tmp_path / "one_class", train=make_part([0, 0]).cast(one))
    with pytest.raises(ValueError, match="must have two or more classes to train on, has cat"):
        load_data(single)
    with pytest.raises(ValueError, match=r"split train of hf:.* has no class for image 1"):
        load_data(save(tmp_path / "unlabelled", train=make_part([0, -1, None])))


def test_unknown_name(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="data hf:halonet/no-such-data can't be loaded"):
        load_data("hf:halonet/no-such-data")


def test_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"package datasets: pip install 'halonet\[data\]'"
    ):
        load_data("hf:beans")


def test_what_is_left_out_is_said(tmp_path):
    part = make_part([0, 1, 1], number=(datasets.Value("int64"), [1, 2, 3]))
    parts = dict.fromkeys(("train", "validation", "test", "unlabelled"), part)
    data = load_data(save(tmp_path / "saved", **parts))
    assert data.describe().splitlines()[1:] == [
        "kept for the end: 3 images of the part test, for evaluate --split test",
        "left out: 3 images of the split unlabelled",
        "left out: 1 column (number)",
    ]
    assert list(data.test.labels) == [0, 1, 1]


@pytest.mark.parametrize("parts", [("validation", "test"), ("test",)])
def test_a_test_part_without_labels_is_left_out(tmp_path, parts):
    labelled = make_part([0, 1] * 4)
    unlabelled = {"validation": labelled, "test": make_part([-1, -1, -1])}
    name = save(tmp_path / "saved", train=labelled, **{part: unlabelled[part] for part in parts})
    data = load_data(name)
    assert data.test is None
    assert len(data.validation) == (8 if "validation" in parts else 2)
    assert data.left_out == ("3 images of the split test, which have no class",)
    partly = save(tmp_path / "partly", train=labelled, test=make_part([0, -1]))
    with pytest.raises(ValueError, match=r"split test of hf:.* has no class for image 1"):
        load_data(partly)


def test_only_a_part_to_score(tmp_path):
    name = save(tmp_path / "saved", test=make_part([0, 1, 1]))
    data = load_data(name, validation_share=1)
    assert (len(data.training), list(data.validation.labels)) == (0, [0, 1, 1])


def test_several_labels(tmp_path):
    part = make_part([0, 1, 1])
    kinds = datasets.List(part.features["kind"])
    name = save(
        tmp_path / "saved",
        train=part.add_column("kinds", [[0], [], [1, 0]]).cast_column("kinds", kinds),
        test=part.add_column("kinds", [[1], [0], [0]]).cast_column("kinds", kinds),
    )
    data = load_data(name, task="multilabel")
    assert data.class_names == ("cat", "dog")
    assert data.training.labels.tolist() == [[1, 0], [0, 0], [1, 1]]
    assert data.validation.labels.tolist() == [[0, 1], [1, 0], [1, 0]]
    assert data.left_out == ("1 column (kind)",)
    with pytest.raises(ValueError, match="one column of type list of ClassLabel, has none among"):
        load_data(save(tmp_path / "single", train=part), task="multilabel")
