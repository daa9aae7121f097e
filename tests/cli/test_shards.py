"""halonet shards: what is written is trained and evaluated on."""

import pytest

import halonet
from halonet import cli


def test_shards_are_written_and_trained_on(images, tmp_path, capsys):
    from tests.pictures import make_words, small_config

    cli.main(["shards", f"folder:{images}", str(tmp_path / "shards"), "--validation-share", "0.25"])
    assert "24 images in 2 shards" in capsys.readouterr().out
    config = small_config(images, data=f"shards:{tmp_path / 'shards'}", epochs=1)
    cli.main(["train", *make_words(config, tmp_path / "run")])
    assert "held-out accuracy" in capsys.readouterr().out
    cli.main(["evaluate", str(tmp_path / "run")])
    own = capsys.readouterr().out
    tars = str(tmp_path / "shards" / "{}-000000.tar")
    given = ["--data", f"shards:{tars.format('train')}"]
    given += ["--validation-data", f"shards:{tars.format('val')}"]
    model = halonet.load_model(tmp_path / "run" / "last.safetensors")
    model.class_names = None  # tar files alone don't name the classes
    halonet.save_model(model, tmp_path / "model.safetensors")
    cli.main(["evaluate", str(tmp_path / "model.safetensors"), *given])
    assert capsys.readouterr().out.splitlines()[1:3] == own.splitlines()[1:3]
    with pytest.raises(SystemExit):
        cli.main(["shards", f"folder:{images}", str(tmp_path / "shards")])
    assert "exists already and isn't an empty folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["shards", f"folder:{images}", str(tmp_path / "other"), "--shard-size", "many"])
    assert "--shard-size: expected a number such as 10M" in capsys.readouterr().err
