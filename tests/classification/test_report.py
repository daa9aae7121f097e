"""Reports: calibration, each class's scores, mistakes, and predictions of every image."""

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import halonet
from halonet.classification.calibration import calibrate
from halonet.classification.evaluate import evaluate_on
from halonet.classification.image_predictions import ImagePredictions
from halonet.classification.report import write_report
from halonet.data.sources import load_data
from tests.pictures import SMALL_MODEL


def test_calibration_by_hand():
    probabilities = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.31, 0.32, 1.0])
    found = calibrate(probabilities, torch.tensor([1, 1, 1, 0, 0, 1, 1]))
    assert found.images.tolist() == [2, 4, 1]
    assert found.shares.tolist() == [0.5, 0.75, 1.0]
    torch.testing.assert_close(
        found.probabilities, torch.tensor([0.315, 0.9, 1.0], dtype=torch.double)
    )
    assert found.error == pytest.approx((2 * 0.185 + 4 * 0.15) / 7)


@pytest.fixture
def labelled(tmp_path):
    """Six images with labels in names that HTML and matplotlib would take for markup."""
    (tmp_path / "photos").mkdir()
    for index in range(6):
        image = Image.new("RGB", (40, 40), (40 * index, 0, 0))
        image.save(tmp_path / "photos" / f"{index} <b>.png")
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "$10_to_$20", "<i>", "free"])
        writer.writerows(
            [f"photos/{index} <b>.png", index % 2, 1 - index % 2, 0] for index in range(6)
        )
    return f"csv:{tmp_path / 'labels.csv'}"


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_report(labelled, tmp_path, task):
    data = load_data(labelled, task=task, validation_share=1)
    model = halonet.create_model("halonet_tiny", num_classes=3, image_size=32, **SMALL_MODEL)
    model.task = task
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([3.0, -2.0, -4.0]))
    evaluation = evaluate_on(model, data)
    summary = write_report(tmp_path, model, data, evaluation, scored="images")
    assert json.loads((tmp_path / "summary.json").read_text()) == summary

    first, second, third = summary["classes"].values()
    assert (first["images"], first["precision"], first["recall"]) == (3, 0.5, 1.0)
    assert first["f1"] == pytest.approx(2 / 3)
    assert (second["precision"], second["recall"], second["f1"]) == (None, 0.0, 0.0)
    assert (third["images"], third["precision"], third["recall"]) == (0, None, None)
    probability = evaluation.probabilities.mean(0)
    # All images look much alike: each class's probabilities are in one bin.
    assert first["calibration"]["error"] == pytest.approx(
        abs(probability[0].item() - 0.5), abs=1e-5
    )
    assert sum(one["images"] for one in first["calibration"]["bins"]) == 6

    mistakes = ImagePredictions(data, evaluation).find_mistakes()
    assert sorted(mistake.index for mistake in mistakes) == [0, 2, 4]
    page = (tmp_path / "report.html").read_text()
    assert f"<code>{tmp_path / 'photos'}/0 &lt;b&gt;.png</code>" in page
    assert "<td>$10_to_$20</td><td>3</td><td>50.0 %</td><td>100.0 %</td>" in page
    # The predicted class is explained, and no other.
    assert page.count("data:image/jpeg") == 2 * len(mistakes)
    assert page.count('alt="what speaks for $10_to_$20"') == len(mistakes)
    assert "Below the first 3: what the model sees" in page
    assert "by integrated gradients" in page
    for name in ("calibration.png", "predictions.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 100


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_predictions_of_every_image(labelled, tmp_path, task):
    (tmp_path / "photos" / "3 <b>.png").write_bytes(b"rubbish")
    data = load_data(labelled, task=task, validation_share=1)
    model = halonet.create_model("halonet_tiny", num_classes=3, image_size=32, **SMALL_MODEL)
    model.task = task
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([3.0, -2.0, 2.0]))
    evaluation = evaluate_on(model, data, broken_share=0.5)
    ImagePredictions(data, evaluation).write(tmp_path / "predictions.csv")
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [Path(row["path"]) for row in rows] == data.validation.sources
    assert [row["label"] for row in rows[:2]] == ["<i>", "$10_to_$20"]
    said = "$10_to_$20" if task == "multiclass" else "$10_to_$20;free"
    assert [row["prediction"] for row in rows] == [said] * 3 + [""] + [said] * 2
    assert rows[3]["probability of free"] == ""
    found = [float(row["probability of free"]) for row in rows if row["prediction"]]
    expected = evaluation.probabilities[[0, 1, 2, 4, 5], 2].tolist()
    assert found == pytest.approx(expected, rel=1e-5)
