"""The report of an evaluated classifier: report.html, its pictures, and summary.json."""

import base64
import html
import io
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from halonet.classification.calibration import Calibration
from halonet.classification.evaluate import Evaluation
from halonet.classification.image_predictions import ImagePredictions, Mistake
from halonet.classification.multilabel import MultilabelEvaluation
from halonet.classification.report_pictures import (
    BLUE,
    INK,
    draw_calibration,
    draw_confusion,
    draw_curves,
    draw_predictions,
)
from halonet.data.pixels import read_image
from halonet.data.splits import LabelledImages
from halonet.explain.explanation import Explanation, explain_image
from halonet.files import write_text
from halonet.models.classifier import Classifier, name_classes

GALLERY = 24  # mistakes shown
LARGEST_DIAGRAMS = 20  # classes
THUMBNAIL = 160  # pixels of the longer side
EXPLAINED = 8  # mistakes
EXPLAINING_SECONDS = 10  # after which no other is begun: a large model takes long on a CPU


def write_report(
    folder: Path,
    model: Classifier,
    data: LabelledImages,
    evaluation: Evaluation | MultilabelEvaluation,
    rows: Sequence[dict[str, Any]] = (),
    *,
    scored: str = "held-out images",
    start: str | None = None,
    minutes: float | None = None,
    neighbour_accuracy: float | None = None,
) -> dict[str, Any]:
    """Write report.html, summary.json and the pictures of an evaluated model into `folder`.

    Args:
        folder: to write to.
        model: as it was evaluated.
        data: its held-out part is what was scored.
        evaluation: the scores.
        rows: the epochs of the training; without them there are no curves.
        scored: which images these are.
        start: what the training started from, in words.
        minutes: that the training took.
        neighbour_accuracy: of the nearest training images, where it was measured.

    Returns:
        What summary.json holds.
    """
    predictions = ImagePredictions(data, evaluation)
    summary = summarize(model, data, predictions, scored=scored, start=start, minutes=minutes)
    if neighbour_accuracy is not None:
        summary["neighbour_accuracy"] = neighbour_accuracy
    write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    mistakes = predictions.find_mistakes()
    pictures = {"predictions.png": f"Predictions on {scored}"}
    draw_predictions(folder / "predictions.png", predictions, mistakes)
    if isinstance(evaluation, Evaluation) and evaluation.confusion is not None:
        pictures["confusion_matrix.png"] = f"Confusion matrix of the {scored}"
        draw_confusion(folder / "confusion_matrix.png", data.class_names, evaluation.confusion)
    pictures["calibration.png"] = "Calibration: fraction of positives by predicted probability"
    draw_calibration(folder / "calibration.png", _choose_diagrams(predictions))
    if rows:
        pictures["curves.png"] = (
            "Training; its own loss and accuracy are of augmented images, while the model learns"
        )
        draw_curves(folder / "curves.png", rows, data)
    explanations = _explain(model, data, mistakes)
    page = _page(summary, predictions, mistakes, pictures, explanations)
    write_text(folder / "report.html", page)
    return summary


def _explain(
    model: Any, data: LabelledImages, mistakes: Sequence[Mistake]
) -> dict[int, Explanation]:
    """What speaks for the predicted class, by the places of the most confident mistakes' images.

    None of an exported model, which has no gradients.
    """
    if not isinstance(model, Classifier):
        return {}
    started = time.monotonic()
    found = {}
    for mistake in mistakes[:EXPLAINED]:
        if time.monotonic() - started > EXPLAINING_SECONDS:
            break
        source = data.validation.sources[mistake.index]
        name = name_classes(model)[mistake.class_index]
        found[mistake.index] = explain_image(model, source, class_name=name)
    return found


def _name_model(model: Any) -> str:
    return model.variant.name if isinstance(model, Classifier) else model.name


def _count_parameters(model: Any) -> int:
    """Of an exported model, which has no parameters in torch, as its file says."""
    if isinstance(model, Classifier):
        return sum(parameter.numel() for parameter in model.parameters())
    return model.parameter_count


def summarize(
    model: Classifier,
    data: LabelledImages,
    predictions: ImagePredictions,
    *,
    scored: str,
    start: str | None,
    minutes: float | None,
) -> dict[str, Any]:
    """The content of summary.json."""
    evaluation = predictions.evaluation
    if isinstance(evaluation, Evaluation):
        figures: dict[str, Any] = {
            "accuracy": evaluation.accuracy,
            "top5_accuracy": evaluation.top5_accuracy,
            "loss": evaluation.loss,
            "majority_share": data.majority_share,
        }
    else:
        figures = {name: _finite(value) for name, value in evaluation.figures.items()}
    return {
        "data": data.name,
        "scored": scored,
        "task": model.task,
        "model": _name_model(model),
        "parameters": _count_parameters(model),
        "image_size": model.preprocessing.image_size,
        "validation_images": evaluation.images,
        "broken_validation_images": evaluation.broken,
        **figures,
        "calibration": _describe(predictions.calibrate()),
        "classes": {
            name: score_class(predictions, place) for place, name in enumerate(data.class_names)
        },
        "start": start,
        "training_minutes": minutes,
        "note": data.note,
    }


def score_class(predictions: ImagePredictions, place: int) -> dict[str, Any]:
    """A class's images, precision, recall, F1 and calibration; None where nothing counts."""
    evaluation = predictions.evaluation
    images, predicted, correct = (
        int(counts[place])
        for counts in (
            evaluation.class_images,
            evaluation.class_predicted,
            evaluation.class_correct,
        )
    )
    scores = {
        "images": images,
        "precision": correct / predicted if predicted else None,
        "recall": correct / images if images else None,
        "f1": 2 * correct / (images + predicted) if images else None,
    }
    if isinstance(evaluation, MultilabelEvaluation):
        scores["average_precision"] = _finite(evaluation.average_precisions[place].item())
    return scores | {"calibration": _describe(predictions.calibrate_class(place))}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _describe(calibration: Calibration | None) -> dict[str, Any] | None:
    """Expected calibration error, and the reliability in each bin."""
    if calibration is None:
        return None
    bins = zip(
        calibration.probabilities.tolist(),
        calibration.shares.tolist(),
        calibration.images.tolist(),
        strict=True,
    )
    return {
        "error": calibration.error,
        "bins": [
            {"probability": probability, "share": share, "images": images}
            for probability, share, images in bins
        ],
    }


def _choose_diagrams(predictions: ImagePredictions) -> dict[str, Calibration]:
    """The diagram of all predictions, and of few enough classes each."""
    diagrams = {"all predictions": predictions.calibrate()}
    names = predictions.data.class_names
    if len(names) <= LARGEST_DIAGRAMS:
        for place, name in enumerate(names):
            calibration = predictions.calibrate_class(place)
            if calibration is not None:
                diagrams[name] = calibration
    return diagrams


CLASS_COLUMNS = {
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "average_precision": "average precision",
}


def make_class_rows(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The table of the classes: its header and its rows, of summary.json's content."""
    first = next(iter(summary["classes"].values()))
    columns = {name: title for name, title in CLASS_COLUMNS.items() if name in first}
    rows = []
    for name, scores in summary["classes"].items():
        row = [name, str(scores["images"])]
        row += [show_share(scores[column]) for column in columns]
        calibration = scores["calibration"]
        rows.append([*row, show_share(None if calibration is None else calibration["error"])])
    return ["class", "images", *columns.values(), "calibration error"], rows


def show_share(share: float | None) -> str:
    """A share in per cent; a dash for None."""
    return "-" if share is None else f"{100 * share:.1f} %"


def _make_gallery(
    predictions: ImagePredictions,
    mistakes: Sequence[Mistake],
    explanations: dict[int, Explanation],
) -> str:
    """The most confident mistakes: image, path, predicted and true labels of each.

    Below the image its explanation, where there is one.
    """
    if not mistakes:
        return "<p>There is none.</p>"
    figures = []
    for mistake in mistakes[:GALLERY]:
        source = predictions.data.validation.sources[mistake.index]
        shown = _embed_image(read_image(source))
        if (explanation := explanations.get(mistake.index)) is not None:
            name = predictions.data.class_names[mistake.class_index]
            shown += _embed_image(explanation.draw(), f"what speaks for {name}")
        figures.append(
            f"<figure>{shown}<figcaption>{html.escape(mistake.predicted)}, "
            f"is {html.escape(mistake.truth)}<br>"
            f"<code>{html.escape(str(source))}</code></figcaption></figure>"
        )
    return f'<div class="gallery">{"".join(figures)}</div>'


def _embed_image(image: Image.Image, description: str = "") -> str:
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    content = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{content}" alt="{html.escape(description)}">'


def _describe_explanations(explanations: dict[int, Explanation]) -> str:
    if not explanations:
        return ""
    method = next(iter(explanations.values())).method.replace("_", " ")
    images = "the first" if len(explanations) == 1 else f"the first {len(explanations)}"
    return (
        f"<p>Below {images}: what the model sees, bright where it speaks for the predicted "
        f"class, by {method}. <code>halonet explain</code> does so for any image and class.</p>"
    )


def _make_headline(summary: dict[str, Any]) -> str:
    images = f"{summary['validation_images']} {html.escape(summary['scored'])}"
    if summary["task"] == "multiclass":
        return (
            f"<strong>{show_share(summary['accuracy'])}</strong> accuracy on {images}, by the last "
            f"checkpoint. Majority-class baseline: {show_share(summary['majority_share'])}."
        )
    return (
        f"<strong>{show_share(summary['mean_average_precision'])}</strong> mean average precision "
        f"on {images}, by the last checkpoint. F1 {show_share(summary['f1'])} at a threshold of "
        "0.5. Both are means over the classes that the images have."
    )


def _page(
    summary: dict[str, Any],
    predictions: ImagePredictions,
    mistakes: Sequence[Mistake],
    pictures: dict[str, str],
    explanations: dict[int, Explanation],
) -> str:
    header, rows = make_class_rows(summary)
    table = "".join(f"<th>{html.escape(title)}</th>" for title in header)
    for row in rows:
        table += f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>"
    shown = "".join(
        f'<h2>{html.escape(title)}</h2><img src="{name}" alt="{html.escape(title)}">'
        for name, title in pictures.items()
    )
    minutes = summary["training_minutes"]
    trained = "" if minutes is None else f", trained in {minutes:.1f} minutes"
    started = "" if summary["start"] is None else f" Training: {html.escape(summary['start'])}."
    shown_mistakes = f"{min(GALLERY, len(mistakes))} of {len(mistakes)}"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>halonet: {html.escape(summary["data"])}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: {INK}; max-width: 62rem; margin: 2rem auto; }}
h2 {{ font-size: 1.1rem; margin: 2rem 0 .5rem; }} body {{ padding: 0 1rem; }}
img {{ max-width: 100%; }} td, th {{ padding: .2rem 1.2rem .2rem 0; text-align: left; }}
strong {{ font-size: 2rem; color: {BLUE}; }}
.gallery {{ display: flex; flex-wrap: wrap; gap: 1rem; }} figure {{ margin: 0; width: 11rem; }}
figcaption {{ font-size: .75rem; overflow-wrap: anywhere; }}
</style></head><body>
<h1>{html.escape(summary["model"])} on {html.escape(summary["data"])}</h1>
<p>{_make_headline(summary)}</p>
<p>{summary["parameters"]:,} parameters, {summary["image_size"]} x {summary["image_size"]}
pixels{trained}. Expected calibration error {show_share(summary["calibration"]["error"])}.</p>
<p>{html.escape(predictions.data.note)}{started}</p>
<table><tr>{table}</tr></table>
{shown}
<h2>The most confident mistakes, {shown_mistakes}</h2>
{_describe_explanations(explanations)}
{_make_gallery(predictions, mistakes, explanations)}
</body></html>
"""
