"""Fine-tuning: frozen parts, learning rates by layer, and runs that end early."""

import csv
from math import nan
from types import SimpleNamespace

import pytest
import torch

import halonet
from halonet.classification.config import TrainingConfig, check_config
from halonet.classification.training import resume, train
from halonet.training.loop import Trainer
from halonet.training.optimizer import make_optimizer, make_schedule
from tests.pictures import SMALL_MODEL, draw_folder, small_config


def scales(model, **rates):
    """The factor of each parameter's learning rate."""
    config = TrainingConfig(optimizer="adamw", learning_rate=0.5)
    optimizer = make_optimizer(model, config, **rates)
    names = {parameter: name for name, parameter in model.named_parameters()}
    make_schedule(optimizer, config, 100).step_update(10)  # the peak, after the warm-up
    found = {
        names[parameter]: group["lr"] / 0.5
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    peak = found["classifier.weight"] / rates.get("classifier_rate", 1.0)
    return {name: value / peak for name, value in found.items()}


@pytest.fixture
def model():
    return halonet.create_model("halonet_tiny", num_classes=3)


def test_layers_have_rates_of_their_own(model):
    found = scales(model, layer_decay=0.5)
    assert found.keys() == dict(model.named_parameters()).keys()
    bottlenecks = [
        f"stages.{stage}.{place}." for stage, one in enumerate(model.stages) for place in range(len(one))
    ]  # fmt: skip
    for depth, prefix in enumerate(["stem.", *bottlenecks, "classifier."]):
        inside = {round(value, 6) for name, value in found.items() if name.startswith(prefix)}
        assert inside == {round(0.5 ** (len(bottlenecks) + 1 - depth), 6)}, prefix


def test_classifier_has_a_rate_of_its_own(model):
    found = scales(model, classifier_rate=10.0)
    assert found["classifier.bias"] == pytest.approx(10)
    assert {round(value, 6) for name, value in found.items() if "classifier" not in name} == {1}
    both = scales(model, classifier_rate=10.0, layer_decay=0.5)
    assert both["classifier.weight"] == pytest.approx(10)
    assert both["stem.0.weight"] == pytest.approx(scales(model, layer_decay=0.5)["stem.0.weight"])


def test_without_factors_groups_are_as_ever(model):
    groups = make_optimizer(model, TrainingConfig(optimizer="adamw")).param_groups
    assert not [group for group in groups if "lr_scale" in group]


@pytest.mark.parametrize(
    ("freeze", "kept"),
    [("all", ["stem", "stages"]), ("stem, stage1", ["stem", "stages.0"]), ("stage4", ["stages.3"])],
)
def test_frozen_parts_stay(tmp_path, freeze, kept):
    photos = draw_folder(tmp_path / "photos")
    start = halonet.create_model("halonet_tiny", num_classes=2, image_size=32, **SMALL_MODEL)
    halonet.save_model(start, tmp_path / "start.safetensors")
    config = small_config(
        photos, epochs=1, init=str(tmp_path / "start.safetensors"), freeze=freeze, optimizer="muon"
    )
    result = train(config, output=str(tmp_path / "run"))
    after = halonet.load_model(result.folder / "last.safetensors").state_dict()
    for name, before in start.state_dict().items():
        frozen = any(name.startswith(f"{one}.") for one in kept)
        if frozen:
            assert torch.equal(after[name], before), name
        elif name.endswith("running_mean"):
            assert not torch.equal(after[name], before), name
    assert not torch.equal(after["classifier.weight"], start.classifier.weight)


def test_patience_ends_a_run(tmp_path, capsys):
    photos = draw_folder(tmp_path / "photos")
    config = small_config(photos, epochs=9, learning_rate=1e-12, evaluate_epochs=1, patience=2)
    result = train(config, output=str(tmp_path / "run"))
    said = "ended after epoch 3: 2 evaluations without a better accuracy"
    assert capsys.readouterr().err.count(said) == 1
    assert [row["epoch"] for row in read_rows(result.folder)] == ["1", "2", "3"]
    assert (result.folder / "report.html").is_file()
    again = resume(result.folder)
    assert again.evaluation.figures == result.evaluation.figures
    assert len(read_rows(result.folder)) == 3


def test_scores_of_nan_are_no_better_and_hide_none():
    trainer = object.__new__(Trainer)
    trainer.config, trainer.task = TrainingConfig(patience=2), SimpleNamespace(score="box_ap")
    for scores, over in [
        ([nan, nan, 0.1], False),
        ([nan, 0.1, nan, 0.2], False),
        ([0.3, nan, 0.2], True),
        ([0.1, nan, 0.2], False),
        ([nan, nan, nan], True),
        ([0.1, 0.1], False),
    ]:
        trainer.progress = {"rows": [{"validation_box_ap": score} for score in scores]}
        assert trainer._is_patience_over == over, scores


def read_rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return [*csv.DictReader(file)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"freeze": "stem,stage9"}, "freeze must be all or some of stem, stage1, .*'stage9'"),
        ({"freeze": ","}, "freeze must be all or some"),
        ({"layer_decay": 1.5}, "layer_decay must be at most 1, got 1.5"),
        ({"layer_decay": 0.0}, "layer_decay must be positive"),
        ({"classifier_rate": -1.0}, "classifier_rate must be positive"),
        ({"patience": -1}, "patience must be 0 or more"),
    ],
)
def test_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        check_config(TrainingConfig(**changes))
