"""Trained models by their place: a run, a file, a repository of the Hub."""

import os
from pathlib import Path

from safetensors import SafetensorError

from halonet.devices import AUTO
from halonet.inference.classifier import LoadedClassifier
from halonet.inference.detector import LoadedDetector
from halonet.models import creation
from halonet.models.metadata import HUB_NAME, find_checkpoint, read_metadata
from halonet.models.pretrained import load_model
from halonet.models.variants import get_variant

HUB = "hf-hub:"  # as timm has it


def load_run(
    model: str | os.PathLike[str], *, device: str = AUTO
) -> LoadedClassifier | LoadedDetector:
    """Load a trained classifier or detector, for use.

    What it is used on is an image or several. An image is a path, a URL (http or https), a PIL
    image, an array [height, width] or [height, width, 1, 3 or 4], a tensor
    [1, 3 or 4, height, width], or the number of a camera, 0 or more, which takes a picture; arrays
    and tensors have bytes or numbers from 0 to 1. Several images are a folder, a video's path or
    URL, a list of any of these, or a tensor or array with a first dimension more. Every image goes
    through the model's own preprocessing.

    Args:
        model: a run folder, a safetensors file of `halonet.save_model` or of a detector, a folder
            of the Hub's `save_pretrained`, hf-hub:USER/REPOSITORY, or halonet_tiny, whose weights
            come with the package.
        device: auto is the GPU where there is one; else as `halonet predict --device` has it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it isn't a model of ours; no such device.
        ModuleNotFoundError: a detector without `halonet[detection]`, a repository of the Hub
            without `halonet[hub]`.
        ConnectionError: the Hub can't be reached, or has no such repository.

    Example:
        >>> run = halonet.load_run("runs/finetune")
        >>> run.predict("photo.jpg").top(3)
        >>> run.explain("photo.jpg").plot("why.png")
    """
    path = find_weights(model)
    if not is_detector(path):
        return LoadedClassifier(load_model(path), device=device)
    from halonet.detection.detector import load_detector

    return LoadedDetector(load_detector(path), device=device)


def find_weights(model: str | os.PathLike[str]) -> Path:
    """The file of a model's weights; see `load_run`."""
    name = os.fspath(model)
    if name.startswith(HUB):
        return _fetch(name.removeprefix(HUB))
    if name in creation.PACKAGED and not os.path.exists(name):
        return Path(creation.find_weights(get_variant(name), True))
    return find_checkpoint(Path(name))


def is_detector(path: Path) -> bool:
    """Whether a file holds a detector of ours."""
    try:
        return "halonet_detector" in read_metadata(path)
    except SafetensorError:  # loading it says what is wrong
        return False


def _fetch(repository: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(hf_hub_download(repository, HUB_NAME))
    except HFValidationError as error:
        raise ValueError(f"{HUB}{repository} is no name of the Hub: {error}") from None
    except Exception as error:  # of any of the Hub's layers
        reason = str(error).partition("\n")[0]
        raise ConnectionError(f"can't fetch {HUB}{repository}: {reason}") from None
