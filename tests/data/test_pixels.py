"""From a file to pixels: modes, depths, transparency, and what is no image."""

import io

import numpy as np
import pytest
from PIL import Image

from halonet.data.pixels import read_image, resize_short_side

ROTATED_BY_90 = 6  # EXIF's orientation: the camera was turned


def pixel(path, place=(0, 0), in_channels=3):
    return read_image(path, in_channels).getpixel(place)


def test_grey_becomes_colour_and_colour_grey(tmp_path):
    path = tmp_path / "grey.png"
    Image.new("L", (3, 2), 77).save(path)
    assert pixel(path) == (77, 77, 77)
    assert pixel(path, in_channels=1) == 77


@pytest.mark.parametrize(("stored", "seen"), [(0, 0), (200, 1), (32896, 128), (65535, 255)])
def test_sixteen_bits_scale_to_eight(tmp_path, stored, seen):
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((2, 3), stored, np.uint16)).save(path)
    assert pixel(path) == (seen,) * 3


@pytest.mark.parametrize(
    ("values", "seen"),
    [([0.0, 1.0], [0, 255]), ([0.0, 200.0], [0, 200]), ([np.nan, 1.0], [0, 255])],
)
def test_float_tiff_keeps_its_scale(tmp_path, values, seen):
    path = tmp_path / "float.tiff"
    Image.fromarray(np.array([values], np.float32)).save(path)
    assert [pixel(path, (column, 0))[0] for column in range(2)] == seen


def test_palette(tmp_path):
    path = tmp_path / "palette.png"
    Image.new("RGB", (4, 4), (10, 200, 30)).quantize(4).save(path)
    with Image.open(path) as image:
        assert image.mode == "P"
    assert pixel(path) == (10, 200, 30)


def test_transparent_palette_lies_on_white(tmp_path):
    path = tmp_path / "palette.png"
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.save(path, transparency=0)
    assert [pixel(path, (column, 0)) for column in range(2)] == [(255, 255, 255), (0, 0, 255)]


@pytest.mark.parametrize(("mode", "color"), [("RGBA", (0, 0, 0, 0)), ("LA", (0, 0))])
def test_transparent_pixels_lie_on_white(tmp_path, mode, color):
    path = tmp_path / "clear.png"
    Image.new(mode, (2, 2), color).save(path)
    assert pixel(path) == (255, 255, 255)


def test_half_transparent_pixels_mix_with_white(tmp_path):
    path = tmp_path / "half.png"
    Image.new("RGBA", (2, 2), (0, 0, 0, 128)).save(path)
    assert pixel(path) == (127, 127, 127)


def test_exif_turns_the_image_upright(tmp_path):
    path = tmp_path / "turned.jpg"
    image = Image.new("RGB", (64, 32), "black")
    image.paste("white", (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = ROTATED_BY_90
    image.save(path, exif=exif, quality=95)
    upright = read_image(path)
    assert upright.size == (32, 64)
    assert upright.getpixel((16, 8)) == (255, 255, 255)
    assert upright.getpixel((16, 56)) == (0, 0, 0)


def test_cmyk_jpeg(tmp_path):
    path = tmp_path / "print.jpg"
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(path, quality=95)
    red, green, blue = pixel(path)
    assert red > 240
    assert max(green, blue) < 15


def test_one_bit(tmp_path):
    path = tmp_path / "fax.png"
    Image.new("1", (8, 8), 1).save(path)
    assert pixel(path) == (255, 255, 255)


def truncated() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "PNG")
    return buffer.getvalue()[:1000]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"no image at all", "not an image"), (truncated(), "can't be read")],
    ids=["empty", "text", "truncated"],
)
def test_unreadable_file_is_named(tmp_path, content, reason):
    path = tmp_path / "unreadable.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as raised:
        read_image(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image at .*absent\.png"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(ValueError, match="directory"):
        read_image(tmp_path)


@pytest.mark.parametrize("size", [(40, 100), (101, 33), (1, 300), (16, 16)])
def test_short_side_is_exact(size):
    assert min(resize_short_side(Image.new("RGB", size), 16).size) == 16
