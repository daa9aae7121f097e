"""Labels in CSV files: what is read, what is left out, and what is refused."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from halonet.data.shard_writer import write_shards
from halonet.data.sources import load_data


@pytest.fixture
def write(tmp_path):
    """Writes a CSV file beside images 0.png to 11.png, and returns its name for `load_data`."""
    (tmp_path / "images").mkdir()
    for index in range(12):
        Image.new("RGB", (8, 8), (20 * index, 0, 0)).save(tmp_path / "images" / f"{index}.png")

    def run(text, *, encoding="utf-8"):
        (tmp_path / "labels.csv").write_text(text, encoding=encoding)
        return f"csv:{tmp_path / 'labels.csv'}"

    return run


def rows(*cells):
    """Rows for the first images, each with its further cells."""
    return "".join(f"images/{index}.png,{cell}\n" for index, cell in enumerate(cells))


def numbers(split):
    return [int(path.stem) for path in split.sources]


def test_column_label(write):
    data = load_data(write("path,label\n" + rows(*"abababab")), validation_share=0.25)
    assert data.class_names == ("a", "b")
    assert sorted(numbers(data.training) + numbers(data.validation)) == [*range(8)]
    assert Counter(data.validation.labels) == {0: 1, 1: 1}
    for part in (data.training, data.validation):
        assert [number % 2 for number in numbers(part)] == part.labels
    assert data.describe().splitlines()[0].endswith("6 training images, 2 held out, 2 classes")


def test_numbers_are_in_their_order(write):
    assert load_data(write("path,label\n" + rows("10", "9", "9", "10", "2", "2"))).class_names == (
        *("2", "9", "10"),
    )


def test_a_column_for_each_class(write):
    text = "path,dog,cat\n" + rows("1,0", "0,1", "1.0,0.0", "False,True")
    data = load_data(write(text), validation_share=0.5)
    assert data.class_names == ("dog", "cat")
    found = {
        number: label
        for part in (data.training, data.validation)
        for number, label in zip(numbers(part), part.labels, strict=True)
    }
    assert found == {0: 0, 1: 1, 2: 0, 3: 1}
    with pytest.raises(ValueError, match=r"row 3: it must have one class, has dog, cat; task mult"):
        load_data(write("path,dog,cat\n" + rows("1,0", "1,1")))
    with pytest.raises(ValueError, match=r"row 2: it must have one class, has none"):
        load_data(write("path,dog,cat\n" + rows("0,0")))
    with pytest.raises(ValueError, match=r"row 2: column 'age' must hold 0 or 1.*got '34'"):
        load_data(write("path,dog,cat,age\n" + rows("1,0,34")))


@pytest.mark.parametrize(
    "text",
    ["path,label\n" + rows("a; b", "", "c|a"), "path,a,b,c\n" + rows("1,1,0", "0,0,0", "1,0,1")],
)
def test_several_labels(write, text):
    data = load_data(write(text), task="multilabel", validation_share=1)
    assert data.class_names == ("a", "b", "c")
    assert data.validation.labels.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 1]]
    assert data.validation.count_classes(3).tolist() == [2, 1, 1]


def test_several_labels_are_spread_by_the_rarest(write):
    text = "path,label\n" + rows(*["common", "common;rare"] * 4, *["common"] * 4)
    data = load_data(write(text), task="multilabel", validation_share=0.25)
    assert data.validation.labels.sum(0).tolist() == [3, 1]
    assert data.training.labels.sum(0).tolist() == [9, 3]


def test_parts_by_name(write):
    text = "path,label,Split\n" + rows(
        "a,Train", "b,training", "a,valid", "b,VAL", "a,Test", "b,test"
    )
    data = load_data(write(text))
    assert [numbers(part) for part in (data.training, data.validation, data.test)] == [
        *([0, 1], [2, 3], [4, 5]),
    ]
    assert (
        "kept for the end: 2 images of the part test, for evaluate --split test"
        in data.describe().splitlines()
    )
    with pytest.raises(ValueError, match="fold is for data without a held-out part; csv:"):
        load_data(write(text), fold="1/2")
    without = "path,label,split\n" + rows("a,train", "b,train", "a,test", "b,test")
    data = load_data(write(without))
    assert (numbers(data.validation), data.test) == ([2, 3], None)


def test_only_a_part_to_score(write):
    name = write("path,label,split\n" + rows("a,test", "b,test"))
    assert numbers(load_data(name, validation_share=1).validation) == [0, 1]
    one_class = write("path,label\n" + rows("a", "a"))
    assert load_data(one_class, validation_share=1).class_names == ("a",)
    with pytest.raises(ValueError, match="must have two or more classes to train on, has a"):
        load_data(one_class, fold="1/2")
    name = write("path,label,split\n" + rows("a,test", "b,test"))
    with pytest.raises(ValueError, match="no row has the split train"):
        load_data(name)


def test_what_is_left_out_is_said(write):
    data = load_data(
        write("path,label,age,place,split\n" + rows("a,3,x,train", "b,4,y,train", "a,3,y,val"))
    )
    assert data.describe().splitlines()[1:] == [
        "no held-out images of b",
        "left out: 2 columns (age, place)",
    ]


def test_the_index_of_a_table_is_no_class(write):
    numbered = ["0,images/0.png,a,1,0", "1,images/1.png,b,0,1", "2,images/2.png,a,1,0"]
    numbered.append("7,images/3.png,b,0,1")
    for names, cells in (("path,label", slice(3)), ("path,a,b", slice(5))):
        lines = [",".join(line.split(",")[cells]) for line in numbered]
        if names != "path,label":
            lines = [line.replace(",a", "").replace(",b", "") for line in lines]
        data = load_data(write("\n".join(["," + names, *lines])))
        assert data.class_names == ("a", "b")
        assert data.left_out == ("1 column without a name",)


def test_other_spreadsheets(write):
    text = "\ufeffPath; Label \nimages\\0.png;a\nimages/1.png;b\n\nimages/2.png;a\nimages/3.png;b\n"
    data = load_data(write(text), validation_share=0.5)
    assert sorted(numbers(data.training) + numbers(data.validation)) == [0, 1, 2, 3]


def test_groups_are_never_parted(write):
    name = write(
        "path,label,patient\n"
        + rows(*(f"{'ab'[index // 2 % 2]},p{index // 2}" for index in range(12)))
    )
    for options in (
        {},
        {"fold": "1/3"},
        {"fold": "2/3"},
        {"fold": "3/3"},
        {"validation_share": 0.7},
    ):
        data = load_data(name, group="patient", **options)
        patients = [
            {number // 2 for number in numbers(part)} for part in (data.training, data.validation)
        ]
        assert not patients[0] & patients[1]
        assert patients[0] | patients[1] == {*range(6)}
        assert data.left_out == ()
        expected = 2 if "validation_share" not in options else 4
        assert len(patients[1]) == pytest.approx(expected, abs=1)
    with pytest.raises(ValueError, match="a column other than path, label and split, got 'label'"):
        load_data(name, group="label")
    with pytest.raises(
        ValueError, match="no column 'person' for groups, it has path, label, patient"
    ):
        load_data(name, group="person")
    two = "path,label,patient\n" + rows("a,x", "b,x", "a,y", "b,y", "a,y", "b,x")
    with pytest.raises(ValueError, match="3 parts need as many groups, there are 2"):
        load_data(write(two), group="patient", fold="1/3")
    with pytest.raises(ValueError, match="2 parts need as many groups, there are 1"):
        load_data(write(two.replace("y", "x")), group="patient")
    leaking = "path,label,split,patient\n" + rows("a,train,x", "b,train,y", "a,val,x", "b,val,z")
    with pytest.raises(ValueError, match="group 'x' is in train and in val"):
        load_data(write(leaking), group="patient")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not a CSV file with a header|has no rows"),
        ("path,label\n", "has no rows"),
        ("image,label\n1,2\n", "must have a column path, it has image, label"),
        ("path\nimages/0.png\n", "must have a column label, or one for each class"),
        ("path,label\n" + rows("a", "b", ""), "row 4: it has no label"),
        ("path,label\n" + rows("a", "a"), "must have two or more classes to train on, has a"),
        ("path,label\n" + rows("a", "b,c"), "row 3 has 3 cells, the header has 2"),
        ("path,label,label\n" + rows("a,b"), "two columns 'label'"),
        ("path,label,split\n" + rows("a,train", "b,later"), "row 3: split must be .* got 'later'"),
        ("path,label\n" + rows("a") + rows("a"), "rows 2 and 3 name the same image"),
        ("path,label\nimages/0.png,a\nimages/../images/0.png,b", "rows 2 and 3 name the same"),
        ('path,label\n"images/0.png,a\n', "is not a CSV file with a header: unexpected end"),
    ],
)
def test_refused(write, text, said):
    with pytest.raises(ValueError, match=said):
        load_data(write(text))


def test_missing_images_are_counted(write):
    name = write("path,label\n" + rows("a", "b") + "images/x.png,a\nimages/y.png,b\n")
    with pytest.raises(
        FileNotFoundError, match=r"row 4: no image at .*images/x\.png \(and 1 more row\)"
    ):
        load_data(name)


def test_text_of_another_encoding(write):
    with pytest.raises(ValueError, match="not text in UTF-8"):
        load_data(write("path,label\n" + rows("Löwe"), encoding="latin-1"))


def test_labels_of_whole_rows_are_for_data_that_has_them(images):
    with pytest.raises(
        ValueError, match="task multilabel takes data csv:FILE or hf:NAME, got 'folder:"
    ):
        load_data(f"folder:{images}", task="multilabel")
    with pytest.raises(ValueError, match="group is a column of data csv:FILE, got 'folder:"):
        load_data(f"folder:{images}", group="patient")


def test_shards_are_of_one_label(write, tmp_path):
    name = write("path,label\n" + rows("a", "b", "a", "b"))
    for options, said in (
        ({"task": "multilabel"}, "shards hold one label for each image, csv:"),
        ({"validation_share": 1}, "validation_share must leave images to train on"),
    ):
        with pytest.raises(ValueError, match=said):
            write_shards(load_data(name, **options), tmp_path / "shards")
    write_shards(load_data(name, validation_share=0.5), tmp_path / "shards")
    assert load_data(f"shards:{tmp_path / 'shards'}").class_names == ("a", "b")


def test_folds_of_several_labels(write, tmp_path):
    for index in range(12, 40):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{index}.png")
    name = write("path,label\n" + rows(*["a", "b", "a;b", ""] * 10))
    held_out = [
        load_data(name, task="multilabel", fold=f"{fold}/5").validation for fold in range(1, 6)
    ]
    assert sorted(number for part in held_out for number in numbers(part)) == [*range(40)]
    for part in held_out:
        assert part.labels.dtype == np.int8
        assert part.labels.sum(0).tolist() == [4, 4]


def test_no_label_at_all(write):
    with pytest.raises(ValueError, match=r"labels\.csv has no label in any row"):
        load_data(write("path,label\n" + rows("", "")), task="multilabel")
