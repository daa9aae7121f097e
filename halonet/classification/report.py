"""The report of an evaluated classifier: report.html, its pictures, and summary.json."""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from halonet.classification.evaluate import Evaluation
from halonet.data.pixels import read_image
from halonet.data.splits import LabelledImages
from halonet.files import write_atomically, write_text
from halonet.models.halonet import HaloNet

INK, BLUE, ORANGE, GREY = "#1f2933", "#2563a8", "#c2410c", "#9aa5b1"
SHOWN = 6  # images in a row of predictions.png


def write_report(
    folder: Path,
    model: HaloNet,
    data: LabelledImages,
    evaluation: Evaluation,
    rows: Sequence[dict[str, Any]] = (),
    *,
    minutes: float | None = None,
) -> None:
    """Write report.html, summary.json and the pictures of an evaluated model into `folder`.

    `rows` are the epochs of its training; without them there are no curves.
    """
    summary = summarize(model, data, evaluation, minutes)
    write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    pictures = {"predictions.png": "Predictions on held-out images"}
    _draw_predictions(folder / "predictions.png", data, evaluation)
    if evaluation.confusion is not None:
        pictures["confusion_matrix.png"] = "Confusion matrix of the held-out images"
        _draw_confusion(folder / "confusion_matrix.png", data.class_names, evaluation.confusion)
    if rows:
        pictures["curves.png"] = (
            "Training; its own loss and accuracy are of augmented images, while the model learns"
        )
        _draw_curves(folder / "curves.png", rows, data)
    write_text(folder / "report.html", _page(summary, data, pictures))


def summarize(
    model: HaloNet, data: LabelledImages, evaluation: Evaluation, minutes: float | None
) -> dict[str, Any]:
    """The content of summary.json."""
    classes = {}
    counts = evaluation.class_images.tolist(), evaluation.class_correct.tolist()
    for name, images, correct in zip(data.class_names, *counts, strict=True):
        classes[name] = {"images": images, "accuracy": correct / images if images else None}
    return {
        "data": data.name,
        "model": model.variant.name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "image_size": model.preprocessing.image_size,
        "validation_images": evaluation.images,
        "broken_validation_images": evaluation.broken,
        "accuracy": evaluation.accuracy,
        "top5_accuracy": evaluation.top5_accuracy,
        "loss": evaluation.loss,
        "majority_share": data.majority_share,
        "classes": classes,
        "training_minutes": minutes,
        "note": data.note,
    }


def _draw_curves(path: Path, rows: Sequence[dict[str, Any]], data: LabelledImages) -> None:
    figure = _new_figure((9, 3.4))
    loss, accuracy = figure.subplots(1, 2)
    evaluated = [row for row in rows if "validation_loss" in row]
    for axes, kind, factor in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
        for part, source, color in (("training", rows, BLUE), ("validation", evaluated, ORANGE)):
            axes.plot(
                [row["epoch"] for row in source],
                [factor * row[f"{part}_{kind}"] for row in source],
                color=color,
                marker="o",
                markersize=3,
                label="held out" if part == "validation" else "training",
            )
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    loss.set_ylabel("loss")
    accuracy.set_ylabel("accuracy, %")
    accuracy.axhline(100 * data.majority_share, color=GREY, linestyle=":", label="majority class")
    accuracy.legend(frameon=False)
    _save_figure(figure, path)


def _draw_confusion(path: Path, names: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
    side = min(12, 2.2 + 0.55 * len(names))
    figure = _new_figure((side + 0.6, side))
    axes = figure.subplots()
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 20:
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axes.set_yticks(range(len(names)), names)
        for row, line in enumerate(counts):
            for column, count in enumerate(line):
                color = "white" if shares[row][column] > 0.5 else INK
                axes.text(column, row, str(count), ha="center", va="center", color=color)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    _save_figure(figure, path)


def _draw_predictions(path: Path, data: LabelledImages, evaluation: Evaluation) -> None:
    """The most confident errors, and below them an evenly spaced sample of all predictions."""
    labels = data.validation.labels
    predictions, confidences = evaluation.predictions.tolist(), evaluation.confidences.tolist()
    readable = [index for index, predicted in enumerate(predictions) if predicted >= 0]
    wrong = [index for index in readable if predictions[index] != labels[index]]
    wrong.sort(key=lambda index: -confidences[index])
    spread = readable[:: -(-len(readable) // SHOWN)]
    rows = {"most confident errors": wrong[:SHOWN], "evenly spaced sample": spread}
    rows = {title: shown for title, shown in rows.items() if shown}
    figure = _new_figure((11, 2.7 * len(rows)))
    for part, (title, shown) in zip(
        figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows.items(), strict=True
    ):
        part.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)
        for place, axes in enumerate(part.subplots(1, SHOWN, squeeze=False)[0]):
            axes.set_axis_off()
            if place >= len(shown):
                continue
            index = shown[place]
            axes.imshow(read_image(data.validation.sources[index]))
            predicted, truth = predictions[index], labels[index]
            caption = f"{_short(data.class_names[predicted])} {100 * confidences[index]:.0f} %\n"
            caption += "correct" if predicted == truth else f"is {_short(data.class_names[truth])}"
            axes.set_title(caption, fontsize=8, color=INK if predicted == truth else ORANGE)
    _save_figure(figure, path)


def _short(name: str) -> str:
    return name if len(name) <= 20 else name[:19] + "\N{HORIZONTAL ELLIPSIS}"


def _new_figure(size: tuple[float, float]):  # noqa: ANN202 - matplotlib is imported here only
    from matplotlib.figure import Figure

    return Figure(size, dpi=110, layout="constrained")


def _save_figure(figure: Any, path: Path) -> None:
    write_atomically(path, lambda temporary: figure.savefig(temporary))


def _page(summary: dict[str, Any], data: LabelledImages, pictures: dict[str, str]) -> str:
    classes = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{entry['images']}</td>"
        f"<td>{'-' if entry['accuracy'] is None else format(100 * entry['accuracy'], '.1f') + ' %'}"
        "</td></tr>"
        for name, entry in summary["classes"].items()
    )
    shown = "".join(
        f'<h2>{html.escape(title)}</h2><img src="{name}" alt="{html.escape(title)}">'
        for name, title in pictures.items()
    )
    minutes = summary["training_minutes"]
    trained = "" if minutes is None else f", trained in {minutes:.1f} minutes"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>halonet: {html.escape(summary["data"])}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: {INK}; max-width: 62rem; margin: 2rem auto; }}
h2 {{ font-size: 1.1rem; margin: 2rem 0 .5rem; }} body {{ padding: 0 1rem; }}
img {{ max-width: 100%; }} td, th {{ padding: .2rem 1.2rem .2rem 0; text-align: left; }}
strong {{ font-size: 2rem; color: {BLUE}; }}
</style></head><body>
<h1>{html.escape(summary["model"])} on {html.escape(summary["data"])}</h1>
<p><strong>{100 * summary["accuracy"]:.1f} %</strong> accuracy on
{summary["validation_images"]} held-out images, by the last checkpoint. Majority-class baseline:
{100 * summary["majority_share"]:.1f} %.</p>
<p>{summary["parameters"]:,} parameters, {summary["image_size"]} x {summary["image_size"]}
pixels{trained}.</p>
<p>{html.escape(data.note)}</p>
<table><tr><th>class</th><th>images</th><th>accuracy</th></tr>{classes}</table>
{shown}
</body></html>
"""
