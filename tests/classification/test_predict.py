"""One way from an image file to a model's input, whoever asks."""

import pytest
import torch
from PIL import Image, ImageDraw

import halonet
from halonet.classification import evaluate, predict
from halonet.classification.training import Classification
from halonet.data.pixels import prepare_image
from halonet.data.sources import load_data
from halonet.training.parallel import make_accelerator
from tests.pictures import SMALL_MODEL, small_config


class Recorder(torch.nn.Module):
    """Keeps what it is given, in place of a model."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.seen = []

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.model, name)

    def forward(self, images):
        self.seen += images.clone()
        return self.model(images)


def test_training_evaluate_and_predict_see_the_same_pixels(tmp_path):
    for place, size in enumerate([(40, 61), (90, 33), (300, 200), (64, 64)]):
        for color in ("red", "green"):
            image = Image.effect_noise(size, 80).convert("RGB")
            ImageDraw.Draw(image).rectangle((3, 3, 20, 20), fill=color)
            (tmp_path / color).mkdir(exist_ok=True)
            image.save(tmp_path / color / f"{place}.jpg")
    config = small_config(tmp_path, central_crop_share=0.9, validation_share=0.5)
    task = Classification(config, make_accelerator(config))
    data = load_data(config.data, validation_share=0.5)
    trained = torch.stack([task.validation[0, place][0] for place in range(4)])

    model = halonet.create_model("halonet_tiny", num_classes=2, image_size=32, **SMALL_MODEL)
    model.preprocessing = task.model.preprocessing
    evaluated, predicted = Recorder(model), Recorder(model)
    evaluate.evaluate_on(evaluated, data)
    list(predict.predict(predicted, data.validation.sources))
    assert torch.equal(torch.stack(evaluated.seen), trained)
    assert torch.equal(torch.stack(predicted.seen), trained)
    assert trained.std() > 0.3


def test_predictions_are_ordinary_tensors_of_an_unchanged_model(whole_run, images):
    model = halonet.load_model(whole_run.folder / "last.safetensors")
    paths = sorted((images / "red").glob("*.png"))
    fused = dict(predict.predict(model.fuse(), paths))
    for path, probabilities in predict.predict(model, paths):
        assert not probabilities.is_inference()
        torch.testing.assert_close(fused[path], probabilities)


def test_mirrored_images_count_as_much(images):
    model = halonet.create_model("halonet_tiny", num_classes=2, image_size=32, **SMALL_MODEL)
    torch.nn.init.normal_(model.classifier.weight, std=3)
    model.eval()
    path = sorted((images / "red").glob("*.png"))[0]
    pixels = prepare_image(path, model.preprocessing, 3)[None]
    with torch.no_grad():
        plain, turned = model(pixels), model(pixels.flip(3))
    assert (plain - turned).abs().max() > 1e-3
    expected = ((plain + turned) / 2).softmax(1)[0]
    (found,) = (one for _, one in predict.predict(model, [path], mirror=True))
    torch.testing.assert_close(found, expected)
    (found,) = (one for _, one in predict.predict(model, [path]))
    torch.testing.assert_close(found, plain.softmax(1)[0])

    data = load_data(f"folder:{images}", validation_share=1.0)
    place = list(map(str, data.validation.sources)).index(str(path))
    scored = evaluate.evaluate_on(model, data, mirror=True)
    torch.testing.assert_close(scored.probabilities[place], expected)


def test_results_that_are_no_numbers_are_refused(images):
    model = halonet.create_model("halonet_tiny", num_classes=2, image_size=32, **SMALL_MODEL).eval()
    torch.nn.init.constant_(model.classifier.bias, float("inf"))
    data = load_data(f"folder:{images}", validation_share=1.0)
    said = r"results are infinite or nan for \d+ of \d+ images"
    with pytest.raises(ValueError, match=said):
        list(predict.predict(model, data.validation.sources))
    with pytest.raises(ValueError, match=said):
        evaluate.evaluate_on(model, data)
    torch.nn.init.constant_(model.stem[1].bias, float("nan"))
    with pytest.raises(ValueError, match=said):
        list(predict.embed(model, data.validation.sources))
