"""Explanations of image files: relevance for a class, or the attention of a place."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from halonet.data.pixels import find_crop, prepare_image, read_image
from halonet.data.splits import Source
from halonet.explain.attention import AttentionView, view_attention
from halonet.explain.curves import Curves, find_probabilities, measure_curves
from halonet.explain.relevance import DEFAULT_METHOD, measure_relevance
from halonet.files import save_figure
from halonet.models.classifier import Classifier, name_classes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Explanation:
    """How much each pixel of an image speaks for a class.

    Attributes:
        image: where it comes from.
        class_name: the class that is explained.
        probability: of the class, 0 to 1.
        method: one of `halonet.explain.relevance.METHODS`.
        stage: whose map it read; None for the methods that have no stage.
        crop: left, top, right, bottom of what the model sees, in pixels of the image.
        relevance: [image_size, image_size] over the crop; below 0 where a pixel speaks against.
        curves: what happens to the probability by deleting and inserting the most relevant pixels;
            None where they weren't asked for.
        picture: the crop, in the image's own resolution.
    """

    image: str
    class_name: str
    probability: float
    method: str
    stage: int | None
    crop: tuple[float, float, float, float]
    relevance: Tensor
    curves: Curves | None
    picture: Image.Image

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON has them; the relevance's largest magnitude is 1."""
        scaled = self.relevance / self.relevance.abs().max().clamp(min=1e-30)
        curves: dict[str, Any] = {}
        if self.curves is not None:
            curves = {
                "deletion_area": round(self.curves.deletion_area, 6),
                "insertion_area": round(self.curves.insertion_area, 6),
                "deletion": _round(self.curves.deletion),
                "insertion": _round(self.curves.insertion),
            }
        return {
            "image": self.image,
            "class": self.class_name,
            "probability": round(self.probability, 6),
            "method": self.method,
            "stage": self.stage,
            "crop": [round(edge, 2) for edge in self.crop],
            **curves,
            "relevance": _round(scaled),
        }

    def to_json(self) -> str:
        """The numbers as text."""
        return json.dumps(self.to_dict(), indent=2)

    def draw(self) -> Image.Image:
        """The picture under its positive relevance, bright where it is most."""
        from halonet.explain.pictures import shade_relevance

        return shade_relevance(self.picture, self.relevance)

    def plot(self, path: Path | str | None = None) -> "Figure":
        """The picture beside itself with its relevance; written to `path` where there is one."""
        from halonet.explain.pictures import draw_relevance

        stage = "" if self.stage is None else f", stage {self.stage}"
        titles = (
            f"{self.class_name} {100 * self.probability:.0f} %",
            f"{self.method.replace('_', ' ')}{stage}",
        )
        return save_figure(draw_relevance(self.picture, self.relevance, titles), path)


@dataclass(frozen=True)
class ImageAttention:
    """Where one place of an image looks, in one layer.

    Attributes:
        image: where it comes from.
        at: x and y of the place, in pixels of the image.
        crop: left, top, right, bottom of what the model sees, in pixels of the image.
        view: the pixel, its window and the weights, in pixels of the model's input.
        picture: the crop, in the image's own resolution.
        image_size: pixels on a side of the model's input.
    """

    image: str
    at: tuple[float, float]
    crop: tuple[float, float, float, float]
    view: AttentionView
    picture: Image.Image
    image_size: int

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON has them; `pixel` and `window` are in pixels of the model's input."""
        crop = [round(edge, 2) for edge in self.crop]
        return {
            "image": self.image,
            "at": self.at,
            "crop": crop,
            "image_size": self.image_size,
            **self.view.to_dict(),
        }

    def to_json(self) -> str:
        """The numbers as text."""
        return json.dumps(self.to_dict(), indent=2)

    def plot(self, path: Path | str | None = None) -> "Figure":
        """The pixel and its window on the picture, and the weights on it; written to `path`."""
        from halonet.explain.pictures import draw_attention

        return save_figure(draw_attention(self.picture, self.view, self.image_size), path)


def explain_image(
    model: Classifier,
    source: Source | str,
    *,
    class_name: str | None = None,
    method: str = DEFAULT_METHOD,
    stage: int | None = None,
    curves: bool = False,
) -> Explanation:
    """Explain a class of an image.

    Args:
        model: not fused; it is set to eval mode.
        source: a path or other stored bytes, or a function that gives an image; named by its str().
        class_name: one of the model's classes; None takes the most probable one.
        method, stage: as `measure_relevance` takes them.
        curves: measure the curves too, which run the model 66 times.

    Raises:
        ValueError: an unknown class, method or stage; an image that can't be read.
        FileNotFoundError: there is no such image.
    """
    model.eval()
    names = name_classes(model)
    if not names:
        raise ValueError("the model has no classes to explain")
    if class_name is not None and class_name not in names:
        raise ValueError(f"class must be one of {', '.join(names)}, got {class_name!r}")
    picture = read_image(source, model.in_channels)
    image = _prepare(model, picture)
    probabilities = find_probabilities(model, image[None])[0]
    chosen = int(probabilities.argmax()) if class_name is None else names.index(class_name)
    relevance = measure_relevance(model, image, chosen, method=method, stage=stage)
    crop = find_crop(picture.size, model.preprocessing)
    return Explanation(
        str(source),
        names[chosen],
        probabilities[chosen].item(),
        method,
        stage,
        crop,
        relevance.float().cpu(),
        measure_curves(model, image, relevance, chosen) if curves else None,
        _cut(picture, crop),
    )


def view_image_attention(
    model: Classifier,
    source: Source | str,
    at: tuple[float, float],
    *,
    stage: int | None = None,
    layer: int | None = None,
    head: int | None = None,
) -> ImageAttention:
    """Where a place of an image looks.

    Args:
        model: it is set to eval mode.
        source: a path or other stored bytes, or a function that gives an image; named by its str().
        at: x and y of the place, in pixels of the image from its left and upper border.
        stage, layer, head: as `view_attention` takes them.

    Raises:
        ValueError: a place outside what the model sees; no such stage, layer or head; an image
            that can't be read.
        FileNotFoundError: there is no such image.
    """
    model.eval()
    picture = read_image(source, model.in_channels)
    left, top, right, bottom = crop = find_crop(picture.size, model.preprocessing)
    if not (left <= at[0] < right and top <= at[1] < bottom):
        raise ValueError(
            f"{at[0]:g},{at[1]:g} is outside what the model sees of {source}: x from "
            f"{left:.0f} to {right:.0f}, y from {top:.0f} to {bottom:.0f}"
        )
    size = model.preprocessing.image_size
    point = (size * (at[0] - left) / (right - left), size * (at[1] - top) / (bottom - top))
    view = view_attention(
        model, _prepare(model, picture), point, stage=stage, layer=layer, head=head
    )
    return ImageAttention(str(source), at, crop, view, _cut(picture, crop), size)


def _prepare(model: Classifier, picture: Image.Image) -> Tensor:
    device = next(model.parameters()).device
    return prepare_image(lambda: picture, model.preprocessing, model.in_channels).to(device)


def _cut(picture: Image.Image, crop: tuple[float, float, float, float]) -> Image.Image:
    left, top, right, bottom = (round(edge) for edge in crop)
    return picture.crop((left, top, right, bottom))


def _round(numbers: Tensor) -> Any:
    return numbers.double().round(decimals=4).tolist()
