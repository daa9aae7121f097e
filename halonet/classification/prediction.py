"""What a classifier says of an image."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from halonet.classification.multilabel import THRESHOLD
from halonet.models.classifier import LabelTask

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

    from halonet.data.splits import Source

TOP_K = 3  # classes that are shown of an image
LEAST_WIDTH, LEAST_TEXT = 240, 14  # pixels of a picture that is written on, and of its letters
SHADE = (0, 0, 0, 150)  # behind the letters


@dataclass(frozen=True)
class Prediction:
    """The probabilities of an image's classes.

    Attributes:
        image: where it comes from.
        class_names: all classes in order.
        probabilities: of each class [classes], 0 to 1; they sum to 1 where task is multiclass.
        task: multiclass, of one label for each image, or multilabel, of any number.
        source: the image, as `read_image` takes it, for `plot`.
        time: of a video's frame, in seconds from the first; None of an image.
    """

    image: str
    class_names: tuple[str, ...]
    probabilities: Tensor
    task: LabelTask
    source: "Source"
    time: float | None = None

    @property
    def class_name(self) -> str:
        """The most probable class."""
        return self.class_names[int(self.probabilities.argmax())]

    @property
    def probability(self) -> float:
        """The probability of the most probable class."""
        return self.probabilities.max().item()

    def top(self, count: int = TOP_K) -> list[tuple[str, float]]:
        """The most probable classes and their probabilities, the most probable first."""
        best = self.probabilities.topk(min(count, len(self.class_names)))
        return [
            (self.class_names[index], probability)
            for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def labels(self, threshold: float = THRESHOLD) -> list[tuple[str, float]]:
        """The classes with at least this probability, the most probable first."""
        return self.top(int((self.probabilities >= threshold).sum()))

    def to_dict(self, *, top_k: int = TOP_K, threshold: float = THRESHOLD) -> dict[str, Any]:
        """The prediction as `halonet predict --format json` has it.

        Of a multiclass model the `top_k` classes; of a multilabel one those from `threshold` on,
        and all probabilities.
        """
        multilabel = self.task == "multilabel"
        entry: dict[str, Any] = {
            "image": self.image,
            **({} if self.time is None else {"time": round(self.time, 3)}),
            "predictions": [
                {"class": name, "probability": round(probability, 6)}
                for name, probability in (self.labels(threshold) if multilabel else self.top(top_k))
            ],
        }
        if multilabel:
            rounded = [round(probability, 6) for probability in self.probabilities.tolist()]
            entry["probabilities"] = dict(zip(self.class_names, rounded, strict=True))
        return entry

    def to_json(self) -> str:
        """The prediction as text."""
        return json.dumps(self.to_dict(), indent=2)

    def draw(
        self, image: "Image.Image", *, top_k: int = TOP_K, threshold: float = THRESHOLD
    ) -> "Image.Image":
        """A copy of the image with its classes, as `to_dict` chooses them, and probabilities.

        An image less than 240 pixels wide is enlarged, for the words to be read.
        """
        from PIL import ImageDraw, ImageFont

        factor = math.ceil(LEAST_WIDTH / image.width)
        drawn = image.convert("RGB").resize((factor * image.width, factor * image.height))
        shown = self.labels(threshold) if self.task == "multilabel" else self.top(top_k)
        lines = [f"{name} {100 * probability:.0f} %" for name, probability in shown] or ["none"]
        size = max(LEAST_TEXT, drawn.width // 24)
        pen, font = ImageDraw.Draw(drawn, "RGBA"), ImageFont.load_default(size)
        text, corner = "\n".join(lines), (size // 2, size // 2)
        left, top, right, bottom = pen.multiline_textbbox(corner, text, font)
        edge = size // 4
        pen.rectangle((left - edge, top - edge, right + edge, bottom + edge), fill=SHADE)
        pen.multiline_text(corner, text, "white", font)
        return drawn

    def plot(self, path: Path | str | None = None) -> "Figure":
        """The image beside bars of its most probable classes; written to `path` if there is one."""
        from matplotlib.figure import Figure

        from halonet.classification.report_pictures import BLUE
        from halonet.data.pixels import read_image
        from halonet.explain.pictures import INK
        from halonet.files import save_figure

        figure = Figure((6.4, 3), dpi=110, layout="constrained")
        image, bars = figure.subplots(1, 2)
        image.set_axis_off()
        image.imshow(read_image(self.source))
        best = self.top(5)[::-1]
        bars.barh(range(len(best)), [100 * probability for _, probability in best], color=BLUE)
        bars.set_yticks(range(len(best)), [name for name, _ in best], parse_math=False, color=INK)
        bars.set_xlim(0, 100)
        bars.set_xlabel("probability, %")
        bars.spines[["top", "right"]].set_visible(False)
        return save_figure(figure, path)
