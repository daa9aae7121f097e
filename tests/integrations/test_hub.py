"""Our models to the Hub and back; a folder stands in for it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard

import halonet
import halonet.integrations.hub as hub
from halonet.integrations.hub import HubHaloNet
from tests.models.test_halonet import revive, small_model

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
CARD: dict[str, Any] = {
    "data": "flowers, 60 images a class",
    "metrics": {"top-1, held-out": "81.2 %"},
    "command": "halonet train --data folder:flowers",
    "license": "apache-2.0",
    "repo_id": "user/flowers",
}


def trained_model() -> halonet.HaloNet:
    model = revive(small_model())
    model.class_names = ("a", "b", "c", "d", "e")
    model.preprocessing = halonet.Preprocessing(96, 0.9, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    return model


def test_a_model_comes_back_as_it_was(tmp_path: Path) -> None:
    model = trained_model()
    HubHaloNet.from_model(model).save_pretrained(tmp_path, model_card_kwargs=CARD)
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md", "config.json", "model.safetensors",
    }  # fmt: skip
    again = HubHaloNet.from_pretrained(tmp_path)
    assert not again.training
    assert torch.equal(again(IMAGES), model(IMAGES))
    assert again.variant == model.variant
    assert again.preprocessing == model.preprocessing
    assert again.class_names == model.class_names
    # The file is one of ours, and of a hub model too.
    plain = halonet.load_model(tmp_path / "model.safetensors").eval()
    assert torch.equal(plain(IMAGES), model(IMAGES))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["library_name"] == "halonet"
    assert config["model"]["variant"]["block_size"] == model.variant.block_size
    again.save_pretrained(tmp_path / "again")
    assert torch.equal(HubHaloNet.from_pretrained(tmp_path / "again")(IMAGES), model(IMAGES))


def test_the_hubs_model_shares_memory() -> None:
    model = trained_model()
    shared = HubHaloNet.from_model(model)
    for one, other in zip(shared.parameters(), model.parameters(), strict=True):
        assert one.data_ptr() == other.data_ptr()
    assert not shared.training
    assert HubHaloNet.from_model(model.train()).training


def test_changes_reach_the_model(tmp_path: Path) -> None:
    HubHaloNet.from_model(trained_model()).save_pretrained(tmp_path)
    changed = HubHaloNet.from_pretrained(tmp_path, num_classes=3, block_size=8, backend="reference")
    assert changed(IMAGES).shape == (2, 3)
    assert changed.stages[3][0].spatial.block_size == 8
    assert changed.stages[3][0].spatial.backend == "reference"
    with pytest.raises(ValueError, match=r"options of a model are .* got 'in_channels'"):
        HubHaloNet.from_pretrained(tmp_path, in_channels=1)
    with pytest.raises(ValueError, match="strict must be True"):
        HubHaloNet.from_pretrained(tmp_path, strict=False)


def test_damaged_config_is_named(tmp_path: Path) -> None:
    HubHaloNet.from_model(trained_model()).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json of .* is not JSON: Expecting property name"):
        HubHaloNet.from_pretrained(tmp_path)


def test_card_says_what_the_model_is(tmp_path: Path) -> None:
    model = trained_model()
    HubHaloNet.from_model(model).save_pretrained(tmp_path, model_card_kwargs=CARD)
    text = (tmp_path / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.library_name == "halonet"
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.license == "apache-2.0"
    assert "halonet" in card.data.tags
    parameters = sum(parameter.numel() for parameter in model.parameters())
    flops = halonet.count_flops(model.variant, 96, num_classes=5)
    for line in (
        f"| parameters | {parameters:,} |",
        f"| FLOPs | {flops / 1e9:.2f} billion at 96 px",
        "| images | 96 px, 3 channels, mean 0.1, 0.2, 0.3, std 1, 2, 3 |",
        "| data | flowers, 60 images a class |",
        "| top-1, held-out | 81.2 % |",
        "halonet train --data folder:flowers",
        'HubHaloNet.from_pretrained("user/flowers")',
        "Classes, in order: a, b, c, d, e.",
    ):
        assert line in text
    assert "{{" not in text
    assert "{%" not in text


def test_card_of_little_says_little(tmp_path: Path) -> None:
    HubHaloNet.from_model(small_model()).save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "| data | not stated |" in text
    assert "command" not in text
    assert "Classes, in order" not in text


def test_push_and_pull_go_through_the_hubs_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Repository:
        repo_id = "user/flowers"

    def upload(self: HfApi, *, repo_id: str, folder_path: Path, **_: Any) -> str:
        assert repo_id == "user/flowers"
        Path(folder_path).rename(tmp_path / "remote")
        return "commit"

    def download(*, repo_id: str, filename: str, revision: str | None, **_: Any) -> str:
        assert (repo_id, revision) == ("user/flowers", "v1")
        return str(tmp_path / "remote" / filename)

    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: Repository)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(
        "huggingface_hub.hub_mixin.hf_hub_download", lambda **asked: download(**asked)
    )
    model = trained_model()
    HubHaloNet.from_model(model).push_to_hub("user/flowers", model_card_kwargs=CARD)
    assert (tmp_path / "remote" / "README.md").exists()
    again = HubHaloNet.from_pretrained("user/flowers", revision="v1")
    assert torch.equal(again(IMAGES), model(IMAGES))


def test_without_the_hubs_client_one_line_says_so() -> None:
    code = (
        "import sys; sys.modules['huggingface_hub'] = None\n"
        "try: import halonet.integrations.hub\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'halonet[hub]'" in found.stdout
    assert found.stdout.count("\n") == 1
