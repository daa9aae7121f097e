"""Images as they come, for models that are used: paths, URLs, videos, pictures, arrays, tensors."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

    from halonet.data.splits import Source
    from halonet.inference.video import NamedImage, Video

Result = TypeVar("Result")


def list_images(
    images: Any, *, live: bool = False
) -> tuple[list["Path | NamedImage | Video"], bool]:
    """Images as they come, see `load_run`, and whether it is a single one rather than several.

    Of a camera it is a picture that it takes now; where `live`, the camera itself.

    Raises:
        FileNotFoundError: a URL that can't be read, no such video or camera. ValueError: a folder
        without images, an empty list; an array or tensor of another shape or range; a video that
        can't be read. TypeError: something else. ModuleNotFoundError: a video without PyAV.
    """
    from halonet.data.image_files import find_images
    from halonet.inference.video import Video

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
        return [*paths], False
    if live and is_camera(images):
        return [Video(images)], False
    image = name_image(images, 1)
    return [image], not isinstance(image, Video)


def is_camera(image: Any) -> bool:
    """Whether an image is the number of a camera."""
    return isinstance(image, int) and not isinstance(image, bool)


def name_image(image: Any, number: int) -> "Path | NamedImage | Video":
    """One image as it comes; those without a name are called image 1, image 2, ..."""
    from PIL import Image

    from halonet.inference.video import NamedImage, Video

    name = f"image {number}"
    if isinstance(image, (str, os.PathLike)):
        return open_place(os.fspath(image))
    if is_camera(image):
        return next(Video(image).read_frames())
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
            f"{name} must be a path, a URL, a camera's number, a PIL image, an array or a tensor, "
            f"got {type(image).__name__}"
        )
    picture = picture_from_array(image, name)
    return NamedImage(name, lambda: picture)


def open_place(place: str) -> "Path | NamedImage | Video":
    """An image or a video by its path or URL; an image at a URL is downloaded.

    Raises:
        FileNotFoundError, ValueError, ModuleNotFoundError: as `list_images`.
    """
    from halonet.data.download import is_url
    from halonet.inference.video import NamedImage, Video, is_video

    if is_video(place):
        return Video(place)
    if not is_url(place):
        return Path(place)
    content = fetch_image(place)
    return NamedImage(place, lambda: content)


def read_frames(
    images: Iterable["Path | NamedImage | Video"], every: int = 1
) -> Iterator["Source"]:
    """The images, and in place of each video its frames; see `Video.read_frames`."""
    from halonet.inference.video import Video

    for image in images:
        if isinstance(image, Video):
            yield from image.read_frames(every)
        else:
            yield image


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


def forget_pixels(source: "Source") -> "Source":
    """The image, to be read again where it can be: a list of results holds no whole video."""
    from halonet.inference.video import NamedImage

    return source.without_pixels() if isinstance(source, NamedImage) else source


def take_one(image: Any) -> "Path | NamedImage":
    """The only one of the images that `list_images` finds.

    Raises:
        As `list_images`. ValueError: there are several, or it is a video.
    """
    from halonet.inference.video import Video

    found, single = list_images(image)
    if isinstance(found[0], Video):
        raise ValueError(f"image must be one, got the video {found[0]}")
    if not single:
        raise ValueError(f"image must be one, got {len(found)}")
    return found[0]


def require_readable(source: "Source", result: Result | str) -> Result:
    """What a model says of an image.

    Raises:
        FileNotFoundError, ValueError: it is a reason why the image can't be read.
    """
    if isinstance(result, str):
        kind = ValueError
        if isinstance(source, Path) and not source.exists():
            kind = FileNotFoundError
        raise kind(result)
    return result
