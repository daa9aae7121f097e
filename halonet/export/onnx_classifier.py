"""An exported classifier, run by onnxruntime: for predictions and scores without torch's model."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from halonet.export.description import ExportDescription, from_metadata

# Pixels of a batch that a runtime takes at once. It runs an operator on all images before the next,
# and what no cache holds is slow.
PIXELS_AT_ONCE = 2**16


class OnnxClassifier(nn.Module):
    """A classifier from a file that `export_model` wrote. It runs on the CPU.

    Attributes:
        path: of the file.
        description: what the file says of its model.
        name: of the model's variant.
        parameter_count: of the model; the object has no parameters.
        num_classes, in_channels, preprocessing, class_names, task, takes_photos: as of a
            `Classifier`.
    """

    def __init__(self, path: Path, session: Any, description: ExportDescription) -> None:
        super().__init__()
        self.path = path
        self.description = description
        self.name = description.model
        self.parameter_count = description.parameters
        self.num_classes = description.num_classes
        self.in_channels = description.in_channels
        self.preprocessing = description.preprocessing
        self.class_names = description.class_names
        self.task = description.task
        self.takes_photos = description.with_preprocessing
        self._session = session

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, num_classes] of images [batch, in_channels, height, width].

        They are prepared, or of a file that takes photos bytes of any size. They are run by a few,
        see `count_at_once`; a file for one batch size runs as often as it takes, the last time on
        some blank images.

        Raises:
            ValueError: the file is for images of another shape.
        """
        (wanted,) = self._session.get_inputs()
        count, *shape = wanted.shape
        height, width = images.shape[-2:]
        if self.takes_photos:
            images = images.byte().permute(0, 2, 3, 1)
        fits = len(shape) == images.dim() - 1 and all(
            isinstance(expected, str) or expected == size
            for expected, size in zip(shape, images.shape[1:], strict=True)
        )
        if not fits:
            raise ValueError(
                f"{self.path} takes {wanted.name} of shape {shape}, got {list(images.shape[1:])}"
            )
        if isinstance(count, str):
            parts = images.split(count_at_once(height, width))
            return torch.cat([self._run(part) for part in parts])
        missing = -len(images) % count
        blank = images.new_zeros(missing, *images.shape[1:])
        parts = torch.cat([images, blank]).split(count)
        return torch.cat([self._run(part) for part in parts])[: len(images)]

    def _run(self, images: Tensor) -> Tensor:
        (wanted,) = self._session.get_inputs()
        given = {wanted.name: images.contiguous().numpy()}
        try:
            return torch.from_numpy(self._session.run(None, given)[0])
        except Exception as error:  # onnxruntime's own, which have no base of theirs
            raise ValueError(f"{self.path} can't be run by onnxruntime: {error}") from None


def load_onnx(path: str | os.PathLike[str]) -> OnnxClassifier:
    """Open a file that `export_model` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no ONNX file that onnxruntime can run, or not one of ours.
        ModuleNotFoundError: onnxruntime is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    session = open_session(path)
    try:
        description = from_metadata(session.get_modelmeta().custom_metadata_map)
    except ValueError as error:
        raise ValueError(f"{path} was not written by halonet export: {error}") from None
    return OnnxClassifier(path, session, description)


def count_at_once(height: int, width: int) -> int:
    """Images of a height and width that are best given to a runtime at once: one, or as many as
    have `PIXELS_AT_ONCE` together."""
    return max(1, PIXELS_AT_ONCE // (height * width))


def run_session(session: Any, given: Any) -> Any:
    """The one output of a session for its one input, both arrays."""
    (result,) = session.run(None, {session.get_inputs()[0].name: given})
    return result


def open_session(path: Path) -> Any:
    """An onnxruntime session of a file, on the CPU, with as many threads as torch takes.

    Raises:
        ValueError: onnxruntime can't read the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only: they are raised
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise ValueError(f"{path} can't be read by onnxruntime: {error}") from None
