"""From a file to pixels: modes, depths, transparency, and what is no image."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from halonet.data.pixels import (
    find_crop,
    prepare_image,
    read_image,
    read_pixels,
    resize_short_side,
)
from halonet.models.halonet import Preprocessing

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
    [([0.0, 1.0], [0, 255]), ([0.0, 200.0], [0, 200]), ([np.nan, 1.0], [0, 255])]
    + [([0.5, bad], [128, white]) for bad, white in ((np.inf, 255), (-np.inf, 0), (3.4e38, 255))]
    + [([200.0, np.inf], [200, 255]), ([32896.0, np.inf], [128, 255])],
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


def chunk(kind, content, checksum=None):
    found = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", found)


def png(depth, colors, row, before=b"", after=b"", size=(2, 1)):
    """A PNG of one row; `colors` is 0 for grey, 2 for colour."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colors, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + header + before + pixels + after + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("depth", "colors", "row", "clear", "seen"),
    [
        (16, 0, struct.pack(">2H", 1000, 32896), (1000,), (128, 128, 128)),
        (16, 2, struct.pack(">6H", *[1000] * 3, 0xFFFF, 0x8000, 0), (1000,) * 3, (255, 128, 0)),
        (8, 2, bytes([5, 5, 5, 9, 8, 7]), (5, 5, 5), (9, 8, 7)),
        (8, 0, bytes([5, 9]), (5,), (9, 9, 9)),
        (4, 0, bytes([0x3A]), (3,), (170, 170, 170)),
        (2, 0, bytes([0b0110_0000]), (1,), (170, 170, 170)),
        (1, 0, bytes([0b0100_0000]), (0,), (255, 255, 255)),
    ],
)
def test_transparent_color_lies_on_white(tmp_path, depth, colors, row, clear, seen):
    path = tmp_path / "clear.png"
    path.write_bytes(
        png(depth, colors, row, chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear)))
    )
    assert [pixel(path, (column, 0)) for column in range(2)] == [(255,) * 3, seen]


LONG_TEXT = chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(2_000_000)))


@pytest.mark.parametrize(
    "damaged",
    [
        chunk(b"eXIf", b"rubbish"),
        chunk(b"eXIf", b"II*\0\x08\0\0\0\x05\0"),
        chunk(b"eXIf", b"II*\0", checksum=0),
        chunk(b"pHYs", b"1"),
        LONG_TEXT,
    ],
    ids=["no EXIF", "cut EXIF", "checksum", "short", "long text"],
)
@pytest.mark.parametrize("place", ["before", "after"])
def test_damaged_metadata_of_a_png_are_ignored(tmp_path, damaged, place):
    path = tmp_path / "damaged.png"
    path.write_bytes(png(8, 0, bytes([5, 9]), **{place: damaged}))
    assert [pixel(path, (column, 0))[0] for column in range(2)] == [5, 9]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's, which commands leave out
@pytest.mark.parametrize("suffix", ["jpg", "webp"])
@pytest.mark.parametrize("exif", [b"rubbish", b"Exif\0\0II*\0\x08\0\0\0\x05\0", b"\xff" * 40])
def test_damaged_exif_is_ignored(tmp_path, suffix, exif):
    path = tmp_path / f"damaged.{suffix}"
    Image.new("RGB", (8, 8), (200, 200, 200)).save(path, exif=exif)
    assert pixel(path) == (200, 200, 200)


def test_orientation_of_a_png_whose_other_metadata_are_damaged(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = ROTATED_BY_90
    path = tmp_path / "turned.png"
    turned = chunk(b"eXIf", exif.tobytes()[6:])
    path.write_bytes(png(8, 0, bytes([5, 9]), chunk(b"iCCP", b"a\0\0rubbish") + turned))
    assert read_image(path).size == (1, 2)


@pytest.mark.parametrize("size", [(40, 100), (200, 33), (64, 64), (24, 190)])
def test_ordinary_shape_is_resized_as_a_whole(tmp_path, size):
    path = tmp_path / "photo.png"
    Image.effect_noise(size, 80).save(path)
    with Image.open(path) as image:
        whole = pil_to_tensor(resize_short_side(image.convert("RGB"), 33))
    assert torch.equal(read_pixels(path, Preprocessing(32, 0.95)), whole)


@pytest.mark.parametrize("size", [(20_000, 2), (2, 20_000)])
def test_strip_is_cut_before_it_is_enlarged(tmp_path, size):
    path = tmp_path / "strip.png"
    strip = Image.new("L", size, 50)
    left, top = (max(0, one // 2 - 4) for one in size)
    strip.paste(150, (left, top, left + 8, top + 8))
    strip.save(path)
    pixels = read_pixels(path, Preprocessing(224))
    assert pixels.shape[1] * pixels.shape[2] < 10 * 256**2
    seen = prepare_image(path, Preprocessing(224, 0.95, (0.0,) * 3, (1 / 255,) * 3))
    assert seen.shape == (3, 224, 224)
    assert seen.round().unique().tolist() == [150]


def test_more_pixels_than_the_limit_are_refused(tmp_path):
    path = tmp_path / "huge.png"
    path.write_bytes(png(8, 0, b"", size=(20_000, 20_000)))
    with pytest.raises(ValueError, match=r"huge\.png can't be read.*400000000 pixels.* 178956970"):
        read_image(path)


@pytest.mark.parametrize("size", [(40, 100), (101, 33), (1, 300), (16, 16)])
def test_short_side_is_exact(size):
    assert min(resize_short_side(Image.new("RGB", size), 16).size) == 16


@pytest.mark.parametrize("size", [(400, 300), (300, 401), (96, 96), (90, 2000), (40, 30)])
def test_find_crop_is_what_the_model_sees(size):
    columns, rows = (np.linspace(0, 255, count, dtype=np.float32) for count in size)
    pixels = np.stack(np.broadcast_arrays(columns[None], rows[:, None], np.float32(0)), 2)
    image = Image.fromarray(pixels.round().astype(np.uint8))
    preprocessing = Preprocessing(64, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    seen = 255 * prepare_image(lambda: image, preprocessing)
    left, top, right, bottom = find_crop(size, preprocessing)
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]
    # The values of the outermost pixels' centers.
    half = (right - left) / 128
    for found, place, whole in (
        (seen[0, 32, 0], left + half, size[0]),
        (seen[0, 32, -1], right - half, size[0]),
        (seen[1, 0, 32], top + half, size[1]),
        (seen[1, -1, 32], bottom - half, size[1]),
    ):
        value = 255 * (place - 0.5) / (whole - 1)
        assert abs(found - value) < 255 / whole + 2
