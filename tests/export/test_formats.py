"""export_model: what it leaves, and what it refuses, with one line and without a file."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy
import onnx
import pytest
import torch

import halonet
from halonet.export import onnx_classifier, onnx_file, openvino_model
from halonet.export.check import relative_difference
from halonet.export.formats import SUFFIXES
from halonet.export.onnx_classifier import PIXELS_AT_ONCE, load_onnx
from halonet.export.openvino_model import import_openvino, open_openvino
from halonet.models.halonet import Preprocessing
from halonet.models.metadata import EXPORTED
from tests.export.test_network import NARROW, make_model

PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def model():
    model = make_model("halonet_tiny", **NARROW)
    model.class_names = tuple("abcdefg")
    model.preprocessing = Preprocessing(64, 0.8)
    return model


def test_file_says_what_it_is(model, tmp_path) -> None:
    report = halonet.export_model(
        model, tmp_path / "model.onnx", command="made here", license="CC0-1.0"
    )
    assert list(tmp_path.iterdir()) == [report.path]
    assert report.bytes == report.path.stat().st_size
    assert list(report.differences) == [
        *("1 x 64 x 64", "2 x 64 x 64", "1 x 97 x 131", "2 x 97 x 131"),
        *("1 x 160 x 64", "2 x 160 x 64"),
    ]
    assert max(report.differences.values()) <= 3e-6
    written = onnx.load(report.path)
    assert [entry.version for entry in written.opset_import] == [23]
    assert not written.functions
    facts = {entry.key: json.loads(entry.value) for entry in written.metadata_props}
    assert facts == {
        "halonet.model": "halonet_tiny",
        "halonet.num_classes": 7,
        "halonet.in_channels": 3,
        "halonet.preprocessing": {
            "image_size": 64,
            "crop_share": 0.8,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "halonet.class_names": list("abcdefg"),
        "halonet.task": "multiclass",
        "halonet.parameters": sum(parameter.numel() for parameter in model.parameters()),
        "halonet.precision": "float32",
        "halonet.with_preprocessing": False,
        "halonet.command": "made here",
        "halonet.license": "CC0-1.0",
    }


def test_a_file_of_before_has_no_license(model, tmp_path) -> None:
    halonet.export_model(model, tmp_path / "model.onnx", size=(32, 32), batch=1)
    written = onnx.load(tmp_path / "model.onnx")
    facts = {entry.key: entry.value for entry in written.metadata_props}
    assert facts.pop("halonet.license") == "null"
    del written.metadata_props[:]
    onnx.helper.set_model_props(written, facts)
    onnx.save(written, tmp_path / "earlier.onnx")
    assert load_onnx(tmp_path / "earlier.onnx").description.license is None


def test_older_operators(model, tmp_path) -> None:
    halonet.export_model(model, tmp_path / "model.onnx", size=(32, 32), batch=1, opset=18)
    written = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(written, full_check=True)
    assert [entry.version for entry in written.opset_import] == [18]
    assert written.ir_version == 8
    assert "Attention" not in {node.op_type for node in written.graph.node}


def test_the_model_stays_as_it_is(tmp_path) -> None:
    model = make_model("halonet_tiny", **NARROW).train().bfloat16()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    halonet.export_model(model, tmp_path / "model.onnx")
    assert model.training
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())


def test_classifier_of_one_batch_size_takes_any(model, tmp_path) -> None:
    halonet.export_model(model, tmp_path / "model.onnx", size=(40, 56), batch=2)
    classifier = load_onnx(tmp_path / "model.onnx")
    assert classifier.preprocessing == model.preprocessing
    assert classifier.class_names == model.class_names
    images = torch.randn(5, 3, 40, 56)
    with torch.inference_mode():
        assert relative_difference(classifier(images), model(images)) <= 3e-6
    with pytest.raises(ValueError, match=r"takes images of shape \[3, 40, 56\], got \[3, 40, 40\]"):
        classifier(images[..., :40])


def test_a_batch_is_run_by_a_few(model, tmp_path, monkeypatch) -> None:
    halonet.export_model(model, tmp_path / "model.onnx", size=(40, 56))
    classifier = load_onnx(tmp_path / "model.onnx")
    run, counts = classifier._run, []

    def count(images):
        counts.append(len(images))
        return run(images)

    monkeypatch.setattr(classifier, "_run", count)
    images = torch.randn(5, 3, 40, 56)
    for pixels in (PIXELS_AT_ONCE, 2 * 40 * 56, 40 * 56 - 1):
        monkeypatch.setattr(onnx_classifier, "PIXELS_AT_ONCE", pixels)
        with torch.inference_mode():
            assert relative_difference(classifier(images), model(images)) <= 3e-6
    assert counts == [5, 2, 2, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(("channels", "precision"), [(3, "float32"), (1, "float16")])
def test_photos_are_prepared_in_the_graph(channels, precision, tmp_path) -> None:
    model = make_model("halonet_tiny", **NARROW, in_channels=channels)
    report = halonet.export_model(
        model, tmp_path / "model.onnx", with_preprocessing=True, precision=precision
    )
    assert len(report.differences) == 6
    assert max(report.differences.values()) <= (1e-3 if precision == "float32" else 5e-3)


def test_program_of_torch_export(model, tmp_path) -> None:
    path = tmp_path / "model.pt2"
    report = halonet.export_model(model, path, format="torch-export")
    assert len(report.differences) == 6
    assert max(report.differences.values()) <= 3e-6
    facts = {"halonet.class_names": ""}
    program = torch.export.load(path, extra_files=facts).module()
    assert json.loads(facts["halonet.class_names"]) == list("abcdefg")
    images = torch.randn(3, 3, 40, 56)
    with torch.no_grad():
        assert relative_difference(program(images), model(images)) <= 3e-6


def test_what_aotinductor_compiles(tmp_path, monkeypatch) -> None:
    """One layer of attention, one size and batch: any would take minutes to compile."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    spatial = ("convolution",) * 3 + ("attention",)
    model = make_model("halonet_tiny", **{**NARROW, "spatial": spatial})
    model.class_names = tuple("abcdefg")
    path = tmp_path / "last.aoti.pt2"
    # Without trying the compiler on ten small files first, here and in the other process.
    monkeypatch.setenv("TORCHINDUCTOR_VEC_ISA_OK", "1")
    with torch._inductor.config.patch({"cpp.vec_isa_ok": True}):
        report = halonet.export_model(model, path, format="aoti", size=(64, 64), batch=1)
    assert list(report.differences) == ["1 x 64 x 64"]
    assert report.differences["1 x 64 x 64"] <= 3e-6
    script, *_ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    found = subprocess.run(
        [sys.executable, "-c", f"{script}\nprint(logits.flatten().tolist())"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    names, logits = map(json.loads, found.stdout.splitlines())
    assert names == list("abcdefg")
    with torch.inference_mode():
        expected = model(torch.zeros(1, 3, 64, 64))[0]
    assert relative_difference(torch.tensor(logits), expected) <= 3e-6


def test_output_of_aotinductor_has_its_suffix(model, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.pt2, got model\.so"):
        halonet.export_model(model, tmp_path / "model.so", format="aoti")


def test_network_of_openvino(model, tmp_path, monkeypatch) -> None:
    report = halonet.export_model(model, tmp_path / "model.xml", format="openvino")
    weights = tmp_path / "model.bin"
    assert sorted(tmp_path.iterdir()) == [weights, report.path]
    assert report.bytes == report.path.stat().st_size + weights.stat().st_size
    assert len(report.differences) == 6
    assert max(report.differences.values()) <= 3e-6
    assert "openvino_telemetry" not in sys.modules
    network = import_openvino().Core().read_model(report.path)
    names = network.get_rt_info(["framework", "halonet.class_names"]).value
    assert json.loads(names) == list("abcdefg")
    images = torch.randn(3, 3, 40, 56)
    run = open_openvino(report.path)
    for pixels in (PIXELS_AT_ONCE, 2 * 40 * 56):
        monkeypatch.setattr(onnx_classifier, "PIXELS_AT_ONCE", pixels)
        with torch.inference_mode():
            found = torch.from_numpy(run(images.numpy()))
            assert relative_difference(found, model(images)) <= 3e-6


def test_two_files_of_openvino_are_written_or_none(model, tmp_path, monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"must end in \.xml, got model\.onnx"):
        halonet.export_model(model, tmp_path / "model.onnx", format="openvino")
    monkeypatch.setattr(
        openvino_model,
        "open_openvino",
        lambda path: lambda images: numpy.zeros((len(images), 7), numpy.float32),
    )
    with pytest.raises(ValueError, match="wasn't written"):
        halonet.export_model(model, tmp_path / "model.xml", format="openvino", size=(32, 32))
    assert not list(tmp_path.iterdir())
    (tmp_path / "model.bin").write_text("mine")
    with pytest.raises(FileExistsError, match=r"model\.bin exists already"):
        halonet.export_model(model, tmp_path / "model.xml", format="openvino")
    assert (tmp_path / "model.bin").read_text() == "mine"


@pytest.mark.parametrize("batch", [None, 3])
def test_eight_bits_leave_attention_alone(tmp_path, batch) -> None:
    model = make_model("halonet_tiny")
    images = torch.randn(17, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    halonet.export_model(
        model, tmp_path / "model.onnx", precision="int8", calibration=images, batch=batch
    )
    written = onnx.load(tmp_path / "model.onnx")
    assert {node.domain for node in written.graph.node} == {""}
    makers = {name: node.op_type for node in written.graph.node for name in node.output}
    quantized = [node for node in written.graph.node if node.op_type == "QuantizeLinear"]
    assert "Gemm" not in {makers.get(node.input[0]) for node in quantized}
    for node in written.graph.node:
        kinds = {makers.get(name) for name in node.input}
        if node.op_type in ("Conv", "Gemm"):
            assert kinds == {"DequantizeLinear"}
        elif node.op_type in ("Attention", "MatMul"):
            assert "DequantizeLinear" not in kinds
    halonet.export_model(model, tmp_path / "whole.onnx")
    sizes = [(tmp_path / name).stat().st_size for name in ("model.onnx", "whole.onnx")]
    assert sizes[0] < 0.3 * sizes[1]
    with torch.inference_mode():
        found = load_onnx(tmp_path / "model.onnx")(images)
        assert relative_difference(found, model(images)) < 0.1


@pytest.mark.parametrize("batch", [None, 3])
def test_eight_bits_are_of_every_image(tmp_path, batch) -> None:
    images = torch.zeros(17, 3, 64, 64)
    images[-1] = 100
    path = tmp_path / "model.onnx"
    model = make_model("halonet_tiny", **NARROW)
    halonet.export_model(model, path, precision="int8", calibration=images, batch=batch)
    graph = onnx.load(path).graph
    scale = next(node.input[1] for node in graph.node if node.input[0] == "images")
    number = next(one for one in graph.initializer if one.name == scale)
    assert onnx.numpy_helper.to_array(number) == pytest.approx(100 / 255)


def fused():
    return make_model("halonet_tiny", **NARROW).fuse()


def compiled():
    return torch.compile(make_model("halonet_tiny", **NARROW))


@pytest.mark.parametrize(
    ("make", "options", "error", "said"),
    [
        (fused, {}, ValueError, "model is fused already"),
        (compiled, {}, TypeError, "must be a HaloNet, got OptimizedModule; of a compiled"),
        (
            None,
            {"format": "tflite"},
            ValueError,
            "one of onnx, openvino, torch-export, aoti, got 'tflite'",
        ),
        (None, {"size": (31, 64)}, ValueError, r"32 pixels or more, got \(31, 64\)"),
        (None, {"batch": 0}, ValueError, "batch must be positive, got 0"),
        (None, {"precision": "int4"}, ValueError, "one of float32, float16, int8, got 'int4'"),
        (None, {"size": (64, 64), "with_preprocessing": True}, ValueError, "photos of any size"),
        (
            None,
            {"format": "torch-export", "precision": "float16"},
            ValueError,
            "takes precision fl",
        ),
        (None, {"precision": "int8"}, ValueError, "calibration must be images for int8"),
        (None, {"opset": 17}, ValueError, "opset must be one of 18, 23, got 17"),
        (None, {"opset": 18, "format": "openvino"}, ValueError, "opset 18 goes with format onnx"),
        (None, {"calibration": torch.zeros(8, 3, 64, 64)}, ValueError, "and None else"),
        (
            None,
            {"precision": "int8", "calibration": torch.zeros(8, 3, 64, 48), "size": (48, 64)},
            ValueError,
            r"shape \[2 or more, 3, 48, 64\], got \[8, 3, 64, 48\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused(model, make, options, error, said, tmp_path) -> None:
    with pytest.raises(error, match=said):
        halonet.export_model(make() if make else model, tmp_path / "model.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_a_file_is_never_overwritten(model, tmp_path) -> None:
    (tmp_path / "model.onnx").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        halonet.export_model(model, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_text() == "mine"


@pytest.mark.parametrize("wrong", [1.001, math.nan])
def test_a_file_with_other_logits_is_refused(model, tmp_path, monkeypatch, wrong) -> None:
    write = onnx_file.write_onnx

    def write_wrong(fused, *words, **options):
        fused.classifier.weight.mul_(wrong)
        write(fused, *words, **options)

    monkeypatch.setattr(onnx_file, "write_onnx", write_wrong)
    with pytest.raises(ValueError, match=r"more than 0\.0001, from the model's for 1 x 64 x 64"):
        halonet.export_model(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("metadata", [{}, {"halonet.model": '"x"'}])
def test_a_foreign_file_is_named(metadata, tmp_path) -> None:
    path = tmp_path / "foreign.onnx"
    node = onnx.helper.make_node("Identity", ["a"], ["b"])
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "ab"
    ]
    graph = onnx.helper.make_graph([node], "graph", values[:1], values[1:])
    opsets = [onnx.helper.make_opsetid("", 18)]
    foreign = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.helper.set_model_props(foreign, metadata)
    onnx.save(foreign, path)
    with pytest.raises(ValueError, match=r"was not written by halonet export: its metadata has no"):
        load_onnx(path)
    path.write_bytes(b"no such thing")
    with pytest.raises(ValueError, match="can't be read by onnxruntime"):
        load_onnx(path)
    with pytest.raises(FileNotFoundError, match="no file at"):
        load_onnx(tmp_path / "absent.onnx")


def test_every_exported_file_is_known_as_one() -> None:
    assert {Path(f"model{suffix}").suffix for suffix in SUFFIXES.values()} == set(EXPORTED)
