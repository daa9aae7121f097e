"""halonet demo: its words."""

import sys


def test_bad_ports_are_refused(fails):
    assert "--port must be from 1 to 65535, got 0" in fails(["demo", "run", "--port", "0"], 2)
    assert "no checkpoint at none" in fails(["demo", "none"])


def test_what_is_missing_is_named(fails, monkeypatch, whole_run):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install 'halonet[demo]'" in fails(["demo", whole_run.folder])


def test_a_space_needs_a_new_folder(fails, whole_run, tmp_path):
    (tmp_path / "notes").write_text("mine")
    words = ["demo", whole_run.folder, "--space", tmp_path]
    assert "exists already and isn't an empty folder" in fails(words)
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]
