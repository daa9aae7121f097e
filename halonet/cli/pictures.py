"""Pictures that commands write: a file for each image, and a video for each video."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from halonet.cli.parser import is_camera
from halonet.files import write_atomically

if TYPE_CHECKING:
    from PIL import Image

    from halonet.inference.video import VideoWriter


def name_pictures(given: Sequence[str], images: Sequence[Any]) -> dict[Any, Path]:
    """The name of each image's picture, no two alike: sub/a.jpg.png for photos/sub/a.jpg.

    The names start below the folder that was given; where several folders or images were given,
    below the innermost folder that holds them all. Of a URL it is the last part. What is drawn of a
    video is a video: walk.mov.mp4. An image that was given twice is there once.

    Args:
        given: images and folders, as the user named them.
        images: the images among and in them, as `list_given_images` gives them.
    """
    from halonet.data.download import is_url
    from halonet.inference.video import Video

    places = [
        Path(os.path.abspath(place)) for place in given if not (is_url(place) or is_camera(place))
    ]
    folders = [place if place.is_dir() else place.parent for place in places]
    root = os.path.commonpath(folders) if folders else ""
    seen: set[str] = set()
    taken: set[Path] = set()
    names: dict[Any, Path] = {}
    for image in images:
        name = str(image)
        camera = getattr(image, "camera", None)
        if is_url(name):
            place = Path(Path(urlsplit(name).path).name or "image")
        elif camera is not None:
            place = Path(f"camera-{camera}")
        else:
            name = os.path.abspath(name)
            place = Path(name).relative_to(root)
        if name in seen:
            continue
        seen.add(name)
        ending = ".mp4" if isinstance(image, Video) else ".png"
        picture, number = place.with_name(f"{place.name}{ending}"), 1
        while picture in taken:  # by another URL
            number += 1
            picture = place.with_name(f"{place.stem}-{number}{place.suffix}{ending}")
        taken.add(picture)
        names[image] = picture
    return names


class PictureWriter:
    """Writes the pictures of images into a folder, and those of a video's frames as a video.

    Leaving its context ends the video that is being written, whatever the reason.

    Args:
        folder: to write to; it is made with the first picture.
        names: of the pictures, from `name_pictures`.
    """

    def __init__(self, folder: Path, names: Mapping[Any, Path]) -> None:
        self.folder = folder
        self._names = {str(image): name for image, name in names.items()}
        self._video: VideoWriter | None = None

    def __enter__(self) -> "PictureWriter":
        return self

    def __exit__(self, *reason: object) -> None:
        self._end_video()

    def _end_video(self) -> None:
        video, self._video = self._video, None
        if video is not None:
            video.close()

    def write(self, source: Any, picture: "Image.Image", time: float | None) -> Path:
        """Write the picture of an image, or of the frame of a video at a time in seconds.

        Returns:
            The file.
        """
        from halonet.inference.video import VideoWriter

        path = self.folder / self._names[str(source)]
        path.parent.mkdir(parents=True, exist_ok=True)
        if time is None:
            write_atomically(path, picture.save)
            return path
        if self._video is None or self._video.path != path:
            self._end_video()
            self._video = VideoWriter(path)
        self._video.write(picture, time)
        return path
