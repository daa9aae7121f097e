"""The page of `halonet export --format web` in Chromium, with onnxruntime-web from npm."""

import base64
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

import halonet
from halonet import cli
from tests.models.test_halonet import revive
from tests.pictures import SMALL_MODEL

# One process runs them all: they share a browser, which takes seconds to start.
pytestmark = pytest.mark.xdist_group("browser")
NAMES = ("ash", "<b>birch</b>", "cedar")


def make_checkpoint(path: Path, **options) -> Path:
    model = halonet.create_model(
        "halonet_tiny", num_classes=3, image_size=32, **SMALL_MODEL, **options
    )
    revive(model).class_names = NAMES
    halonet.save_model(model, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="module")
def page(checkpoint):
    """The folder, as the command leaves it."""
    cli.main(["export", str(checkpoint), "--format", "web"])
    return checkpoint.parent / "web"


@pytest.fixture
def visit(browser, serve):
    """Serves a folder, opens its page, and at the end sees that no script made an error."""
    tabs, errors = [], []

    def open_folder(folder):
        tab = browser.new_page()
        tab.on("pageerror", lambda error: errors.append(error))
        tabs.append(tab)
        return tab, f"{serve(folder)}/"

    yield open_folder
    for tab in tabs:
        tab.close()
    assert not errors


def draw_photos(folder: Path) -> list[Path]:
    """A JPEG, one that lies on its side by its metadata, and a PNG that is transparent in part."""
    photo = Image.radial_gradient("L").resize((90, 61))
    photo = Image.merge("RGB", (photo, photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT), photo))
    ImageDraw.Draw(photo).ellipse((10, 5, 50, 40), fill=(220, 40, 90))
    photo.save(folder / "plain.jpg", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(folder / "turned.jpg", quality=95, exif=exif)
    photo.putalpha(
        Image.linear_gradient("L").resize(photo.size).point(lambda one: 255 * (one > 99))
    )
    photo.save(folder / "clear.png")
    return [folder / name for name in ("plain.jpg", "turned.jpg", "clear.png")]


def read_predictions(tab, name: str) -> dict[str, float]:
    """Probabilities by class, best first, when a picture's are there."""
    from playwright.sync_api import expect

    done = re.compile(re.escape(name) + r": \d+ ms")
    expect(tab.locator("#status")).to_have_text(done, timeout=60_000)
    lines = tab.inner_text("#predictions").splitlines()
    pairs = [re.fullmatch(r"(.*?)\s+([\d.]+) %", line) for line in lines]
    return {pair[1]: float(pair[2]) / 100 for pair in pairs if pair}


def test_answers_are_those_of_predict(capsys, checkpoint, page, visit, tmp_path):
    from playwright.sync_api import expect

    if shutil.which("npm") is None and not os.environ.get("CI"):
        pytest.skip("npm, which fetches onnxruntime-web, is not installed")
    folder = tmp_path / "page"
    shutil.copytree(page, folder)
    words = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(words, cwd=folder, check=True, capture_output=True)
    photos = draw_photos(tmp_path)
    capsys.readouterr()
    cli.main(["predict", str(checkpoint), *map(str, photos), "--top-k", "3", "--format", "json"])
    expected = json.loads(capsys.readouterr().out)
    tab, address = visit(folder)
    asked = []
    tab.on("request", lambda request: asked.append((request.method, request.url)))
    tab.goto(address)
    expect(tab.locator("#status")).to_have_text("Ready.", timeout=60_000)
    loaded = len(asked)
    for photo, entry in zip(photos, expected, strict=True):
        tab.set_input_files("#file", photo)
        found = read_predictions(tab, photo.name)
        wanted = {one["class"]: one["probability"] for one in entry["predictions"]}
        assert list(found) == list(wanted)
        assert found == pytest.approx(wanted, abs=2e-3)
        assert tab.is_visible("#picture")
    # Dropped, not chosen.
    files = tab.evaluate_handle(
        """content => {
            const bytes = Uint8Array.from(atob(content), (one) => one.charCodeAt(0));
            const files = new DataTransfer();
            files.items.add(new File([bytes], "dropped.jpg", { type: "image/jpeg" }));
            return files;
        }""",
        base64.b64encode(photos[0].read_bytes()).decode(),
    )
    tab.dispatch_event("#target", "drop", {"dataTransfer": files})
    wanted = {one["class"]: one["probability"] for one in expected[0]["predictions"]}
    assert read_predictions(tab, "dropped.jpg") == pytest.approx(wanted, abs=2e-3)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    tab.set_input_files("#file", tmp_path / "broken.jpg")
    expect(tab.locator("#status")).to_contain_text("broken.jpg can't be read as a picture")
    assert all(method == "GET" and url.startswith(address) for method, url in asked[:loaded])
    assert all(url.startswith("blob:") for _, url in asked[loaded:]), "something was sent"


def test_page_tells_what_is_missing(page, visit):
    from playwright.sync_api import expect

    tab, address = visit(page)
    tab.goto(address)
    expect(tab.locator("#status")).to_have_text(
        "The model can't be loaded: onnxruntime-web isn't in this folder: run npm install in it"
    )


def test_folder_holds_the_page_and_the_model(page):
    assert sorted(one.name for one in page.iterdir()) == [
        *("classify.js", "index.html", "model.json", "model.onnx", "package.json")
    ]
    facts = json.loads((page / "model.json").read_text())
    assert facts["class_names"] == list(NAMES)
    assert facts["command"].endswith("--format web")


def test_mistakes_are_one_line_and_leave_nothing(fails, checkpoint, page, tmp_path):
    words = ["export", checkpoint, "--format", "web"]
    assert "web exists already and isn't an empty folder" in fails(words)
    said = fails([*words, "--output", tmp_path / "new", "--size", "64,64"], 2)
    assert "--size, --batch and --opset don't go with --format web" in said
    said = fails([*words, "--output", tmp_path / "new", "--precision", "int8"])
    assert "precision of a page must be float32 or float16" in said
    assert not list(tmp_path.iterdir())
