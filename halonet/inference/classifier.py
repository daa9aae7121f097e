"""A trained classifier that takes images as they come: predict, embed, explain, export."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from halonet.devices import AUTO, find_device
from halonet.inference.images import (
    forget_pixels,
    list_images,
    read_frames,
    require_readable,
    take_one,
)
from halonet.models.classifier import Classifier, name_classes

if TYPE_CHECKING:
    from halonet.classification.prediction import Prediction
    from halonet.explain.explanation import Explanation, ImageAttention
    from halonet.explain.receptive_field import ReceptiveField
    from halonet.explain.tables import RelativeTables
    from halonet.export.formats import ExportReport
    from halonet.inference.video import NamedImage, Video

BATCH_SIZE = 8  # small: a video's frames of a batch are in memory together


class LoadedClassifier:
    """A classifier that takes images as they come, see `halonet.load_run`.

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
        self.class_names = name_classes(model)
        self._fused = self.model.fuse()

    def __repr__(self) -> str:
        names = ", ".join(self.class_names[:5]) + (", ..." if len(self.class_names) > 5 else "")
        return f"LoadedClassifier({self.name}: {names})"

    @property
    def name(self) -> str:
        """The name of the model's variant."""
        return self.model.variant.name

    def predict(
        self, images: Any, *, every: int = 1, mirror: bool = False
    ) -> "Prediction | list[Prediction]":
        """The probabilities of the classes of an image, or a list of them for several images.

        Args:
            images: see `load_run`.
            every: of a video the first frame, and from there each that is this many frames later.
            mirror: take the mean of the logits of each image and its mirror image.

        Raises:
            FileNotFoundError: no image there, or a URL that can't be read.
            TypeError, ValueError: no image, or an array or tensor of another shape or range.
            ModuleNotFoundError: a video or a camera without `halonet[video]`.
        """
        found, single = list_images(images)
        predictions = [
            replace(one, source=forget_pixels(one.source))
            for one in self._predict(found, every, mirror, batch_size=BATCH_SIZE)
        ]
        return predictions[0] if single else predictions

    def stream(
        self, images: Any, *, every: int = 1, mirror: bool = False
    ) -> Iterator["Prediction"]:
        """Predictions one by one, as the images come: of a long video, or a camera without an end.

        Args:
            images: see `load_run`; the number of a camera gives frame after frame.
            every: as `predict` has it.
            mirror: likewise.

        It raises as `predict` does.

        Example:
            >>> for prediction in run.stream(0):
            ...     print(prediction.time, prediction.class_name)
        """
        found = list_images(images, live=True)[0]
        return self._predict(found, every, mirror, batch_size=1)

    def _predict(
        self,
        found: Iterable["Path | NamedImage | Video"],
        every: int,
        mirror: bool,
        *,
        batch_size: int,
    ) -> Iterator["Prediction"]:
        from halonet.classification.predict import predict
        from halonet.classification.prediction import Prediction

        sources = read_frames(found, every)
        for source, row in predict(self._fused, sources, batch_size=batch_size, mirror=mirror):
            yield Prediction(
                str(source),
                self.class_names,
                require_readable(source, row),
                self.model.task,
                source,
                getattr(source, "time", None),
            )

    def embed(self, images: Any) -> Tensor:
        """Pooled features [num_features] of an image, or [images, num_features] of several.

        Args:
            images: see `load_run`; of a video, all frames.

        Raises:
            FileNotFoundError, TypeError, ValueError, ModuleNotFoundError: as `predict`.
        """
        from halonet.classification.predict import embed

        found, single = list_images(images)
        rows = embed(self._fused, read_frames(found), batch_size=BATCH_SIZE)
        features = torch.stack([require_readable(source, row) for source, row in rows])
        return features[0] if single else features

    def export(self, path: str | os.PathLike[str], **options: Any) -> "ExportReport":
        """Write the model to a file that runs without halonet: `halonet.export_model`.

        Args:
            path: of the file; there must be none yet.
            **options: of `halonet.export_model`.

        Raises:
            FileExistsError, ModuleNotFoundError, OSError, TypeError, ValueError: as there.
        """
        from halonet.export.formats import export_model

        return export_model(self.model, path, **options)

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
            image: one, see `load_run`.
            class_name: None takes the most probable one.
            method: as `halonet explain` has it; docs/explain.md compares the methods.
            stage: likewise.
            curves: measure the deletion and insertion curves too, which run the model 66 times.

        Raises:
            FileNotFoundError, TypeError: as `predict`.
            ValueError: as `predict`; an unknown class, method or stage.
        """
        from halonet.explain.explanation import explain_image
        from halonet.explain.relevance import DEFAULT_METHOD

        source = take_one(image)
        return explain_image(
            self.model,
            source,
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
            image: one, see `load_run`.
            at: x and y of the place in pixels of the image, from its left and upper border.
            stage: of the attention, from 1; None takes the last that has some.
            layer: of the stage's attention layers, from 1; None takes the last.
            head: from 1; None takes the mean over the heads.

        Raises:
            FileNotFoundError, TypeError: as `predict`.
            ValueError: as `predict`; a place outside what the model sees; no such attention.
        """
        from halonet.explain.explanation import view_image_attention

        source = take_one(image)
        return view_image_attention(self.model, source, at, stage=stage, layer=layer, head=head)

    def tables(self, images: Any) -> "RelativeTables":
        """What the learned relative tables add to the scores at each offset, by layer and head.

        Args:
            images: see `load_run`; the result is the mean over their queries.

        Raises:
            FileNotFoundError, TypeError, ModuleNotFoundError: as `predict`.
            ValueError: as `predict`; a model without relative tables.
        """
        from halonet.explain.tables import read_tables

        return read_tables(self.model, read_frames(list_images(images)[0]))

    def receptive_field(self, images: Any) -> "ReceptiveField":
        """How much each pixel moves the middle of each stage's map, as its mean gradient.

        Args:
            images: see `load_run`; the result is the mean over them.

        Raises:
            FileNotFoundError, TypeError, ValueError, ModuleNotFoundError: as `predict`.
        """
        from halonet.explain.receptive_field import measure_receptive_field

        return measure_receptive_field(self.model, read_frames(list_images(images)[0]))
