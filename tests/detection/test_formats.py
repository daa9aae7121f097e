"""One set of boxes in three formats: the same objects, from the command line to the pictures."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from halonet import cli
from halonet.detection.data import AnnotatedImages, DetectionData
from halonet.detection.detector import save_detector
from halonet.detection.sources import is_same_data, load_detection_data
from tests.detection.pictures import draw_coco, rectangle, small_detector
from tests.detection.test_boxes import box_ap
from tests.detection.test_training import make_trial
from tests.pictures import make_words

# pycocotools' own, under numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PARTS = {"train": "train2017", "val": "val2017"}
XML = """<annotation><folder>{folder}</folder><filename>{name}</filename>
<size><width>{width}</width><height>{height}</height><depth>3</depth></size>{objects}</annotation>"""
OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{0}</xmin>
<ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"""


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return draw_coco(tmp_path / "coco", masks=False)


def read_boxes(coco: Path, part: str) -> list[tuple[str, int, int, list[dict[str, Any]]]]:
    """Name, width, height and objects of each image."""
    content = json.loads((coco / "annotations" / f"instances_{part}.json").read_text())
    names = {one["id"]: one["name"] for one in content["categories"]}
    return [
        (
            one["file_name"],
            one["width"],
            one["height"],
            [
                entry | {"name": names[entry["category_id"]]}
                for entry in content["annotations"]
                if entry["image_id"] == one["id"]
            ],
        )
        for one in content["images"]
    ]


def write_voc(coco: Path, folder: Path, *, number: int = 0) -> Path:
    """Pascal VOC's layout; `number` 1 counts pixels as VOC's own sets do."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for part, long in PARTS.items():
        names = []
        for file, width, height, entries in read_boxes(coco, long):
            stem = f"{part} {Path(file).stem}"
            names.append(stem)
            with Image.open(coco / long / file) as image:
                image.save(folder / "JPEGImages" / f"{stem}.png")
            objects = ""
            for entry in entries:
                x, y, w, h = entry["bbox"]
                edges = (x + number, y + number, x + w, y + h)
                objects += OBJECT.format(*edges, name=entry["name"], difficult=entry["iscrowd"])
            text = XML.format(
                folder="VOC2012" if number else "a", name="x.jpg", width=width, height=height, objects=objects
            )  # fmt: skip
            (folder / "Annotations" / f"{stem}.xml").write_text(text)
        (folder / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(names) + "\n")
    return folder


def write_yolo(coco: Path, folder: Path, *, polygons: bool = False) -> Path:
    """YOLO's layout, as Ultralytics describes it."""
    classes = ["bar", "square"]
    for part, long in PARTS.items():
        (folder / "images" / part).mkdir(parents=True)
        (folder / "labels" / part).mkdir(parents=True)
        for file, width, height, entries in read_boxes(coco, long):
            with Image.open(coco / long / file) as image:
                image.save(folder / "images" / part / file)
            lines = []
            for entry in entries:
                if entry["iscrowd"]:
                    continue
                x, y, w, h = entry["bbox"]
                values = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
                if polygons:
                    sides = (width, height) * 4
                    points = rectangle(x, y, w, h)
                    values = [one / side for one, side in zip(points, sides, strict=True)]
                lines.append(" ".join(map(str, [classes.index(entry["name"]), *values])))
            if lines:
                (folder / "labels" / part / f"{Path(file).stem}.txt").write_text("\n".join(lines))
    (folder / "data.yaml").write_text(
        "train: images/train\nval: images/val\nnc: 2\nnames: [bar, square]\n"
    )
    return folder


def write_roboflow(coco: Path, folder: Path) -> Path:
    for part, long in {"train": "train2017", "valid": "val2017"}.items():
        (folder / part).mkdir(parents=True)
        for path in (coco / long).iterdir():
            (folder / part / path.name).write_bytes(path.read_bytes())
        text = (coco / "annotations" / f"instances_{long}.json").read_text()
        (folder / part / "_annotations.coco.json").write_text(text)
    return folder


WRITERS = {"voc": write_voc, "yolo": write_yolo, "roboflow": write_roboflow}


def boxes(part: AnnotatedImages, *, crowds: bool = False) -> list[list[tuple]]:
    names = {category.id: category.name for category in part.categories}
    return [
        [
            (names[one.category_id], *(round(value, 6) for value in one.box))
            for one in image.annotations
            if crowds or not one.crowd
        ]
        for image in part.images
    ]


def same(data: DetectionData, other: DetectionData) -> None:
    assert boxes(data.training) == boxes(other.training)
    assert boxes(data.validation) == boxes(other.validation)
    assert [one.name for one in data.categories] == [one.name for one in other.categories]
    assert data.training.problems == data.validation.problems == ()


@pytest.mark.parametrize("kind", WRITERS)
def test_formats_have_the_same_objects(
    kind: str, coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_detection_data(f"coco:{coco}")
    folder = WRITERS[kind](coco, tmp_path / "other")
    name = f"{'coco' if kind == 'roboflow' else kind}:{folder}"
    data = load_detection_data(name)
    same(data, expected)
    same(load_detection_data(str(folder)), expected)
    assert not data.masks
    monkeypatch.chdir(tmp_path)
    same(load_detection_data(name.replace(str(folder), "other")), expected)
    monkeypatch.chdir(folder)
    same(load_detection_data("."), expected)


@pytest.mark.parametrize("kind", ["voc", "yolo", "roboflow"])
def test_from_the_command_line_to_pictures(
    kind: str, coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = WRITERS[kind](coco, tmp_path / "other")
    run = tmp_path / "run"
    config = make_trial(folder, epochs=1, data=str(folder))
    cli.main(["detect", "train", *make_words(config, run)])
    assert "no annotation has a mask: boxes alone" in capsys.readouterr().err
    results = json.loads((run / "results.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    assert summary["box"]["all"] == pytest.approx(box_ap(run / "truth.json", results), abs=1e-6)
    assert len([*(run / "pictures").iterdir()]) == 4
    cli.main(["detect", "evaluate", str(run)])
    assert (run / "evaluation" / "truth.json").read_text() == (run / "truth.json").read_text()


def test_polygons_are_masks(coco: Path, tmp_path: Path) -> None:
    data = load_detection_data(f"yolo:{write_yolo(coco, tmp_path / 'yolo', polygons=True)}")
    assert data.masks
    same(data, load_detection_data(f"coco:{coco}"))


def test_vocs_own_pixels_start_from_1(coco: Path, tmp_path: Path) -> None:
    data = load_detection_data(f"voc:{write_voc(coco, tmp_path / 'voc', number=1)}")
    same(data, load_detection_data(f"coco:{coco}"))
    assert boxes(data.training, crowds=True)[2][2] == ("square", 40, 2, 20, 20)
    assert "objects marked difficult, neither learned nor scored: 1, the first is train 12.xml, object 3" in data.training.notes[0]  # fmt: skip


def test_roboflows_yaml_and_folders(coco: Path, tmp_path: Path) -> None:
    folder = write_yolo(coco, tmp_path / "deep" / "yolo")
    for part, name in (("train", "train"), ("val", "valid")):
        for kind in ("images", "labels"):
            (folder / name).mkdir(exist_ok=True)
            (folder / kind / part).rename(folder / name / kind)
    names = "names: {0: bar, 1: square}\n"
    (folder / "data.yaml").write_text(f"train: ../train/images\nval: ../valid/images\n{names}")
    same(load_detection_data(f"yolo:{folder}"), load_detection_data(f"coco:{coco}"))
    (folder / "data.yaml").write_text(names)
    same(load_detection_data(f"yolo:{folder / 'data.yaml'}"), load_detection_data(f"coco:{coco}"))


def test_without_a_held_out_part_a_share_is_held_out(coco: Path, tmp_path: Path) -> None:
    voc = write_voc(coco, tmp_path / "voc")
    for path in (voc / "ImageSets" / "Main").iterdir():
        path.unlink()
    yolo = write_yolo(coco, tmp_path / "yolo")
    (yolo / "data.yaml").write_text("train: [images/train, images/val]\nnames: [bar, square]\n")
    (coco / "annotations" / "instances_train2017.json").unlink()
    lone = coco / "annotations" / "instances_default.json"
    (coco / "annotations" / "instances_val2017.json").rename(lone)
    (coco / "val2017").rename(coco / "images")
    for name, count in (
        (f"voc:{voc}", 8),
        (f"yolo:{yolo}", 8),
        (f"coco:{coco}", 4),
        (str(lone), 4),
    ):
        data = load_detection_data(name, validation_share=0.25)
        held_out = round(count / 4)
        assert len(data.validation.images) == held_out
        assert len(data.training.images) == count - held_out
        note = f"{held_out} of {count} images are held out, as there is no such part"
        assert any(note in line for line in data.describe())
        paths = [{image.path for image in part.images} for part in (data.training, data.validation)]
        assert not paths[0] & paths[1]
        assert load_detection_data(name, validation_share=0.25) == data
    with pytest.raises(ValueError, match="validation_share must be between 0 and 1, got 1"):
        load_detection_data(str(lone), validation_share=1)


def test_data_is_the_same_however_it_is_spelled(tmp_path: Path) -> None:
    for name in (f"coco:{tmp_path}", f"{tmp_path}/", f"{tmp_path}/../{tmp_path.name}"):
        assert is_same_data(name, str(tmp_path))
    assert not is_same_data(f"coco:{tmp_path / 'a'}", f"coco:{tmp_path}")


def test_whole_sets_are_scored(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small_detector(mask_channels=0)
    model.class_names = ("bar", "square")
    save_detector(model, tmp_path / "model.safetensors")
    lone = coco / "annotations" / "instances_train2017.json"
    words = ["detect", "evaluate", str(tmp_path / "model.safetensors")]
    for data, split, count in (
        (lone, [], 4),
        (lone, ["--split", "val"], 1),
        (lone, ["--split", "train"], 3),
        (coco, [], 4),
    ):
        output = tmp_path / f"report of {count} {data.name}"
        cli.main([*words, "--data", str(data), *split, "--output", str(output)])
        assert f"\n{count} images, at most" in capsys.readouterr().out
        truth = json.loads((output / "truth.json").read_text())
        assert len(truth["images"]) == count
    with pytest.raises(SystemExit):
        cli.main([*words, "--data", str(coco), "--split", "all"])
    assert "both parts of" in capsys.readouterr().err


LINES = {
    "7 0.5 0.5 0.1 0.1": "class 7 is unknown: classes are 0, 1",
    "0.5 0.5 0.5 0.1 0.1": "class 0.5 is unknown",
    "0 0.5 0.5 0.1": "a class and 4 numbers of a box, or 6 and more of a polygon, got 3",
    "0 0.5 0.5 0.1 0.1 0.9": "got 5 after the class",
    "bar 0.5 0.5 0.1 0.1": "it must be numbers, got 'bar 0.5 0.5 0.1 0.1'",
    "0 30 20 10 10": "its numbers must be shares of the image, from 0 to 1",
    "0 nan 0.5 0.1 0.1": "its numbers must be shares of the image",
    "0 0.5 0.5 0 0.1": "its box has no area",
}


@pytest.mark.parametrize("line", LINES)
def test_a_bad_line_is_named(line: str, coco: Path, tmp_path: Path) -> None:
    folder = write_yolo(coco, tmp_path / "yolo")
    path = folder / "labels" / "train" / "10.txt"
    path.write_text(path.read_text() + f"\n\n{line}\n")
    (problem,) = load_detection_data(f"yolo:{folder}").training.problems
    assert str(problem).startswith("train/10.txt, line 4: ")
    assert LINES[line] in str(problem)


YAMLS = {
    "names: [": "is not YAML",
    "[]": "must have names, and paths of the parts",
    "train: images/train": "must have names of the classes, as a list or by number, got None",
    "names: {a: bar}": "must have names of the classes",
    "names: [bar]\nnc: 3": "has 1 names, and an nc of 3",
    "names: [bar]\nkpt_shape: [17, 3]": "has kpt_shape",
    "names: [bar]\ntrain: none": "no train part at",
    "names: !!python/object/apply:os.getcwd []": "must have names of the classes",
}


@pytest.mark.parametrize("text", YAMLS)
def test_a_bad_yaml_is_named(text: str, coco: Path, tmp_path: Path) -> None:
    folder = write_yolo(coco, tmp_path / "yolo")
    (folder / "data.yaml").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=YAMLS[text]) as caught:
        load_detection_data(f"yolo:{folder}")
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_without_labels_are_counted(coco: Path, tmp_path: Path) -> None:
    data = load_detection_data(f"yolo:{write_yolo(coco, tmp_path / 'yolo')}")
    (note,) = data.training.notes
    assert note.endswith("taken as without objects: 1, the first is train/13.png")
    assert len(data.training.images) == 4


XMLS = {
    "<annotation>": "it is not XML",
    '<!DOCTYPE a [<!ENTITY b "c">]><annotation/>': "document type declaration, which is refused",
    XML.format(
        folder="", name="", width=60, height=44, objects="<object><name>bar</name></object>"
    ): "it must have a name and a bndbox of numbers, got 'bar'",
    XML.format(
        folder="",
        name="",
        width=60,
        height=44,
        objects=OBJECT.format(9, 9, 5, 20, name="bar", difficult=0),
    ): "its box has no area",
}


@pytest.mark.parametrize("text", XMLS)
def test_a_bad_xml_is_named(text: str, coco: Path, tmp_path: Path) -> None:
    folder = write_voc(coco, tmp_path / "voc")
    (folder / "Annotations" / "train 10.xml").write_text(text)
    (problem,) = load_detection_data(f"voc:{folder}").training.problems
    assert str(problem).startswith("train 10.xml")
    assert XMLS[text] in str(problem)


def test_sizes_may_be_missing_and_files_too(coco: Path, tmp_path: Path) -> None:
    folder = write_voc(coco, tmp_path / "voc")
    path = folder / "Annotations" / "train 10.xml"
    path.write_text(path.read_text().replace("<width>60</width>", "<width>0</width>"))
    same(load_detection_data(f"voc:{folder}"), load_detection_data(f"coco:{coco}"))
    (folder / "JPEGImages" / "train 10.png").unlink()
    (folder / "Annotations" / "train 11.xml").unlink()
    problems = load_detection_data(f"voc:{folder}").training.problems
    assert [str(one).partition(":")[0] for one in problems] == ["train 11.xml", "train 10.xml"]
    assert "no annotations at" in problems[0].reason
    assert "no image at" in problems[1].reason


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("coco:", "data must be coco:PATH, voc:PATH or yolo:PATH, .* got 'coco:'"),
        ("", "data must be coco:PATH"),
        ("folder:x", "data must be coco:PATH"),
        ("voc:{}", "has no XML files in Annotations, train or itself"),
        ("yolo:{}", "has no data.yaml and no classes.txt"),
        ("{}", "has no annotation file for train"),
        ("yolo:{}/none", "no folder at"),
    ],
)
def test_what_is_not_there_is_named(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_detection_data(name.format(tmp_path))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_test_part_beside_another_is_said(kind: str, coco: Path, tmp_path: Path) -> None:
    folder = WRITERS[kind](coco, tmp_path / "other")
    if kind == "voc":
        lists = folder / "ImageSets" / "Main"
        (lists / "test.txt").write_text((lists / "val.txt").read_text())
    elif kind == "yolo":
        yaml = folder / "data.yaml"
        yaml.write_text(yaml.read_text() + "test: images/none\n")
        assert not any(
            "the part test" in line for line in load_detection_data(str(yaml)).describe()
        )
        yaml.write_text(yaml.read_text().replace("none", "train"))
    else:
        shutil.copytree(folder / "valid", folder / "test")
    data = load_detection_data(str(folder))
    (said,) = (line for line in data.describe() if "the part test" in line)
    assert said.startswith(f"left out: the part test ({folder}")


def test_held_out_images_that_are_learned_are_said(coco: Path, tmp_path: Path) -> None:
    folder = write_yolo(coco, tmp_path / "yolo")
    assert not any("too" in line for line in load_detection_data(str(folder)).describe())
    text = (folder / "data.yaml").read_text()
    (folder / "data.yaml").write_text(text.replace("images/val", "images/train"))
    said = " ".join(load_detection_data(str(folder)).describe())
    assert "4 of 4 held-out images are training images too" in said


def test_vocs_other_folders_and_images_without_xml(coco: Path, tmp_path: Path) -> None:
    folder = write_voc(coco, tmp_path / "voc")
    shutil.rmtree(folder / "ImageSets")
    (folder / "Annotations").rename(folder / "annotations")
    (folder / "JPEGImages").rename(folder / "images")
    whole = load_detection_data(str(folder)).describe()
    assert not any("without an XML file" in line for line in whole)
    (folder / "annotations" / "train 10.xml").unlink()
    said = " ".join(load_detection_data(str(folder)).describe())
    assert f"images without an XML file: 1, the first is {folder}/images/train 10.png" in said
    shutil.rmtree(folder / "images")
    with pytest.raises(FileNotFoundError, match="has no folder of images, JPEGImages or images"):
        load_detection_data(str(folder))


def test_lists_of_another_encoding(coco: Path, tmp_path: Path) -> None:
    folder = write_voc(coco, tmp_path / "voc")
    path = folder / "ImageSets" / "Main" / "train.txt"
    path.write_text("\ufeff" + path.read_text(), encoding="utf-8")
    same(load_detection_data(f"voc:{folder}"), load_detection_data(f"coco:{coco}"))
    path.write_bytes(b"train \xe9")
    with pytest.raises(ValueError, match=r"train\.txt is not text in UTF-8"):
        load_detection_data(f"voc:{folder}")


def test_yolos_files_of_windows(coco: Path, tmp_path: Path) -> None:
    folder = write_yolo(coco, tmp_path / "yolo")
    paths = sorted((folder / "images" / "train").iterdir())
    lines = [f".\\images\\train\\{path.name}\n" for path in paths]
    mark = "\ufeff"
    (folder / "train.txt").write_text(mark + "".join(lines), encoding="utf-8")
    text = (folder / "data.yaml").read_text().replace("train: images/train", "train: train.txt")
    (folder / "data.yaml").write_text(mark + text, encoding="utf-8")
    labels = folder / "labels" / "train" / "10.txt"
    labels.write_text(mark + labels.read_text(), encoding="utf-8")
    same(load_detection_data(f"yolo:{folder}"), load_detection_data(f"coco:{coco}"))
    (folder / "data.yaml").unlink()
    (folder / "classes.txt").write_text(mark + "bar\nsquare\n", encoding="utf-8")
    same(load_detection_data(f"yolo:{folder}"), load_detection_data(f"coco:{coco}"))


def test_yolos_names_stay_as_written(coco: Path, tmp_path: Path) -> None:
    folder = write_yolo(coco, tmp_path / "yolo")
    text = (folder / "data.yaml").read_text()
    (folder / "data.yaml").write_text(text.replace("[bar, square]", "[no, 1.0]") + "test: ~\n")
    data = load_detection_data(f"yolo:{folder}")
    assert [one.name for one in data.categories] == ["no", "1.0"]


def test_labels_and_images_that_lack_each_other(coco: Path, tmp_path: Path) -> None:
    folder = write_yolo(coco, tmp_path / "yolo")
    (folder / "images" / "train" / "10.png").unlink()
    said = " ".join(load_detection_data(f"yolo:{folder}").describe())
    assert "files of labels without an image: 1, the first is train/10.txt" in said
    shutil.rmtree(folder / "labels" / "train")
    with pytest.raises(FileNotFoundError, match=r"no image has a file of labels; looked for .*11"):
        load_detection_data(f"yolo:{folder}")
