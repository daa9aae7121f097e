"""The page of halonet demo, asked over HTTP as a browser asks it."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import pytest

from tests.pictures import SMALL_MODEL

pytest.importorskip("gradio")


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
        {"path": value, "meta": {"_type": "gradio.FileData"}} if value.startswith("/") else value
        for value in values
    ]
    call = f"{page}/call/{function}"
    event = post(call, json.dumps({"data": data}).encode(), "application/json")["event_id"]
    with urllib.request.urlopen(f"{call}/{event}", timeout=180) as response:
        lines = response.read().decode().splitlines()
    return lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    import halonet

    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    model = halonet.create_model("halonet_tiny", num_classes=2, image_size=32, **SMALL_MODEL)
    model.class_names = ("green", "red")
    halonet.save_model(model, path)
    return path


def test_picture_in_answer_out_nothing_kept(model, images, tmp_path):
    # A folder of its own for what it keeps meanwhile.
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    words = [sys.executable, "-m", "halonet", "demo", str(model), "--device", "cpu"]
    with subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            line = server.stdout.readline()
            assert line.startswith("open http://127.0.0.1:"), server.stderr.read()
            page = line.split()[1].rstrip("/;") + "/gradio_api"

            place = send(page, (images / "red" / "0.png").read_bytes(), "red.png")
            assert place.startswith(str(tmp_path))
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
            kind, _ = ask(page, "predict", str(model))  # another file of this machine
            assert kind == "error"
            with pytest.raises(urllib.error.HTTPError, match="413"):
                send(page, bytes(21 * 2**20), "large.png")
        finally:
            server.send_signal(signal.SIGTERM)
            _, errors = server.communicate(timeout=180)
    assert server.returncode == 0, errors
    assert list(tmp_path.iterdir()) == []
