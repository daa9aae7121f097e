"""Resumed runs whose data have changed: refused by name, or allowed; and what a listing notices."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halonet import cli
from halonet.classification.training import resume, train
from halonet.data import listing
from halonet.data.listing import Entry, list_images
from halonet.data.shard_writer import write_shards
from halonet.data.sources import load_data
from halonet.data.splits import LabelledImages, Split
from halonet.training import loop
from halonet.training.changed_data import describe_change, pack_listing, unpack_listing
from halonet.training.loop import TrainingInterrupted
from tests.pictures import draw_folder, small_config


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """The data of a run that was stopped after its first step, and the run."""
    folder = tmp_path / "images"
    draw_folder(folder / "train", images=6)
    draw_folder(folder / "val", images=2)
    run = tmp_path / "run"
    original = loop.Trainer._step

    def stop_after_one(trainer, batches, place, stop):
        stop.append(2)
        return original(trainer, batches, place, stop)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_step", stop_after_one)
        with pytest.raises(TrainingInterrupted):
            train(small_config(folder, log_with="none"), output=str(run))
    return folder, run


def test_removed_and_added_images_are_named(stopped, capsys):
    folder, run = stopped
    red = folder / "train" / "red"
    (red / "3.png").unlink()
    shutil.copy(red / "1.png", red / "new.png")
    shutil.copy(red / "1.png", red / "newer.png")
    shutil.copy(red / "5.png", red / "0.png")
    said = (
        r"images removed: 1 \(train/red/3\.png\), "
        r"images added: 2 \(train/red/new\.png, train/red/newer\.png\), "
        r"images changed: 1 \(train/red/0\.png\); --allow-changed-data goes on"
    )
    for _ in range(2):  # nothing is written
        with pytest.raises(
            ValueError, match=rf"can't go on from .*pt: the data have changed: {said}"
        ):
            resume(run)
    capsys.readouterr()
    result = resume(run, allow_changed_data=True)
    assert len(result.data.training) == 13
    assert (
        "going on with changed data: images removed: 1 (train/red/3.png)" in capsys.readouterr().err
    )
    resume(run)  # what it went on with is the data now
    assert capsys.readouterr().err == ""


def test_command_line_refuses_and_allows(stopped, capsys):
    folder, run = stopped

    def fail(*words):
        with pytest.raises(SystemExit):
            cli.main(["train", *map(str, words)])
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        return lines[0]

    (folder / "val" / "green" / "1.png").unlink()
    line = fail("--resume", run)
    assert "images removed: 1 (val/green/1.png); --allow" in line
    assert "goes with --resume" in fail("--allow-changed-data=true")
    assert "no other option than" in fail("--resume", run, "--epochs=3")
    cli.main(["train", f"--resume={run}", "--allow-changed-data=true"])
    assert "on 3 images" in capsys.readouterr().out


def test_renamed_class_is_named(stopped):
    folder, run = stopped
    for part in ("train", "val"):
        (folder / part / "red").rename(folder / part / "scarlet")
    with pytest.raises(
        ValueError, match=r"classes removed: 1 \(red\), classes added: 1 \(scarlet\)"
    ):
        resume(run)


def test_data_that_moved_as_a_whole_go_on(stopped):
    folder, run = stopped
    moved = folder.rename(folder.with_name("elsewhere"))
    config = run / "config.json"
    config.write_text(config.read_text().replace(str(folder), str(moved)))
    assert resume(run).evaluation.images == 4


def test_listing_of_a_folder_notices_sizes_classes_and_parts(tmp_path):
    folder = draw_folder(tmp_path / "images")
    data = load_data(f"folder:{folder}")
    before = list_images(data)
    assert before.unit == "images"
    assert len(before.entries) == 24
    assert before == unpack_listing(pack_listing(before)) == list_images(data)
    swapped = dataclasses.replace(data, training=data.validation, validation=data.training)
    change = describe_change(before, list_images(swapped))
    assert change.startswith("images now in the other part: 24 (green/0.png, green/1.png")
    labels = [1 - label for label in data.validation.labels]
    wrong = dataclasses.replace(data, validation=Split(data.validation.sources, labels))
    assert describe_change(before, list_images(wrong)).startswith(f"images changed: {len(labels)}")
    backwards = Split(data.training.sources[::-1], data.training.labels[::-1])
    other = dataclasses.replace(data, training=backwards)
    assert describe_change(before, list_images(other)) == "classes or images are in another order"


def test_listing_of_many_images_is_of_their_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "NAMED", 10)
    monkeypatch.setattr(listing, "CHUNK", 7)
    folder = draw_folder(tmp_path / "images")
    before = list_images(load_data(f"folder:{folder}"))
    assert (before.unit, len(before.entries)) == ("folders", 4)
    shutil.copy(folder / "red" / "5.png", folder / "red" / "0.png")
    change = describe_change(before, list_images(load_data(f"folder:{folder}")))
    assert change == "folders changed: 1 (red)"


@pytest.mark.parametrize("whole", [True, False])
def test_listing_of_shards(tmp_path, whole):
    folder = draw_folder(tmp_path / "images")
    write_shards(load_data(f"folder:{folder}"), tmp_path / "shards", shard_bytes=8000)
    tars = tmp_path / "shards"
    name = f"shards:{tars}" if whole else f"shards:{tars}/train-*.tar"
    before = list_images(load_data(name))
    assert before.unit == "shards"
    assert before == list_images(load_data(name))
    last = sorted(tars.glob("train-*.tar"))[-1]
    assert describe_change(
        before, dataclasses.replace(before, entries=before.entries[1:])
    ).startswith("shards removed: 1 (train-000000.tar)")
    content = last.read_bytes()
    place = content.rindex(b".cls") // 512 * 512 + 512
    label = b"0" if content[place : place + 1] == b"1" else b"1"
    last.write_bytes(content[:place] + label + content[place + 1 :])
    change = describe_change(before, list_images(load_data(name)))
    assert f"shards changed: 1 ({last.name})" in change or not whole
    assert change


def test_listing_of_images_without_files():
    def make(labels, size=4):
        image = Image.new("L", (size, size))
        split = Split([lambda: image] * len(labels), labels)
        return list_images(LabelledImages("x", ("a", "b"), split, split))

    before = make([0, 1])
    assert before.entries[0][:2] == Entry("training", "all", "")[:2]
    assert before == make([0, 1])
    assert describe_change(before, make([1, 1])) == "parts changed: 1 (all)"
    assert describe_change(before, make([0, 1, 1]))


def test_listing_of_several_labels(tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    labels = np.array([[1, 1], [0, 1]], np.int8)
    split = Split(paths, labels)
    found = list_images(LabelledImages("csv:x", ("cat", "dog"), split, split))
    assert [entry.detail for entry in found.entries[:2]] == ["-1 bytes, cat, dog", "-1 bytes, dog"]
    assert Path(found.entries[0].name) == Path("a.png")
