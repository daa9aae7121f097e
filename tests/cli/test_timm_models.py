"""timm's HaloNets from the command line: trained from a file of weights, scored, resumed."""

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import halonet
from halonet import cli


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("timm") / "halonet26t.safetensors"
    save_file(timm.create_model("halonet26t").state_dict(), path)
    return path


@pytest.fixture
def photos(tmp_path):
    for part, count in (("train", 6), ("val", 2)):
        for name in ("noisy", "striped"):
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for index in range(count):
                image = Image.effect_noise((40, 48), 60 + index)
                if name == "striped":
                    image = image.reduce((1, 48)).resize((40, 48))
                image.save(tmp_path / "photos" / part / name / f"{index}.png")
    return tmp_path / "photos"


def test_a_run_from_weights_to_predictions_and_back_to_timm(weights, photos, tmp_path, capsys):
    run = tmp_path / "run"
    words = ["--data", f"folder:{photos}", "--model", "timm/halonet26t.a1h_in1k"]
    words += ["--image-size", 32, "--batch-size", 4, "--epochs", 1, "--log-with", "none"]
    words += ["--optimizer", "sgd"]  # Muon takes five times as long on layers of this width
    cli.main(["train", *map(str, [*words, "--pretrained", weights, "--output", run])])
    shown = capsys.readouterr().out
    assert f"starting from {weights}; the classifier starts from zero" in shown
    assert "epoch 1/1" in shown
    config = json.loads((run / "config.json").read_text())
    assert config["pretrained"] == str(weights)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["model"], summary["image_size"]) == ("halonet26t", 32)

    cli.main(["evaluate", str(run)])
    again = json.loads((run / "evaluation" / "summary.json").read_text())
    assert again["accuracy"] == summary["accuracy"]
    cli.main(["predict", str(run), str(photos / "val" / "noisy")])
    assert len(capsys.readouterr().out.splitlines()) > 3

    theirs = timm.create_model(
        "halonet26t", num_classes=2, checkpoint_path=str(run / "last.safetensors")
    )
    ours = halonet.load_model(run).state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.state_dict().items())

    cli.main(["train", "--resume", str(run)])
    assert "accuracy" in capsys.readouterr().out
    second = tmp_path / "second"
    cli.main(["train", *map(str, [*words, "--init", run, "--freeze", "all", "--output", second])])
    assert f"starting from {run}\n" in capsys.readouterr().out
    cli.main(["compare", str(run), str(second), "--output", str(tmp_path / "compared.png")])
    assert (tmp_path / "compared.png").is_file()


def test_what_can_not_start_is_said_in_one_line(weights, photos, tmp_path, fails, monkeypatch):
    data = ["train", "--data", f"folder:{photos}", "--output", tmp_path / "run"]

    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)
    line = fails([*data, "--model", "halonet26t", "--pretrained"])
    assert "can't fetch the weights halonet26t.a1h_in1k from the Hub: no route to host" in line
    line = fails([*data, "--model", "halonet50ts", "--pretrained", weights])
    assert "doesn't fit halonet50ts" in line
    line = fails([*data, "--model", "halonet26t", "--pretrained", weights, "--init", "run"])
    assert "init and pretrained are two weights to start from" in line
    line = fails([*data, "--model", "halonet_h1", "--pretrained", "true"])
    assert "pretrained must be False or a file for halonet_h1" in line
    assert not Path(tmp_path / "run").exists()
