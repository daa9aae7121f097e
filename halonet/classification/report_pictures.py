"""The pictures of an evaluated classifier's report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from halonet.classification.calibration import Calibration
from halonet.classification.image_predictions import ImagePredictions, Mistake
from halonet.data.pixels import read_image
from halonet.data.splits import LabelledImages
from halonet.explain.pictures import INK
from halonet.files import save_figure

BLUE, ORANGE, GREY = "#2563a8", "#c2410c", "#9aa5b1"
SHOWN = 6  # images in a row of predictions.png


def draw_curves(path: Path, rows: Sequence[dict[str, Any]], data: LabelledImages) -> None:
    """Loss and score by epoch: accuracy beside the majority class's, or mean average precision."""
    score = "accuracy" if "training_accuracy" in rows[-1] else "mean_average_precision"
    figure = _new_figure((9, 3.4))
    loss, scores = figure.subplots(1, 2)
    evaluated = [row for row in rows if "validation_loss" in row]
    for axes, kind, factor in ((loss, "loss", 1), (scores, score, 100)):
        for part, source, color in (("training", rows, BLUE), ("validation", evaluated, ORANGE)):
            known = [row for row in source if f"{part}_{kind}" in row]
            axes.plot(
                [row["epoch"] for row in known],
                [factor * row[f"{part}_{kind}"] for row in known],
                color=color,
                marker="o",
                markersize=3,
                label="held out" if part == "validation" else "training",
            )
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    loss.set_ylabel("loss")
    scores.set_ylabel(f"{score.replace('_', ' ')}, %")
    if score == "accuracy":
        baseline = 100 * data.majority_share
        scores.axhline(baseline, color=GREY, linestyle=":", label="majority class")
    (scores if score == "accuracy" else loss).legend(frameon=False)
    save_figure(figure, path)


def draw_confusion(path: Path, names: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
    """Images by true class (rows) and predicted class (columns)."""
    side = min(12, 2.2 + 0.55 * len(names))
    figure = _new_figure((side + 0.6, side))
    axes = figure.subplots()
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 20:
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", parse_math=False)
        axes.set_yticks(range(len(names)), names, parse_math=False)
        for row, line in enumerate(counts):
            for column, count in enumerate(line):
                color = "white" if shares[row][column] > 0.5 else INK
                axes.text(column, row, str(count), ha="center", va="center", color=color)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    save_figure(figure, path)


def draw_predictions(
    path: Path, predictions: ImagePredictions, mistakes: Sequence[Mistake]
) -> None:
    """The most confident errors, and below them an evenly spaced sample of all predictions."""
    readable = predictions.readable
    rows = {
        "most confident errors": [mistake.index for mistake in mistakes[:SHOWN]],
        "evenly spaced sample": readable[:: -(-len(readable) // SHOWN)],
    }
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
            axes.imshow(read_image(predictions.data.validation.sources[index]))
            labels, truth = predictions.predicted_labels(index), predictions.true_labels(index)
            confidence = predictions.confidence(index)
            caption = _short(", ".join(labels) or "none")
            caption += "" if confidence is None else f" {100 * confidence:.0f} %"
            caption += (
                "\ncorrect" if labels == truth else f"\nis {_short(', '.join(truth) or 'none')}"
            )
            color = INK if labels == truth else ORANGE
            axes.set_title(caption, fontsize=8, color=color, parse_math=False)
    save_figure(figure, path)


def draw_calibration(path: Path, panels: Mapping[str, Calibration]) -> None:
    """Reliability diagrams by their titles: fraction of positives by predicted probability."""
    columns = min(5, len(panels))
    rows = -(-len(panels) // columns)
    figure = _new_figure((2.3 * columns, 2.4 * rows))
    places = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, calibration) in zip(places, panels.items(), strict=False):
        axes.plot([0, 100], [0, 100], color=GREY, linestyle=":")
        axes.plot(
            100 * calibration.probabilities,
            100 * calibration.shares,
            color=BLUE,
            marker="o",
            markersize=3,
        )
        title = f"{_short(title)}\ncalibration error {100 * calibration.error:.1f} %"
        axes.set_title(title, fontsize=8, color=INK, parse_math=False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelbottom=True, labelsize=8)
    figure.supxlabel("mean predicted probability, %", fontsize=9)
    figure.supylabel("fraction of positives, %", fontsize=9)
    save_figure(figure, path)


def _short(name: str) -> str:
    return name if len(name) <= 20 else name[:19] + "\N{HORIZONTAL ELLIPSIS}"


def _new_figure(size: tuple[float, float]):  # noqa: ANN202 - matplotlib is imported here only
    from matplotlib.figure import Figure

    return Figure(size, dpi=110, layout="constrained")
