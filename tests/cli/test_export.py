"""halonet export, and predict and evaluate of what it wrote; docs/export.md."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch._inductor import config as inductor_config
from torch._inductor.cpp_builder import cpp_compiler_search

import halonet
from halonet import cli
from halonet.cli import export
from halonet.export.terms import find_license
from halonet.models.creation import find_weights

PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
# Nothing of torch and ours can be imported after this.
BLOCKED = "import sys; sys.modules.update(torch=None, halonet=None{})\n"


@pytest.fixture(scope="module")
def run(whole_run, tmp_path_factory):
    """A copy of a run, with its files for any size and for photos."""
    folder = tmp_path_factory.mktemp("export") / "run"
    shutil.copytree(whole_run.folder, folder)
    cli.main(["export", str(folder)])
    photos = str(folder / "photos.onnx")
    cli.main(["export", str(folder), "--with-preprocessing", "--output", photos])
    return folder


def predict(capsys, *words) -> list:
    capsys.readouterr()
    cli.main(["predict", *map(str, words), "--format", "json"])
    return json.loads(capsys.readouterr().out)


def test_export_tells_the_differences(capsys, run, tmp_path):
    words = ["export", str(run), "--size", "40,64", "--batch", "1", "--precision", "float16"]
    cli.main([*words, "--output", str(tmp_path / "half.onnx")])
    first, second, third = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r".*half\.onnx: [\d.]+ MB, written in [\d.]+ s", first)
    assert re.fullmatch(
        r"difference from the model, of the largest logit: \d\.\de-\d+ \(1 x 40 x 64\)", second
    )
    assert third == "license that the file names: none is known; --license says one"
    from halonet.export.onnx_classifier import load_onnx

    command = load_onnx(tmp_path / "half.onnx").description.command
    assert command.startswith("halonet export ")
    assert "--precision float16" in command


def test_only_size_of_a_model_is_told(capsys, tmp_path):
    model = halonet.create_model("halo2botnet50ts_256", num_classes=2, image_size=32)
    halonet.save_model(model, tmp_path / "model.safetensors")
    cli.main(["export", str(tmp_path / "model.safetensors")])
    shown = capsys.readouterr().out
    assert shown.startswith(
        "halo2botnet50ts_256 takes images of 32 x 32 pixels only, as the file will\n"
    )
    assert "(1 x 32 x 32)" in shown


def test_int8_tells_the_accuracy(capsys, fails, run, tmp_path):
    path = tmp_path / "small.onnx"
    cli.main(["export", str(run), "--precision", "int8", "--output", str(path)])
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "int8 is calibrated on 18 training images, of which there should be 128\n" in shown.out
    assert re.search(
        r"^accuracy on 6 held-out images: [\d.]+ % of the model, [\d.]+ % of the file$",
        shown.out,
        re.MULTILINE,
    )
    assert path.stat().st_size < 0.8 * (run / "last.onnx").stat().st_size
    shutil.copy(run / "last.safetensors", tmp_path)
    said = fails(["export", tmp_path / "last.safetensors", "--precision", "int8"])
    assert "lies in no run folder" in said


@pytest.mark.parametrize("mirror", [(), ("--mirror",)])
def test_predictions_are_the_checkpoints(capsys, run, images, mirror):
    of_checkpoint = predict(capsys, run, images, *mirror)
    of_file = predict(capsys, run / "last.onnx", images, *mirror)
    assert len(of_file) == 24
    for one, other in zip(of_checkpoint, of_file, strict=True):
        assert one["image"] == other["image"]
        for before, after in zip(one["predictions"], other["predictions"], strict=True):
            assert after["class"] == before["class"]
            assert after["probability"] == pytest.approx(before["probability"], abs=2e-6)


def test_file_that_prepares_photos_predicts_and_scores(capsys, run, images, tmp_path):
    """Whole photos go in, and a byte may be rounded otherwise there."""
    of_checkpoint = predict(capsys, run, images)
    of_file = predict(capsys, run / "photos.onnx", images)
    for one, other in zip(of_checkpoint, of_file, strict=True):
        assert one["image"] == other["image"]
        for before, after in zip(one["predictions"], other["predictions"], strict=True):
            assert after["class"] == before["class"]
            assert after["probability"] == pytest.approx(before["probability"], abs=2e-3)
    losses = []
    for number, checkpoint in enumerate((run, run / "photos.onnx")):
        output = tmp_path / str(number)
        cli.main(["evaluate", str(checkpoint), "--output", str(output)])
        losses.append(json.loads((output / "summary.json").read_text())["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model": "halonet_tiny", "data": "folder:a", "pretrained": False}, None),
        (
            {"model": "halonet_tiny", "data": "elpv", "pretrained": True},
            "weights of halonet_tiny from Tiny ImageNet, whose terms are: research, not "
            "commercial; data elpv: CC BY-NC-SA 4.0: not for commercial use",
        ),
        ({"model": "halonet50ts", "pretrained": True}, "timm's weights of halonet50ts: apache-2.0"),
        ({"model": "halonet_h1", "init": "a"}, "weights that it started from: unknown"),
    ],
)
def test_license_is_what_the_run_tells(tmp_path, config, expected):
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "last.safetensors").touch()
    assert find_license(tmp_path / "last.safetensors") == expected


def test_license_of_the_packages_weights():
    weights = Path(find_weights(halonet.get_variant("halonet_tiny"), True))
    assert "Tiny ImageNet, whose terms are: research" in str(find_license(weights))


@pytest.mark.parametrize("data", [False, True], ids=["of_the_run", "other"])
def test_scores_are_the_checkpoints(capsys, run, images, tmp_path, data):
    shown, summaries = [], []
    for number, checkpoint in enumerate((run, run / "last.onnx")):
        words = ["evaluate", str(checkpoint), "--output", str(tmp_path / str(number))]
        capsys.readouterr()
        cli.main([*words, *(["--data", f"folder:{images}"] if data else [])])
        shown.append(capsys.readouterr().out.replace(str(tmp_path / str(number)), ""))
        summaries.append(json.loads((tmp_path / str(number) / "summary.json").read_text()))
    assert shown[0] == shown[1]
    for name in ("model", "parameters", "accuracy", "task", "image_size"):
        assert summaries[0][name] == summaries[1][name]
    assert summaries[1]["loss"] == pytest.approx(summaries[0]["loss"], rel=1e-5)


def test_files_run_without_torch_and_halonet(capsys, run, images, tmp_path):
    """onnxruntime and NumPy alone, on three photos of different sizes."""
    paths = [images / "red" / "0.png", images / "green" / "5.png", images / "red" / "11.png"]
    expected = [
        entry["predictions"][0]["class"] for entry in predict(capsys, run, *paths, "--top-k", 1)
    ]
    for number, path in enumerate(paths):
        np.save(tmp_path / f"{number}.npy", np.asarray(Image.open(path).convert("RGB")))
    script = BLOCKED.format(", PIL=None") + (
        "import json, numpy, onnxruntime\n"
        f"session = onnxruntime.InferenceSession({str(run / 'photos.onnx')!r})\n"
        "facts = session.get_modelmeta().custom_metadata_map\n"
        "names = json.loads(facts['halonet.class_names'])\n"
        "for number in range(3):\n"
        f"    photo = numpy.load(f'{tmp_path}/{{number}}.npy')\n"
        "    print(names[session.run(None, {'photos': photo[None]})[0].argmax()])\n"
    )
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == expected
    assert found.stderr == ""


def test_script_of_the_page(capsys, run, images, tmp_path):
    _, script, _ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    shutil.copy(run / "photos.onnx", tmp_path)
    shutil.copy(images / "green" / "3.png", tmp_path / "photo.jpg")
    found = subprocess.run(
        [sys.executable, "-c", BLOCKED.format("") + script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    (entry,) = predict(capsys, run, tmp_path / "photo.jpg")
    assert found.stdout.strip() == entry["predictions"][0]["class"]


def test_commands_of_the_page(monkeypatch, run, tmp_path, images):
    commands = re.findall(r"^halonet (\w+) (.+?)(?: +#.*)?$", PAGE, re.MULTILINE)
    assert [name for name, _ in commands] == [
        *["export"] * 10,
        *("predict", "evaluate", "benchmark", "benchmark"),
        *("export", "detect", "detect"),
    ]
    shutil.copytree(run, tmp_path / "runs" / "finetune")
    (tmp_path / "runs" / "finetune" / "last.onnx").unlink()
    shutil.copytree(images / "red", tmp_path / "new_photos")
    monkeypatch.chdir(tmp_path)
    for name, words in commands:
        # test_formats.py, test_export_detector.py and test_benchmark.py have these.
        elsewhere = ("torch-export", "aoti", "detector", "benchmark")
        if not any(word in f"{name} {words}" for word in elsewhere):
            cli.main([name, *words.split()])


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ([], 1, "last.onnx exists already; choose another output"),
        (["--output", "absent/model.onnx"], 1, "no folder at absent"),
        (["--size", "31,40"], 1, "a height and a width of 32 pixels or more, got (31, 40)"),
        (["--size", "large"], 2, "--size must be any, or a height and a width, as 224,320; got"),
        (["--size", "64"], 2, "got '64'"),
        (["--batch", "-1"], 2, "--batch must be any, or a number; got '-1'"),
        (["--batch", "0"], 1, "batch must be positive, got 0"),
        (["--format", "tflite"], 2, "'onnx'"),
    ],
)
def test_mistake_is_one_line(fails, run, words, status, said):
    before = sorted(run.iterdir())
    assert said in fails(["export", run, *words], status)
    assert sorted(run.iterdir()) == before


@pytest.mark.parametrize(
    ("package", "output", "extra"),
    [
        ("onnx", "onnx", "export"),
        ("onnxruntime", "onnx", "export"),
        ("openvino", "openvino", "openvino"),
    ],
)
def test_missing_package_is_one_line(fails, monkeypatch, run, tmp_path, package, output, extra):
    monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / ("model.xml" if output == "openvino" else "model.onnx")
    said = fails(["export", run, "--output", path, "--format", output])
    assert said == f"halonet: {package} is not installed: pip install 'halonet[{extra}]'"
    assert not list(tmp_path.iterdir())


def test_missing_compiler_is_one_line(fails, run, tmp_path):
    cpp_compiler_search.cache_clear()
    output = tmp_path / "model.pt2"
    with inductor_config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        said = fails(["export", run, "--format", "aoti", "--output", output])
    assert "format aoti needs a C++ compiler" in said
    assert not list(tmp_path.iterdir())


def test_mistakes_with_a_file_are_one_line(fails, run, images, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"broken")
    assert "can't be read by onnxruntime" in fails(["predict", broken, images])
    assert "no checkpoint at" in fails(["evaluate", tmp_path / "absent.onnx"])
    assert "lies in no run folder" in fails(["evaluate", broken])
    assert "no checkpoint in" in fails(["export", tmp_path])
    assert "is an exported file, where a checkpoint is needed" in fails(
        ["export", run / "last.onnx"]
    )
    fixed = tmp_path / "fixed.onnx"
    cli.main(["export", str(run), "--size", "40,64", "--output", str(fixed)])
    assert "takes images of shape [3, 40, 64], got [3, 32, 32]" in fails(["predict", fixed, images])


def test_options_are_frozen():
    found = {
        option.removeprefix("--")
        for action in export.make_export_parser()._actions
        for option in action.option_strings
        if option.startswith("--")
    }
    assert found == {
        *("batch", "format", "help", "license", "opset", "output", "precision", "size"),
        "with_preprocessing",
    }
