"""What was predicted for each image: in words, the most confident mistakes, and predictions.csv."""

import csv
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from halonet.classification.calibration import Calibration, calibrate
from halonet.classification.evaluate import Evaluation
from halonet.classification.multilabel import THRESHOLD, MultilabelEvaluation
from halonet.data.splits import LabelledImages
from halonet.files import write_atomically


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction.

    Attributes:
        index: place of the image in the held-out part.
        truth: the true labels, in words.
        predicted: what was predicted, in words.
        class_index: of the predicted class; of several labels the one that is most wrong.
    """

    index: int
    truth: str
    predicted: str
    class_index: int


class ImagePredictions:
    """The predictions of an evaluation, in the names of the classes."""

    def __init__(self, data: LabelledImages, evaluation: Evaluation | MultilabelEvaluation) -> None:
        self.data = data
        self.evaluation = evaluation
        broken = {*evaluation.broken_indices}
        self.readable = [index for index in range(len(data.validation)) if index not in broken]
        self.labels = torch.as_tensor(data.validation.labels)

    def true_labels(self, index: int) -> list[str]:
        """The names of an image's labels."""
        return self._name(self.labels[index])

    def predicted_labels(self, index: int) -> list[str]:
        """The names of the labels that were predicted for an image."""
        if isinstance(self.evaluation, Evaluation):
            return self._name(self.evaluation.predictions[index])
        return self._name(self.evaluation.probabilities[index] >= THRESHOLD)

    def confidence(self, index: int) -> float | None:
        """The probability of an image's predicted class; None where it may have several labels."""
        if isinstance(self.evaluation, Evaluation):
            return self.evaluation.confidences[index].item()
        return None

    def _name(self, label: Tensor) -> list[str]:
        if label.ndim == 0:
            return [self.data.class_names[int(label)]]
        return [self.data.class_names[place] for place in label.nonzero().flatten().tolist()]

    def find_mistakes(self) -> list[Mistake]:
        """The wrong predictions, the most confident first; of several labels, an image's first."""
        found: list[tuple[float, Mistake]] = []
        if isinstance(self.evaluation, Evaluation):
            wrong = (self.evaluation.predictions != self.labels).tolist()
            for index in self.readable:
                if wrong[index]:
                    confidence = self.evaluation.confidences[index].item()
                    predicted = f"{self.predicted_labels(index)[0]} {100 * confidence:.0f} %"
                    place = int(self.evaluation.predictions[index])
                    mistake = Mistake(index, self.true_labels(index)[0], predicted, place)
                    found.append((confidence, mistake))
        else:
            chances = self.evaluation.probabilities
            misses = (chances - self.labels).abs()
            amounts, classes = misses.max(1)
            for index in self.readable:
                miss, place = amounts[index].item(), int(classes[index])
                if (chances[index, place] >= THRESHOLD) != (self.labels[index, place] == 1):
                    truth = ", ".join(self.true_labels(index)) or "none"
                    chance = 100 * chances[index, place].item()
                    predicted = f"{self.data.class_names[place]} {chance:.0f} %"
                    found.append((miss, Mistake(index, truth, predicted, place)))
        return [mistake for _, mistake in sorted(found, key=lambda one: -one[0])]

    def calibrate(self) -> Calibration:
        """Confidences beside correctness; of several labels, all probabilities beside labels."""
        labels = self.labels[self.readable]
        if isinstance(self.evaluation, Evaluation):
            correct = self.evaluation.predictions[self.readable] == labels
            return calibrate(self.evaluation.confidences[self.readable], correct)
        return calibrate(self.evaluation.probabilities[self.readable].flatten(), labels.flatten())

    def calibrate_class(self, place: int) -> Calibration | None:
        """A class's probabilities beside whether it was so; None where they weren't kept."""
        if self.evaluation.probabilities is None:
            return None
        labels = self.labels[self.readable]
        truth = labels == place if labels.ndim == 1 else labels[:, place]
        return calibrate(self.evaluation.probabilities[self.readable, place], truth)

    def write(self, path: Path) -> None:
        """Write path, label, prediction and all probabilities of each image as CSV.

        Of an image that can't be read, prediction and probabilities are empty. Several labels have
        semicolons between them.
        """
        names, probabilities = self.data.class_names, self.evaluation.probabilities
        if probabilities is None:
            raise ValueError("the evaluation didn't keep the probabilities of all classes")
        readable, kept = {*self.readable}, probabilities

        def write(temporary: Path) -> None:
            with open(
                temporary, "w", newline="", encoding="utf-8", errors="backslashreplace"
            ) as file:
                writer = csv.writer(file)
                columns = [f"probability of {name}" for name in names]
                writer.writerow(["path", "label", "prediction", *columns])
                for index, source in enumerate(self.data.validation.sources):
                    row = [str(source), ";".join(self.true_labels(index))]
                    if index in readable:
                        row.append(";".join(self.predicted_labels(index)))
                        row += [f"{value:.6g}" for value in kept[index].tolist()]
                    else:
                        row += [""] * (1 + len(names))
                    writer.writerow(row)

        write_atomically(path, write)
