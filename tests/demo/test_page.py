"""The page of halonet demo in a browser, and asked over HTTP as a browser asks it."""

import json
import re
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import pytest
from PIL import Image

import halonet
from halonet import cli
from tests.demo.serving import serve
from tests.detection.pictures import small_detector
from tests.pictures import SMALL_MODEL

pytest.importorskip("gradio")
# One process runs them all: they share servers and a browser, which take seconds to start.
pytestmark = pytest.mark.xdist_group("browser")
PATIENCE = 240_000  # milliseconds: on a busy machine the first answer takes minutes


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    model = halonet.create_model("halonet_tiny", num_classes=2, image_size=32, **SMALL_MODEL)
    model.class_names = ("green", "red")
    halonet.save_model(model, path)
    return path


@pytest.fixture(scope="module")
def page(classifier, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    words = ["-m", "halonet", "demo", str(classifier), "--device", "cpu"]
    with serve(folder, *words) as address:
        yield address


@pytest.fixture(scope="module")
def detector_space(tmp_path_factory):
    """The page for a detector, as a Space runs it."""
    from halonet.detection.detector import save_detector

    folder = tmp_path_factory.mktemp("detector")
    model = small_detector()
    model.class_names = ("bar", "square")
    save_detector(model, folder / "model.safetensors")
    space = folder / "my space"
    cli.main(["demo", str(folder / "model.safetensors"), "--space", str(space)])
    kept = folder / "kept"
    kept.mkdir()
    with serve(kept, str(space / "app.py"), GRADIO_SERVER_NAME="127.0.0.1") as address:
        yield space, address


@pytest.fixture
def visit(browser):
    """Opens an address, and at the end sees that the page's scripts made no error."""
    tabs, errors = [], []

    def open_tab(address, width=1280, height=900):
        tab = browser.new_page(viewport={"width": width, "height": height})
        tab.set_default_timeout(PATIENCE)
        tab.on("pageerror", lambda error: errors.append(error))  # a list's own method won't do
        tab.goto(address)
        tabs.append(tab)
        return tab

    yield open_tab
    for tab in tabs:
        tab.close()
    assert errors == []


def drop(tab, path):
    """Gives the page a picture, as one that was chosen or dropped."""
    tab.locator("#picture input[type=file]").first.set_input_files(path)


def test_picture_and_click_in_a_browser(visit, page, images, tmp_path):
    from playwright.sync_api import expect

    with Image.open(images / "red" / "0.png") as image:
        image.resize((240, 240)).save(tmp_path / "red.png")
    tab = visit(page)
    drop(tab, tmp_path / "red.png")
    answer = tab.locator("#answer")
    answer.get_by_text("green").first.wait_for()
    shares = [int(share) for share in re.findall(r"(\d+)%", answer.inner_text())]
    assert sum(shares) in (99, 100, 101)
    assert tab.locator("#attention img").count() == 0
    # The first stage's map is large enough for two places.
    tab.get_by_label("stage").click()
    tab.get_by_role("option").first.click()
    found = []
    for share in (0.25, 0.75):  # on the way from the left upper corner to the right lower one
        picture = tab.locator("#picture img")
        box = picture.bounding_box()
        picture.click(position={"x": share * box["width"], "y": share * box["height"]})
        shown = tab.locator("#attention img")
        if found:
            expect(shown).not_to_have_attribute("src", found[0], timeout=PATIENCE)
        found.append(shown.get_attribute("src"))
    assert tab.request.get(found[0]).body() != tab.request.get(found[1]).body()
    layer = tab.get_by_label("layer")
    layer.fill("9")
    layer.press("Tab")
    tab.locator("#picture img").click()
    tab.get_by_text("has layers 1 to 1").first.wait_for()
    tab.get_by_role("button", name="what speaks for this class?").click()
    tab.locator("#relevance img").wait_for()
    tab.locator("#picture").get_by_label("Remove").click()
    tab.locator("#relevance img").wait_for(state="detached")


def test_a_broken_file_gets_a_sentence_in_a_browser(visit, page, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    tab = visit(page)
    drop(tab, tmp_path / "broken.png")
    tab.get_by_text("This picture is not an image").wait_for()


def assert_nothing_sticks_out(tab, *widths):
    for width in widths:
        tab.set_viewport_size({"width": width, "height": 844})
        assert tab.evaluate("document.documentElement.scrollWidth") == width


def test_a_phone_sees_all_of_it(visit, page, images):
    tab = visit(page, width=390, height=844)
    drop(tab, images / "red" / "1.png")
    answer = tab.locator("#answer")
    answer.get_by_text("green").first.wait_for()
    box = answer.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    assert box["y"] + box["height"] <= 844
    assert_nothing_sticks_out(tab, 390, 360)


def test_a_detectors_space_in_a_browser(visit, detector_space, images):
    space, address = detector_space
    assert sorted(path.name for path in space.iterdir()) == [
        "README.md", "app.py", "model.safetensors", "requirements.txt",
    ]  # fmt: skip
    header = (space / "README.md").read_text().split("---\n")[1]
    assert 'title: "my space"\n' in header
    assert "sdk: gradio\n" in header
    assert "app_file: app.py\n" in header
    assert (space / "requirements.txt").read_text().startswith("halonet[demo,detection]==")
    tab = visit(address)
    drop(tab, images / "red" / "0.png")
    tab.locator("#objects img").wait_for()
    tab.locator("#answer").get_by_text("score").first.wait_for()
    assert_nothing_sticks_out(tab, 390)


def post(url, body, kind):
    request = urllib.request.Request(url, body, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=180) as response:
        return json.load(response)


def send(page, content, name):
    """Sends a file as the page does, and returns its place there."""
    mark = uuid.uuid4().hex
    head = f'--{mark}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{mark}--\r\n".encode()
    (place,) = post(f"{page}/upload", body, f"multipart/form-data; boundary={mark}")
    return place


def ask(page, function, *values):
    """The kind of the answer, complete or error, and the answer."""
    data = [
        {"path": value, "meta": {"_type": "gradio.FileData"}}
        if isinstance(value, str) and value.startswith("/")
        else value
        for value in values
    ]
    call = f"{page}/call/{function}"
    event = post(call, json.dumps({"data": data}).encode(), "application/json")["event_id"]
    with urllib.request.urlopen(f"{call}/{event}", timeout=180) as response:
        *_, kind, answer = filter(None, response.read().decode().splitlines())  # after heartbeats
    return kind.removeprefix("event: "), json.loads(answer.removeprefix("data: "))


def test_over_http(page, classifier, images):
    page += "/gradio_api"
    place = send(page, (images / "red" / "0.png").read_bytes(), "red.png")
    kind, (answer,) = ask(page, "predict", place)
    assert kind == "complete"
    assert {one["label"] for one in answer["confidences"]} == {"green", "red"}
    assert sum(one["confidence"] for one in answer["confidences"]) == pytest.approx(1)
    kind, (picture,) = ask(page, "explain", place, "green", "rollout")
    assert kind == "complete"
    assert Path(picture["path"]).stat().st_size > 1000

    broken = send(page, b"no image", "broken.jpg")
    kind, answer = ask(page, "predict", broken)
    assert (kind, answer["error"]) == ("error", "This picture is not an image")
    kind, _ = ask(page, "predict", str(classifier))  # another file of this machine
    assert kind == "error"
    with pytest.raises(urllib.error.HTTPError, match="413"):
        send(page, bytes(20 * 2**20 + 1), "large.png")


def test_a_detector_over_http(detector_space, images):
    page = f"{detector_space[1]}/gradio_api"
    place = send(page, (images / "red" / "0.png").read_bytes(), "red.png")
    kind, (picture, table) = ask(page, "predict", place, 0.0)
    assert kind == "complete"
    assert Path(picture["path"]).stat().st_size > 100
    assert {row[0] for row in table["data"]} <= {"bar", "square"}
    assert len(table["data"]) > 0


def test_the_packages_own_model(tmp_path):
    cli.main(["demo", "--space", str(tmp_path / "space")])
    assert halonet.load_run(tmp_path / "space").class_names[0] == "n01443537_goldfish"
