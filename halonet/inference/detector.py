"""A trained detector that takes images as they come."""

import dataclasses
from typing import TYPE_CHECKING, Any

from halonet.devices import AUTO, find_device
from halonet.inference.images import list_images, require_readable

if TYPE_CHECKING:
    from halonet.detection.detector import Detector
    from halonet.detection.predict import Objects


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

    def predict(self, images: Any, *, score_threshold: float = 0.5) -> "Objects | list[Objects]":
        """The objects in an image, or a list of them for several images.

        Args:
            images: see `load_run`.
            score_threshold: objects with lower scores, 0 to 1, are left out.

        Raises:
            FileNotFoundError: no image there, or a URL that can't be read.
            TypeError, ValueError: no image, an array or tensor of another shape or range, or
                `score_threshold` isn't from 0 to 1.
        """
        from halonet.detection.predict import predict

        found, single = list_images(images)
        rows = predict(
            self._fused, [image.source for image in found], score_threshold=score_threshold
        )
        everything = [
            dataclasses.replace(require_readable(image, row), image=image.name)
            for image, (_, row) in zip(found, rows, strict=True)
        ]
        return everything[0] if single else everything
