"""Frames of videos and cameras, and videos of pictures; PyAV decodes and encodes."""

import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from halonet.data.download import download, is_url
from halonet.files import naming_file

SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
# FFmpeg's input device, and its name of a camera, by Python's name of the system.
CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}")}
CODEC, MILLISECOND = "libx264", Fraction(1, 1000)


@dataclass(frozen=True, eq=False)
class NamedImage:
    """An image that lies in no file of its own; `read_image` takes it as it takes a path.

    Attributes:
        name: what to call it.
        read: gives it.
        time: of a video's frame, in seconds from the first.
        again: gives a frame of a video from its file; None where it can't be read again.
    """

    name: str
    read: Callable[[], Image.Image]
    time: float | None = None
    again: Callable[[], Image.Image] | None = None

    def __call__(self) -> Image.Image:
        return self.read()

    def __str__(self) -> str:
        return self.name

    def without_pixels(self) -> "NamedImage":
        """The same frame, to be read from its file, so that a whole video isn't in memory."""
        return self if self.again is None else replace(self, read=self.again)


class Video:
    """A video in a file or at a URL, or a camera; opened once here, to see that it can be.

    Args:
        place: a path, a URL, which is downloaded for as long as the video or a frame of it is
            there, or the number of a camera, from 0 on.

    Attributes:
        name: what to call it.
        path: of the file; None of a camera.

    Raises:
        FileNotFoundError: there is no such file or camera, or the URL can't be downloaded.
        ValueError: it is no video, or the system's cameras can't be read.
        ModuleNotFoundError: PyAV isn't installed.
    """

    def __init__(self, place: str | int) -> None:
        self.camera = place if isinstance(place, int) else None
        self.name = f"camera {place}" if isinstance(place, int) else place
        self.path: Path | None = None
        import av  # noqa: F401 - before a download

        if isinstance(place, str):
            self.path = self._fetch(place) if is_url(place) else Path(place)
            if not self.path.is_file():
                raise FileNotFoundError(f"no video at {place}")
        self._open().close()

    def __str__(self) -> str:
        return self.name

    def _fetch(self, url: str) -> Path:
        folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return download(url, Path(folder, f"video{Path(urlsplit(url).path).suffix}"))

    def _open(self) -> Any:
        import av

        try:
            if self.path is not None:
                container = av.open(str(self.path))
            elif sys.platform in CAMERAS:
                kind, name = CAMERAS[sys.platform]
                container = av.open(name.format(self.camera), format=kind)
            else:
                raise ValueError("cameras can be read on Linux and macOS alone")
        except av.FFmpegError as error:
            raise self._refuse(error) from None
        if not container.streams.video:
            container.close()
            raise ValueError(f"{self.name} has no frames")
        return container

    def _refuse(self, error: Exception) -> Exception:
        reason = getattr(error, "strerror", None) or error
        if self.path is None:
            return FileNotFoundError(f"can't open {self.name}: {reason}")
        return ValueError(f"{self.name} can't be read as a video: {reason}")

    def read_frames(self, every: int = 1) -> Iterator[NamedImage]:
        """The frames as they come, upright; without an end of a camera.

        Args:
            every: the first, and from there each that is this many frames later.

        Raises:
            ValueError: it has none, is damaged, or `every` isn't 1 or more.
        """
        if every < 1:
            raise ValueError(f"every must be 1 or more, got {every}")
        import av

        first = number = 0
        with self._open() as container:
            try:
                for number, frame in enumerate(container.decode(video=0), start=1):
                    if number == 1:
                        first = frame.time or 0
                    if (number - 1) % every == 0:
                        yield self._name(frame, (frame.time or 0) - first)
            except av.FFmpegError as error:
                raise self._refuse(error) from None
        if number == 0:
            raise ValueError(f"{self.name} has no frames")

    def _name(self, frame: Any, time: float) -> NamedImage:
        image = _turn(frame)
        if self.path is None:
            return NamedImage(self.name, lambda: image, time)
        stamp = frame.pts
        return NamedImage(self.name, lambda: image, time, lambda: self._read_frame(stamp))

    def _read_frame(self, stamp: int) -> Image.Image:
        with self._open() as container:
            container.seek(stamp, stream=container.streams.video[0])  # a key frame before it
            for frame in container.decode(video=0):
                if frame.pts >= stamp:
                    return _turn(frame)
        raise ValueError(f"{self.name} has changed")


def _turn(frame: Any) -> Image.Image:
    """The picture of a frame as a person sees it: telephones store how they were held."""
    return frame.to_image().rotate(frame.rotation, expand=True)


def is_video(place: str | os.PathLike[str]) -> bool:
    """Whether a path or a URL is a video's, by its ending."""
    name = os.fspath(place)
    name = urlsplit(name).path if is_url(name) else name
    return os.path.splitext(name)[1].lower() in SUFFIXES


class VideoWriter:
    """Writes pictures as a video, H.264 in MP4; the file is there once it is closed.

    Sides that are odd lose a row or a column of pixels, which the format doesn't take.

    Args:
        path: of the video; its folder is there.

    Raises:
        ModuleNotFoundError: PyAV isn't installed.
    """

    def __init__(self, path: Path) -> None:
        import av

        self.path = path
        self._temporary = path.with_name(f".{os.getpid()}.tmp.{path.name}")
        with naming_file(path, self._temporary):
            self._container = av.open(str(self._temporary), "w", format="mp4")
        self._stream: Any = None
        self._stamp = -1

    def write(self, picture: Image.Image, time: float) -> None:
        """Add a picture, to be shown from `time` on, in seconds; times rise."""
        import av

        if self._stream is None:
            self._stream = self._container.add_stream(CODEC)
            self._stream.width, self._stream.height = (side // 2 * 2 for side in picture.size)
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = MILLISECOND
        size = (0, 0, self._stream.width, self._stream.height)
        frame = av.VideoFrame.from_image(picture.convert("RGB").crop(size))
        self._stamp = max(self._stamp + 1, round(time / MILLISECOND))
        frame.pts, frame.time_base = self._stamp, MILLISECOND
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what is left; without any picture there is no file."""
        try:
            with naming_file(self.path, self._temporary):
                if self._stream is not None:
                    self._container.mux(self._stream.encode())
                self._container.close()
                if self._stream is not None:
                    os.replace(self._temporary, self.path)
        finally:
            self._temporary.unlink(missing_ok=True)
