"""halonet compare: what it prints and draws."""

import json

from halonet import cli


def test_compare(fails, capsys, whole_run, tmp_path):
    begun = tmp_path / "begun"
    begun.mkdir()
    config = json.loads((whole_run.folder / "config.json").read_text())
    (begun / "config.json").write_text(json.dumps(config | {"seed": 3}))
    runs = [str(whole_run.folder), str(begun)]
    cli.main(["compare", *runs, "--output", str(tmp_path / "curves.png")])
    lines = capsys.readouterr().out.splitlines()
    assert "best accuracy" in lines[0]
    assert "2/2" in lines[1].split()
    assert lines[2].endswith("seed 3")
    assert lines[3:] == [f"{begun} has no finished epoch yet", f"open {tmp_path / 'curves.png'}"]
    cli.main(["compare", *runs, "--format", "json"])
    found = json.loads(capsys.readouterr().out)
    assert [outcome["finished"] for outcome in found] == [True, False]
    assert found[1]["differences"] == {"seed": 3}
    assert "got 'box_ap'" in fails(["compare", *runs, "--score", "box_ap"])
