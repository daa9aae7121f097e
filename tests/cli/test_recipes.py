"""halonet recipes: the list, and one recipe in full."""

import json

from halonet import cli


def test_recipes(capsys):
    cli.main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].split() == ["halonet", "train", "--recipe", "expected"]
    place = lines.index("halonet detect train --recipe  expected")
    assert ["imagenet_h7", "84.9", "%"] in [line.split() for line in lines[:place]]
    assert "  H7 on ImageNet (table 3)" in lines[:place]
    assert "small_detector" in {line.split()[0] for line in lines[place:] if line}
    cli.main(["recipes", "--format", "json"])
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert listed["sasa_mask"]["data"] == "folder:imagenet"
    assert listed["coco"]["expected"] == "box AP 45.2, mask AP 40.3"


def test_one_recipe(capsys):
    cli.main(["recipes", "finetune_h4_base128_384"])
    lines = capsys.readouterr().out.splitlines()
    command = "halonet train --recipe finetune_h4_base128_384 --data folder:imagenet"
    assert ["command", *command.split()] in [line.split() for line in lines]
    assert ["model_options.block_size", "12"] in [line.split() for line in lines]
    assert not any("seed" in line for line in lines)
    cli.main(["recipes", "imagenet_h7", "--format=json"])
    described = json.loads(capsys.readouterr().out)
    assert described["fields"]["augmentation.randaugment"] == 31
    assert "dropout 0.5" in described["ours"]
    cli.main(["recipes", "small_detector"])
    shown = capsys.readouterr().out
    assert ["detector.image_size", "256"] in [line.split() for line in shown.splitlines()]
    assert "-m halonet detect train" in shown


def test_recipes_of_the_tasks_have_different_names():
    from halonet.classification.recipes import RECIPES
    from halonet.detection.recipes import RECIPES as DETECTION_RECIPES

    assert not RECIPES.keys() & DETECTION_RECIPES.keys()
