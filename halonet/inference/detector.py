"""A trained detector that takes images as they come."""

import dataclasses
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halonet.devices import AUTO, find_device
from halonet.inference.images import (
    forget_pixels,
    list_images,
    read_frames,
    require_readable,
)

if TYPE_CHECKING:
    from halonet.detection.detector import Detector
    from halonet.detection.predict import Objects
    from halonet.export.formats import ExportReport
    from halonet.inference.video import NamedImage, Video


class LoadedDetector:
    """A detector that takes images as they come, see `halonet.load_run`.

    Needs `pip install 'halonet[detection]'`.

    Args:
        model: as `halonet.detection.detector.create_detector` makes it, not fused.
        device: see `load_run`.

    Attributes:
        model: in eval mode, on the device.
        class_names: the classes of the labels 1, 2, ..., their numbers where the model has no
            names.
        device: that it runs on.
    """

    def __init__(self, model: "Detector", *, device: str = AUTO) -> None:
        from halonet.detection.predict import name_categories

        self.device = find_device(device)
        self.model = model.eval().to(self.device)
        self.class_names = tuple(category.name for category in name_categories(model))
        self._fused = self.model.fuse()

    def __repr__(self) -> str:
        names = ", ".join(self.class_names[:5]) + (", ..." if len(self.class_names) > 5 else "")
        return f"LoadedDetector({self.name}: {names})"

    @property
    def name(self) -> str:
        """The name of the backbone's variant."""
        return self.model.name

    def predict(
        self, images: Any, *, every: int = 1, score_threshold: float = 0.5
    ) -> "Objects | list[Objects]":
        """The objects in an image, or a list of them for several images.

        Args:
            images: see `load_run`.
            every: of a video the first frame, and from there each that is this many frames later.
            score_threshold: objects with lower scores, 0 to 1, are left out.

        Raises:
            FileNotFoundError: no image there, or a URL that can't be read.
            TypeError, ValueError: no image, an array or tensor of another shape or range, or
                `score_threshold` isn't from 0 to 1.
            ModuleNotFoundError: a video or a camera without `halonet[video]`.
        """
        found, single = list_images(images)
        everything = [
            dataclasses.replace(one, source=forget_pixels(one.source))
            for one in self._predict(found, every, score_threshold)
        ]
        return everything[0] if single else everything

    def stream(
        self, images: Any, *, every: int = 1, score_threshold: float = 0.5
    ) -> Iterator["Objects"]:
        """Objects image by image, as they come: of a long video, or a camera without an end.

        Args:
            images: see `load_run`; the number of a camera gives frame after frame.
            every: as `predict` has it.
            score_threshold: likewise.

        It raises as `predict` does.
        """
        return self._predict(list_images(images, live=True)[0], every, score_threshold)

    def export(self, path: str | os.PathLike[str], **options: Any) -> "ExportReport":
        """Write the detector to an ONNX file: `halonet.export.detector.export_detector`.

        Args:
            path: of the file; there must be none yet.
            **options: of `export_detector`.

        Raises:
            FileExistsError, ModuleNotFoundError, OSError, TypeError, ValueError: as there.
        """
        from halonet.export.detector import export_detector

        return export_detector(self.model, path, **options)

    def _predict(
        self,
        found: Iterable["Path | NamedImage | Video"],
        every: int,
        score_threshold: float,
    ) -> Iterator["Objects"]:
        from halonet.detection.predict import predict

        sources = read_frames(found, every)
        for source, row in predict(self._fused, sources, score_threshold=score_threshold):
            yield require_readable(source, row)
