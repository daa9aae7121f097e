"""Commands on folders: what they say is left out, what they never read, and never write over."""

import csv
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from halonet import cli
from tests.pictures import draw_folder, make_words, small_config


def test_left_out_is_said_before_training(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = draw_folder(tmp_path / "photos")
    (folder / "red" / "notes.txt").write_text("notes")
    words = make_words(small_config(folder, epochs=1), folder / "runs" / "first")
    cli.main(["train", *words])
    shown = capsys.readouterr()
    said = f"folder:{folder}: 18 training images, 6 held out, 2 classes"
    assert shown.out.splitlines()[:2] == [said, "left out: 1 .txt"]
    assert shown.err == ""
    # Its pictures aren't a class.
    words[1] = str(folder / "runs" / "second")
    cli.main(["train", *words])
    runs = "1 halonet output folder (runs/first)"
    assert capsys.readouterr().out.splitlines()[:2] == [said, f"left out: 1 .txt, {runs}"]
    cli.main(["evaluate", str(folder / "runs" / "first")])
    runs = "2 halonet output folders (runs/first)"
    said = f"scoring the 6 held-out images of folder:{folder}"
    assert capsys.readouterr().out.splitlines()[:2] == [said, f"left out: {runs}, 1 .txt"]
    cli.main(["shards", f"folder:{folder}", str(tmp_path / "shards")])
    assert f"left out: {runs}" in capsys.readouterr().out


def test_predict_names_what_it_leaves_out(capsys, fails, whole_run, tmp_path):
    folder = draw_folder(tmp_path / "photos", classes=1, images=2)
    (folder / "gone.png").symlink_to(folder / "absent.png")
    shutil.copytree(whole_run.folder, folder / "run")
    shutil.copy(folder / "red" / "0.png", folder / "kept.jpg.png")
    cli.main(["predict", str(whole_run.folder), str(folder)])
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 4
    assert "1 dangling link (gone.png), 1 halonet output folder (run)" in shown.err
    (folder / "predictions.json").write_text("{}")  # as detect predict writes beside its pictures
    cli.main(["predict", str(whole_run.folder), str(folder)])
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 3
    assert "1 predicted image (kept.jpg.png)" in shown.err
    (folder / "empty").mkdir()
    (folder / "empty" / "a.txt").write_text("a")
    line = fails(["predict", whole_run.folder, folder / "empty"])
    assert line.endswith("empty holds no images; left out: 1 .txt")


def test_file_is_never_written_over(fails, whole_run, tmp_path):
    run, folder = whole_run.folder, draw_folder(tmp_path / "photos", classes=1, images=2)
    image = folder / "red" / "0.png"
    alias, numbers = tmp_path / "alias.png", tmp_path / "numbers.npz"
    alias.symlink_to(image)
    numbers.write_text("kept")
    commands = [
        (["predict", run, folder], [image, alias, numbers, run / "config.json", folder]),
        (["embed", run, folder], [numbers]),
        (["similar", run, image, folder], [image, alias]),
        (["compare", run, run], [image, alias]),
    ]
    before = {path: path.read_bytes() for path in (image, numbers, run / "config.json")}
    for words, outputs in commands:
        for output in outputs:
            said = fails([*words, "--output", output])
            assert said == f"halonet: {output} exists already; choose another --output"
    assert all(path.read_bytes() == content for path, content in before.items())


def test_report_on_other_images_is_kept(fails, capsys, images, whole_run, tmp_path):
    run = shutil.copytree(whole_run.folder, tmp_path / "run")
    words = ["evaluate", str(run), "--data", f"folder:{images}"]
    for more in ([], ["--split", "all"], ["--split", "train"], ["--split", "all"], []):
        cli.main([*words, *more])
    shown = capsys.readouterr().out
    places = re.findall(r"open (.*)/report.html", shown)
    assert [Path(place).name for place in places] == [
        *("evaluation", "evaluation-2", "evaluation-3", "evaluation-2", "evaluation")
    ]
    said = fails([*words, "--split", "train", "--output", run / "evaluation"])
    assert "has a report on held-out images of folder:" in said


def test_evaluation_leaves_other_results_alone(fails, capsys, whole_run, tmp_path):
    run = shutil.copytree(whole_run.folder, tmp_path / "run")
    report = (run / "report.html").read_bytes()
    assert "report of its training; choose another --output" in fails(
        ["evaluate", run, "--output", run]
    )
    assert (run / "report.html").read_bytes() == report
    detections = tmp_path / "detections"
    detections.mkdir()
    for name in ("summary.json", "results.json"):
        (detections / name).write_text("{}")
        (tmp_path / name).write_text("{}")
    for output in (detections, tmp_path, run / "config.json"):
        assert "choose another --output" in fails(["evaluate", run, "--output", output])
    for _ in range(2):  # its own is replaced
        cli.main(["evaluate", str(run), "--output", str(tmp_path / "evaluation")])
    assert "accuracy" in capsys.readouterr().out


def test_names_that_are_not_unicode(capsys, caplog, fails, tmp_path):
    folder = draw_folder(tmp_path / "photos")
    latin = os.fsdecode("entr\u00e9es".encode("latin-1"))
    try:
        (folder / "red").rename(folder / latin)
    except OSError:
        pytest.skip("this file system takes no names but Unicode")
    (folder / latin / "0.png").rename(folder / latin / os.fsdecode(b"\xe9t\xe9.png"))
    run = tmp_path / "run"
    folder = folder.rename(tmp_path / os.fsdecode(b"d\xe9p\xf4t"))
    config = small_config(folder, epochs=1, validation_share=0.75, batch_size=8)
    cli.main(["train", *make_words(config, run)])
    cli.main(["evaluate", str(run)])
    shown = capsys.readouterr()
    assert r"entr\xe9es" in shown.out
    assert shown.out.encode()
    assert "batch_size 8: a step takes all 6 training images" in shown.out
    assert not caplog.records  # timm's, of a schedule of one step
    for report in (run, run / "evaluation"):
        assert r"entr\xe9es" in json.loads((report / "summary.json").read_text())["classes"]
        assert r"entr\xe9es" in (report / "report.html").read_text(encoding="utf-8")
    table = run / "predictions.csv"
    if table.is_file():
        with open(table, newline="", encoding="utf-8") as file:
            assert len([*csv.reader(file)]) > 18
    output = tmp_path / "answers"
    for form in ("json", "table"):
        words = ["predict", str(run), str(folder / latin), "--format", form]
        cli.main(words)
        assert capsys.readouterr().out.encode()
        output.unlink(missing_ok=True)
        cli.main([*words, "--output", str(output)])
        assert "green" in output.read_text(encoding="utf-8")
    entries = json.loads(_predict_json(run, folder / latin, output))
    assert all(Path(entry["image"]).is_file() for entry in entries)
    assert {one["class"] for one in entries[0]["predictions"]} == {"green", r"entr\xe9es"}
    cli.main(["train", "--resume", str(run)])
    (folder / latin / os.fsdecode(b"\xe8.png")).write_bytes(b"")
    fails(["predict", run, folder / latin / os.fsdecode(b"\xe8.png")], 1)


def _predict_json(run, folder, output):
    output.unlink(missing_ok=True)
    cli.main(["predict", str(run), str(folder), "--format", "json", "--output", str(output)])
    return output.read_text(encoding="utf-8")
