"""An exported detector, run by onnxruntime: for `halonet detect` without torch's model."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from halonet.detection.options import make_options
from halonet.export.description import KEY
from halonet.export.onnx_classifier import open_session


class OnnxDetector(nn.Module):
    """A detector from a file that `export_detector` wrote. It runs on the CPU.

    Attributes:
        path: of the file.
        name, parameter_count, num_classes, class_names, category_ids, options: as of a `Detector`.
    """

    def __init__(self, path: Path, session: Any, facts: Mapping[str, Any]) -> None:
        super().__init__()
        self.path = path
        self.name: str = facts["model"]
        self.parameter_count: int = facts["parameters"]
        self.num_classes: int = facts["num_classes"]
        names, ids = facts["class_names"], facts["category_ids"]
        self.class_names: tuple[str, ...] | None = None if names is None else tuple(names)
        self.category_ids: tuple[int, ...] | None = None if ids is None else tuple(ids)
        self.options = make_options(facts["options"])
        self._session = session

    def detect(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """What `Detector.detect` finds in images [3, height, width] of bytes divided by 255.

        Raises:
            ValueError: onnxruntime can't run the file.
        """
        return [self._detect_one(image) for image in images]

    def _detect_one(self, image: Tensor) -> dict[str, Tensor]:
        photo = (255 * image).round().byte().permute(1, 2, 0)
        names = [output.name for output in self._session.get_outputs()]
        try:
            found = self._session.run(names, {"photos": photo[None].contiguous().numpy()})
        except Exception as error:  # onnxruntime's own, which have no base of theirs
            raise ValueError(f"{self.path} can't be run by onnxruntime: {error}") from None
        return {name: torch.from_numpy(one) for name, one in zip(names, found, strict=True)}


def load_onnx_detector(path: str | os.PathLike[str]) -> OnnxDetector:
    """Open a file that `export_detector` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no ONNX file that onnxruntime can run, or not a detector of ours.
        ModuleNotFoundError: onnxruntime is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    session = open_session(path)
    metadata = session.get_modelmeta().custom_metadata_map
    facts = {
        name.removeprefix(KEY): json.loads(text)
        for name, text in metadata.items()
        if name.startswith(KEY)
    }
    try:
        return OnnxDetector(path, session, facts)
    except KeyError as error:
        raise ValueError(
            f"{path} is no detector of halonet export: its metadata has no '{KEY}{error.args[0]}'"
        ) from None
