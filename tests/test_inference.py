"""A trained classifier in three lines, and every way in which an image may come."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import halonet
from halonet import cli
from halonet.data.pixels import read_image
from tests.detection.pictures import small_detector
from tests.pictures import SMALL_MODEL


@pytest.fixture(scope="module")
def run(whole_run):
    return halonet.load_run(whole_run.folder, device="cpu")


@pytest.fixture
def server(images, serve):
    """The drawn images at a URL of this machine."""
    return serve(images)


def test_predictions_are_the_command_lines(capsys, run, whole_run, images):
    path = images / "red" / "3.png"
    cli.main(["predict", str(whole_run.folder), str(path), "--format", "json"])
    (expected,) = json.loads(capsys.readouterr().out)
    prediction = run.predict(path)
    assert prediction.to_dict() == expected
    assert json.loads(prediction.to_json()) == expected
    assert prediction.class_names == run.class_names == ("green", "red")
    assert prediction.probabilities.sum() == pytest.approx(1)
    assert prediction.top(1) == [(prediction.class_name, prediction.probability)]
    mirrored = run.predict(path, mirror=True)
    assert mirrored.probability != prediction.probability
    assert repr(run) == "LoadedClassifier(halonet_tiny: green, red)"


def test_export_is_the_functions(monkeypatch, run, tmp_path):
    pytest.importorskip("onnxruntime")
    report = run.export(tmp_path / "model.onnx", size=(64, 64), batch=1)
    assert report.path.stat().st_size == report.bytes
    # Checked beside the model in that size and batch alone.
    assert list(report.differences) == ["1 x 64 x 64"]
    with pytest.raises(FileExistsError):
        run.export(tmp_path / "model.onnx")

    called = []
    monkeypatch.setattr(
        "halonet.export.detector.export_detector",
        lambda model, path, **options: called.append((model, path, options)),
    )
    loaded = halonet.LoadedDetector(small_detector(), device="cpu")
    loaded.export("detector.onnx", license="MIT")
    assert called == [(loaded.model, "detector.onnx", {"license": "MIT"})]


def test_an_image_comes_in_many_ways(run, images, server):
    path = images / "green" / "2.png"
    picture = read_image(path)
    pixels = np.asarray(picture)
    expected = run.predict(str(path)).probabilities
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    ways = [picture, pixels, pixels / 255, tensor, tensor / 255, f"{server}/green/2.png"]
    for way in ways:
        torch.testing.assert_close(run.predict(way).probabilities, expected)
    several = run.predict([path, *ways])
    assert [one.image for one in several[:3]] == [str(path), "image 2", "image 3"]
    assert several[-1].image == f"{server}/green/2.png"
    assert len(run.predict(torch.stack([tensor, tensor]))) == 2
    assert len(run.predict(np.stack([pixels] * 3))) == 3
    grey = run.predict(picture.convert("L")).probabilities
    torch.testing.assert_close(run.predict(np.asarray(picture.convert("L"))).probabilities, grey)
    assert len(run.predict(images / "green")) == 12


@pytest.mark.parametrize(
    ("image", "error", "named"),
    [
        ("none.jpg", FileNotFoundError, "no image at none.jpg"),
        (3.5, TypeError, "image 1 must be a path, a URL, a camera's number, .* got float"),
        (True, TypeError, "image 1 must be a path, .* got bool"),
        ([], ValueError, "images must be one or more"),
        (np.zeros((4, 4, 2), np.uint8), ValueError, r"1, 3 or 4 channels.*\[4, 4, 2\]"),
        (np.zeros((4, 0, 3), np.uint8), ValueError, r"got an array of \[4, 0, 3\]"),
        (np.full((4, 4, 3), 255.0), ValueError, "bytes or floats from 0 to 1, got float64"),
        (np.full((4, 4), np.nan), ValueError, "bytes or floats from 0 to 1"),
        (np.zeros((4, 4), int), ValueError, "bytes or floats from 0 to 1, got int64"),
        (torch.zeros(40, 40), ValueError, r"a tensor must be .* got \[40, 40\]"),
        ([torch.zeros(3, 40, 40), None], TypeError, "image 2 must be"),
    ],
)
def test_what_is_no_image(run, image, error, named):
    with pytest.raises(error, match=named):
        run.predict(image)


def test_urls_that_fail(run, server, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"can't download {server}/none.png"):
        run.predict(f"{server}/none.png")
    with pytest.raises(FileNotFoundError, match=r"can't download http://127.0.0.1:9/a.png"):
        run.predict("http://127.0.0.1:9/a.png")
    with pytest.raises(ValueError, match=f"{server}/ is not an image"):
        run.predict(f"{server}/")
    with pytest.raises(ValueError, match="holds no images"):
        run.predict(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a.jpg is not an image"):
        run.predict(tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        halonet.load_run(tmp_path)


def test_embeddings_and_explanations(run, images, tmp_path):
    path = images / "red" / "1.png"
    one, several = run.embed(path), run.embed(images / "red")
    assert one.shape == (run.model.num_features,)
    assert several.shape == (12, run.model.num_features)
    torch.testing.assert_close(several[1], one, atol=1e-5, rtol=1e-4)
    explanation = run.explain(read_image(path), class_name="red", method="rollout")
    assert (explanation.image, explanation.class_name) == ("image 1", "red")
    assert explanation.probability == pytest.approx(
        run.predict(path).probabilities[1].item(), abs=1e-5
    )
    attention = run.attention(path, (20, 20), stage=3, head=1)
    assert json.loads(attention.to_json())["stage"] == 3
    for number, one in enumerate((run.predict(path), explanation, attention)):
        figure = one.plot(tmp_path / f"{number}.png")
        assert figure.get_size_inches()[0] > 6
        with Image.open(tmp_path / f"{number}.png") as drawn:
            assert drawn.size[0] > 600
    with pytest.raises(ValueError, match="image must be one, got 12"):
        run.explain(images / "red")


def test_several_labels(images):
    torch.manual_seed(0)
    model = halonet.create_model("halonet_tiny", num_classes=3, **SMALL_MODEL, image_size=32)
    model.task, model.class_names = "multilabel", ("sun", "sea", "sand")
    run = halonet.LoadedClassifier(model, device="cpu")
    prediction = run.predict(images / "red" / "0.png")
    entry = prediction.to_dict(threshold=1e-6)
    assert len(entry["predictions"]) == 3
    assert entry["probabilities"].keys() == {"sun", "sea", "sand"}
    assert prediction.labels(1.0) == []
    explanation = run.explain(images / "red" / "0.png", class_name="sea")
    assert explanation.probability == pytest.approx(entry["probabilities"]["sea"], abs=1e-5)


# supervision's, which draws with it, and pycocotools' under numpy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:OpenCV .* is not installed:UserWarning")
def test_a_detector(images, tmp_path):
    from pycocotools import mask
    from supervision import Detections

    from halonet.detection.detector import save_detector

    torch.manual_seed(0)
    model = small_detector()
    model.class_names = ("bar", "square")
    save_detector(model, tmp_path / "model.safetensors")
    run = halonet.load_run(tmp_path / "model.safetensors", device="cpu")
    assert repr(run) == "LoadedDetector(resnet_50_se_halo8: bar, square)"
    path = images / "red" / "0.png"
    found, same = run.predict([path, read_image(path)], score_threshold=0)
    assert (found.image, same.image) == (str(path), "image 2")
    torch.testing.assert_close(found.boxes, same.boxes)
    entry = json.loads(found.to_json())
    assert (entry["width"], entry["height"]) == (40, 40)
    assert len(entry["objects"]) == len(found.scores) > 0
    first = entry["objects"][0]
    assert first["class"] == found.names[0]
    assert first["box"] == pytest.approx(found.boxes[0].tolist(), abs=1e-3)
    np.testing.assert_array_equal(mask.decode(first["mask"]), found.paste_masks()[0])
    detections = found.to_supervision()
    assert isinstance(detections, Detections)
    assert detections["class_name"].tolist() == found.names
    assert [run.class_names[place] for place in detections.class_id] == found.names
    np.testing.assert_allclose(detections.xyxy, found.boxes)
    assert detections.mask.shape == (len(found.names), 40, 40)
    found.plot(tmp_path / "found.png")
    with Image.open(tmp_path / "found.png") as drawn:
        assert drawn.size == (880, 880)
    none = run.predict(path, score_threshold=1)
    assert none.to_dict()["objects"] == []
    assert len(none.to_supervision()) == 0
    assert none.paste_masks().shape == (0, 40, 40)
    with pytest.raises(FileNotFoundError, match=r"no image at none.jpg"):
        run.predict("none.jpg")
    with pytest.raises(ValueError, match="score_threshold must be from 0 to 1, got 2"):
        run.predict(path, score_threshold=2)


def test_models_by_name(monkeypatch, tmp_path, images):
    run = halonet.load_run("halonet_tiny", device="cpu")
    assert run.predict(images / "red" / "0.png").class_name in run.class_names
    asked = []

    def fetch(repository, name):
        asked.append((repository, name))
        if repository == "me/none":
            raise OSError("404 Client Error\nmore")
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    halonet.save_model(run.model, tmp_path / "model.safetensors")
    assert halonet.load_run("hf-hub:me/flowers").class_names == run.class_names
    assert asked == [("me/flowers", "model.safetensors")]
    with pytest.raises(ConnectionError, match=r"can't fetch hf-hub:me/none: 404 Client Error$"):
        halonet.load_run("hf-hub:me/none")
