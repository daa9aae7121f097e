"""--device: where the commands run a model, and that it is fused."""

import pytest
import torch

from halonet import cli, runs
from halonet.cli import classification, detect
from halonet.detection.detector import save_detector
from halonet.models.halonet import HaloNet
from tests.detection.pictures import draw_coco, small_detector


@pytest.mark.parametrize("command", ["evaluate", "predict", "detect evaluate", "detect predict"])
def test_commands_run_the_fused_model_on_the_device(
    fails, monkeypatch, whole_run, images, tmp_path, command
):
    """On a device that computes nothing: a command that reads a result from it fails."""
    fused, fuse = [], HaloNet.fuse
    monkeypatch.setattr(HaloNet, "fuse", lambda model: fused.append(model) or fuse(model))
    for module in (classification, detect, runs):
        devices = {"cuda:1": torch.device("meta")}
        monkeypatch.setattr(module, "find_device", devices.__getitem__)
    words = [*command.split(), whole_run.folder, "--output", tmp_path / "found"]
    if command.startswith("detect"):
        coco = draw_coco(tmp_path / "coco")
        words[2] = tmp_path / "detector.safetensors"
        model = small_detector()
        model.class_names, model.category_ids = ("bar", "square"), (3, 7)
        save_detector(model, words[2])
        words += [coco / "val2017"] if command.endswith("predict") else ["--data", f"coco:{coco}"]
    elif command == "predict":
        words.append(images)
    assert "meta" in fails([*words, "--device", "cuda:1"])
    assert len(fused) == 1


def test_a_full_device_is_one_line(fails, monkeypatch):
    def run(words):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    monkeypatch.setitem(cli.COMMANDS, "models", cli.Command("", run))
    assert fails(["models"]) == "halonet: CUDA out of memory. Tried to allocate 2 GiB"
