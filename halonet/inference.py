"""A trained classifier in a few lines: load, predict, embed, explain."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from halonet.devices import AUTO, find_device
from halonet.models.classifier import Classifier
from halonet.models.pretrained import load_model

if TYPE_CHECKING:
    from PIL import Image

    from halonet.classification.prediction import Prediction
    from halonet.data.splits import Source
    from halonet.explain.explanation import Explanation, ImageAttention


class NamedImage(NamedTuple):
    """An image to work on, and what to call it."""

    name: str
    source: "Source"


def load_run(path: str | os.PathLike[str], *, device: str = AUTO) -> "LoadedRun":
    """Load a trained classifier, for use.

    Args:
        path: a run folder, a safetensors file that `halonet.save_model` wrote, or a folder of the
            Hub's `save_pretrained`.
        device: auto is the GPU where there is one; else as `halonet predict --device` has it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it isn't a classifier of ours; no such device.

    Example:
        >>> run = halonet.load_run("runs/finetune")
        >>> run.predict("photo.jpg").top(3)
        >>> run.explain("photo.jpg").plot("why.png")
    """
    return LoadedRun(load_model(path), device=device)


class LoadedRun:
    """A classifier that takes images as they come.

    An image is a path, a URL (http or https), a PIL image, an array [height, width],
    [height, width, 1, 3 or 4] or a tensor [1, 3 or 4, height, width]; arrays and tensors have bytes
    or numbers from 0 to 1. Several images are a folder, a list of any of these, or a tensor or
    array with a first dimension more. Every image goes through the model's own preprocessing.

    Needs `pip install 'halonet[train]'`.

    Args:
        model: a `HaloNet` or timm's, not fused.
        device: see `load_run`.

    Attributes:
        model: in eval mode, on the device.
        class_names: the classes in order, their numbers where the model has no names.
        device: that it runs on.
    """

    def __init__(self, model: Classifier, *, device: str = AUTO) -> None:
        self.device = find_device(device)
        self.model = model.eval().to(self.device)
        self.class_names = model.class_names or tuple(map(str, range(model.num_classes)))
        self._fused = self.model.fuse()

    def __repr__(self) -> str:
        names = ", ".join(self.class_names[:5]) + (", ..." if len(self.class_names) > 5 else "")
        return f"LoadedRun({self.model.variant.name}: {names})"

    def predict(self, images: Any, *, mirror: bool = False) -> "Prediction | list[Prediction]":
        """The probabilities of the classes of an image, or a list of them for several images.

        Args:
            images: see the class.
            mirror: take the mean of the logits of each image and its mirror image.

        Raises:
            FileNotFoundError: no image there, or a URL that can't be read.
            TypeError, ValueError: no image, or an array or tensor of another shape or range.
        """
        from halonet.classification.predict import predict
        from halonet.classification.prediction import Prediction

        found, single = list_images(images)
        rows = predict(self._fused, [image.source for image in found], mirror=mirror)
        predictions = [
            Prediction(
                image.name,
                self.class_names,
                _require_readable(image, row),
                self.model.task,
                image.source,
            )
            for image, (_, row) in zip(found, rows, strict=True)
        ]
        return predictions[0] if single else predictions

    def embed(self, images: Any) -> Tensor:
        """Pooled features [num_features] of an image, or [images, num_features] of several.

        Args:
            images: see the class.

        Raises:
            FileNotFoundError, TypeError, ValueError: as `predict`.
        """
        from halonet.classification.predict import embed

        found, single = list_images(images)
        rows = embed(self._fused, [image.source for image in found])
        features = torch.stack(
            [_require_readable(image, row) for image, (_, row) in zip(found, rows, strict=True)]
        )
        return features[0] if single else features

    def explain(
        self,
        image: Any,
        *,
        class_name: str | None = None,
        method: str | None = None,
        stage: int | None = None,
        curves: bool = False,
    ) -> "Explanation":
        """How much each pixel of an image speaks for a class.

        Args:
            image: one, see the class.
            class_name: None takes the most probable one.
            method, stage: as `halonet explain` has them; docs/explain.md compares the methods.
            curves: measure the deletion and insertion curves too, which run the model 66 times.

        Raises:
            FileNotFoundError, TypeError: as `predict`.
            ValueError: as `predict`; an unknown class, method or stage.
        """
        from halonet.explain.explanation import explain_image
        from halonet.explain.relevance import DEFAULT_METHOD

        name, source = _take_one(image)
        return explain_image(
            self.model,
            source,
            name=name,
            class_name=class_name,
            method=method or DEFAULT_METHOD,
            stage=stage,
            curves=curves,
        )

    def attention(
        self,
        image: Any,
        at: tuple[float, float],
        *,
        stage: int | None = None,
        layer: int | None = None,
        head: int | None = None,
    ) -> "ImageAttention":
        """Where a place of an image looks.

        Args:
            image: one, see the class.
            at: x and y of the place in pixels of the image, from its left and upper border.
            stage, layer, head: which attention, counted from 1. None: the last stage that has
                some, its last layer, the mean over the heads.

        Raises:
            FileNotFoundError, TypeError: as `predict`.
            ValueError: as `predict`; a place outside what the model sees; no such attention.
        """
        from halonet.explain.explanation import view_image_attention

        name, source = _take_one(image)
        return view_image_attention(
            self.model, source, at, name=name, stage=stage, layer=layer, head=head
        )


def list_images(images: Any) -> tuple[list[NamedImage], bool]:
    """Images as they come, see `LoadedRun`, and whether it is a single one rather than several.

    Raises:
        FileNotFoundError: a URL that can't be read. ValueError: a folder without images, an empty
        list; an array or tensor of another shape or range. TypeError: something else.
    """
    from halonet.data.image_files import find_images

    if getattr(images, "ndim", 0) == 4:
        images = list(images)
    if isinstance(images, (list, tuple)):
        if not images:
            raise ValueError("images must be one or more, got none")
        found = [name_image(image, number) for number, image in enumerate(images, start=1)]
        return found, False
    if isinstance(images, (str, os.PathLike)) and Path(images).is_dir():
        paths, left_out = find_images(Path(images))
        if not paths:
            found = f"; left out: {left_out}" if left_out.counts else ""
            raise ValueError(f"{images} holds no images{found}")
        return [NamedImage(str(path), path) for path in paths], False
    return [name_image(images, 1)], True


def name_image(image: Any, number: int) -> NamedImage:
    """One image as it comes; those without a name are called image 1, image 2, ..."""
    from PIL import Image

    name = f"image {number}"
    if isinstance(image, (str, os.PathLike)):
        from halonet.data.download import is_url

        place = os.fspath(image)
        if is_url(place):
            content = fetch_image(place)
            return NamedImage(place, lambda: content)
        return NamedImage(place, Path(place))
    if isinstance(image, Image.Image):
        return NamedImage(name, lambda: image)
    if isinstance(image, Tensor):
        if image.ndim != 3:
            raise ValueError(
                f"{name}: a tensor must be [1, 3 or 4, height, width], got {list(image.shape)}"
            )
        image = image.detach().cpu().permute(1, 2, 0).numpy()
    elif not (hasattr(image, "__array_interface__") and hasattr(image, "shape")):
        raise TypeError(
            f"{name} must be a path, a URL, a PIL image, an array or a tensor, "
            f"got {type(image).__name__}"
        )
    picture = picture_from_array(image, name)
    return NamedImage(name, lambda: picture)


def picture_from_array(pixels: Any, name: str) -> "Image.Image":
    """An array [height, width] or [height, width, 1, 3 or 4] as a picture.

    Raises:
        ValueError: another shape; numbers that aren't bytes or from 0 to 1.
    """
    import numpy as np
    from PIL import Image

    pixels = np.asarray(pixels)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))) or not (
        pixels.size
    ):
        raise ValueError(
            f"{name} must have 1, 3 or 4 channels, last in an array and first in a tensor, "
            f"got an array of {list(pixels.shape)}"
        )
    if pixels.dtype != np.uint8:
        if pixels.dtype.kind != "f" or not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(
                f"{name} must have bytes or floats from 0 to 1, got {pixels.dtype} from "
                f"{pixels.min()} to {pixels.max()}"
            )
        pixels = (255 * pixels).round().astype(np.uint8)
    return Image.fromarray(pixels)


def fetch_image(url: str) -> "Image.Image":
    """The image at a URL; nothing is kept on disk.

    Raises:
        FileNotFoundError: it can't be downloaded. ValueError: it is no image.
    """
    from halonet.data.download import download
    from halonet.data.pixels import read_image

    with tempfile.TemporaryDirectory() as folder:
        path = download(url, Path(folder, "image"), show_progress=False)
        try:
            return read_image(path)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), url)) from None


def _require_readable(image: NamedImage, row: Tensor | str) -> Tensor:
    if isinstance(row, str):
        kind = ValueError
        if isinstance(image.source, Path) and not image.source.exists():
            kind = FileNotFoundError
        raise kind(row)
    return row


def _take_one(image: Any) -> NamedImage:
    found, single = list_images(image)
    if not single:
        raise ValueError(f"image must be one, got {len(found)}")
    return found[0]
