"""docs/data.md: its commands, on data of each format."""

import csv
import re
import shutil
from pathlib import Path

import pytest

from halonet.cli import classification, detect
from halonet.cli.training import parse_training
from halonet.data.shard_writer import write_shards
from halonet.data.sources import load_data
from halonet.detection.sources import load_detection_data
from tests.detection.pictures import draw_coco
from tests.detection.test_formats import write_roboflow, write_voc, write_yolo
from tests.pictures import draw_folder

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def list_commands() -> list[list[str]]:
    text = PAGE.read_text(encoding="utf-8")
    lines = [*re.findall(r"`(halonet [^`\n]+)`", text), *re.findall(r"^halonet .+$", text, re.M)]
    return [line.split()[1:] for line in lines]


COMMANDS = [words for words in list_commands() if len(words) > 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page's data, by its names."""
    folder = tmp_path_factory.mktemp("data")
    photos = draw_folder(folder / "photos")
    shutil.copytree(photos, folder / "test")
    for part in ("train", "validation"):
        draw_folder(folder / "pets" / part, images=2)
    with (
        open(folder / "labels.csv", "w", newline="") as labels,
        open(folder / "tags.csv", "w", newline="") as tags,
    ):
        tables = csv.writer(labels), csv.writer(tags)
        tables[0].writerow(["path", "label", "patient"])
        tables[1].writerow(["path", "label"])
        for place, path in enumerate(sorted(photos.rglob("*.png"))):
            tables[0].writerow([path.relative_to(folder), path.parent.name, place // 2])
            several = f"{path.parent.name};indoors" if place % 2 else "indoors"
            tables[1].writerow([path.relative_to(folder), several])
    write_shards(load_data(f"folder:{photos}"), folder / "shards")
    coco = draw_coco(folder / "coco", masks=False)
    write_roboflow(coco, folder / "cells")
    write_voc(coco, folder / "boxes")
    write_yolo(coco, folder / "boxes.yolo")
    return folder


def test_page_has_commands():
    named = [words for words in COMMANDS if "--data" in words]
    for kind in ("csv:", "shards:", "hf:", "folder:", "coco:", "voc:", "yolo:"):
        assert [words for words in named if words[words.index("--data") + 1].startswith(kind)]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_command_reads_the_data(folder, monkeypatch, tmp_path, words):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    if words[0] == "train":
        fields = parse_training(classification.make_train_parser("small"), words[1:])
        names = ("task", "validation_share", "fold", "group")
        data = load_data(fields["data"], **{name: fields[name] for name in names})
        assert len(data.training)
        assert len(data.validation)
    elif words[:2] == ["detect", "train"]:
        fields = parse_training(detect.make_train_parser("small_detector"), words[2:])
        data = load_detection_data(fields["data"], masks=fields["masks"])
        assert len(data.training.images)
        assert len(data.validation.images)
    else:
        parsers = {
            "evaluate": classification.make_evaluate_parser,
            "detect evaluate": detect.make_evaluate_parser,
            "detect predict": detect.make_predict_parser,
        }
        name = " ".join(words[: 1 + (words[0] == "detect")])
        options = parsers[name]().parse_words(words[len(name.split()) :])
        if options.get("data") and words[0] == "evaluate":
            assert len(load_data(options.data).validation)
        elif options.get("data"):
            assert load_detection_data(options.data).validation.images
