"""halonet.train and halonet.evaluate: the command line's, in Python."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import halonet
from halonet import cli
from tests.pictures import SMALL_MODEL


def test_training_is_the_command_lines(images, tmp_path, capsys):
    fields = {"data": f"folder:{images}", "epochs": 1, "image_size": 32, "log_with": "none"}
    result = halonet.train(
        **fields, model_options=SMALL_MODEL, augmentation={"crop_share": [0.5, 1]},
        output=tmp_path / "python",
    )  # fmt: skip
    words = [f"--{name}={value}" for name, value in fields.items()]
    words += [f"--model_options={json.dumps(SMALL_MODEL)}", "--augmentation.crop_share=[0.5,1]"]
    cli.main(["train", *words, "--output", str(tmp_path / "shell")])
    configs = [(tmp_path / name / "config.json").read_text() for name in ("python", "shell")]
    assert configs[0] == configs[1]
    weights = [halonet.load_model(tmp_path / name).state_dict() for name in ("python", "shell")]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    assert result.folder == tmp_path / "python"
    assert 0 <= result.evaluation.accuracy <= 1
    assert halonet.train(resume=result.folder).evaluation.accuracy == result.evaluation.accuracy


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"epoch": 3}, "epoch"),
        ({"epochs": "many"}, "epochs.*many"),
        ({"data": None}, "data must be text, got None"),
        ({"data": Path("absent")}, "data must be elpv"),
        ({"epochs": 0}, "epochs must be positive, got 0"),
        ({"task": "words"}, "task.*words"),
        ({"augmentation": {"crop": 1}}, "crop"),
        ({"recipe": "none"}, "recipe must be one of .* got 'none'"),
        ({"resume": "a", "epochs": 3}, "resume takes its configuration from the run.* got epochs"),
        ({"resume": "a", "output": "b"}, "got output"),
        ({"allow_changed_data": True}, "allow_changed_data goes with resume"),
    ],
)
def test_what_cannot_be_trained(fields, named):
    with pytest.raises((ValueError, FileNotFoundError), match=named):
        halonet.train(**fields)


def test_scores_and_neighbours(whole_run, tmp_path, capsys):
    result = halonet.evaluate(whole_run.folder, neighbours=1, output=tmp_path / "one", device="cpu")
    assert result.evaluation.accuracy == whole_run.evaluation.accuracy
    assert json.loads((tmp_path / "one" / "summary.json").read_text()) == result.summary
    assert result.summary["neighbour_accuracy"] == result.neighbour_accuracy
    run = halonet.load_run(whole_run.folder, device="cpu")
    training, held_out = (
        F.normalize(run.embed(list(split.sources)), dim=1)
        for split in (result.data.training, result.data.validation)
    )
    nearest = (held_out @ training.T).argmax(1).tolist()
    pairs = zip(nearest, result.data.validation.labels, strict=True)
    hits = [result.data.training.labels[place] == label for place, label in pairs]
    assert result.neighbour_accuracy == sum(hits) / len(hits)
    words = ["evaluate", str(whole_run.folder), "--neighbours=3", "--output", str(tmp_path / "two")]
    cli.main(words)
    assert "accuracy of 3 neighbours " in capsys.readouterr().out


def test_neighbours_that_there_are_not(whole_run, images, tmp_path):
    alone = tmp_path / "b.safetensors"
    halonet.save_model(halonet.load_model(whole_run.folder), alone)
    with pytest.raises(ValueError, match="neighbours must be from 1 to the 18 training images"):
        halonet.evaluate(whole_run.folder, neighbours=19, output=tmp_path / "a")
    with pytest.raises(ValueError, match="the 0 training images"):
        halonet.evaluate(alone, neighbours=2, data=f"folder:{images}", output=tmp_path / "a")
    assert not (tmp_path / "a").exists()
