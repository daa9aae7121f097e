"""halonet models: limits and formats."""

import json

from halonet import cli


def test_models_filter(capsys):
    cli.main(["models", "--format", "json", "--max-parameters", "9M", "--max-image-size", "256"])
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert {"halonet_h0", "halonet_h1", "halonet_tiny"} == found.keys()
    assert found["halonet_h0"]["parameters"] == 5_485_352
    cli.main(["models", "--max_flops=1"])
    assert "halonet" not in capsys.readouterr().out
