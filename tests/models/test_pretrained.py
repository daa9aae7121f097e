"""Weights in and out."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import halonet
from halonet.models.pretrained import ADAPTABLE_FIELDS, interpolate_table
from tests.models.test_halonet import revive, small_model

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_a_model_comes_back_as_it_was(tmp_path: Path) -> None:
    model = revive(small_model(activation="relu", squeeze_excitation=True))
    model.class_names = ("a", "b", "c", "d", "e")
    model.preprocessing = halonet.Preprocessing(96, 0.9, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    halonet.save_model(model, tmp_path / "model.safetensors")
    loaded = halonet.load_model(tmp_path / "model.safetensors").eval()
    assert loaded.variant == model.variant
    assert loaded.class_names == model.class_names
    assert loaded.preprocessing == model.preprocessing
    assert torch.equal(loaded(IMAGES), model(IMAGES))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_grey_model_of_no_classes_comes_back(tmp_path: Path) -> None:
    model = revive(small_model(in_channels=1, num_classes=0))
    halonet.save_model(model, tmp_path / "model.safetensors")
    loaded = halonet.load_model(tmp_path / "model.safetensors").eval()
    assert torch.equal(loaded(IMAGES[:, :1]), model(IMAGES[:, :1]))


def test_another_block_and_halo_interpolate_the_tables(tmp_path: Path) -> None:
    model = revive(small_model(block_size=4, halo_size=2))
    halonet.save_model(model, tmp_path / "model.safetensors")
    larger = small_model(block_size=8, halo_size=3)
    report = halonet.load_weights(larger, tmp_path / "model.safetensors")
    assert len(report.interpolated) == 6  # two tables in each of three stages with attention
    assert all(name.endswith("_table") for name in report.interpolated)
    assert report.started_from_zero == ()
    table = model.stages[3][0].spatial.row_table
    assert torch.equal(larger.stages[3][0].spatial.row_table, interpolate_table(table.detach(), 21))
    same = halonet.load_model(
        tmp_path / "model.safetensors", block_size=8, halo_size=3, image_size=192
    )
    assert same.preprocessing.image_size == 192
    assert torch.equal(same.eval()(IMAGES), larger.eval()(IMAGES))


def test_interpolation_is_linear_and_keeps_middle_and_ends() -> None:
    table = torch.arange(5.0)[:, None] * torch.tensor([[1.0, -2.0]])
    stretched = interpolate_table(table, 9)
    assert torch.equal(stretched, torch.arange(0, 4.5, 0.5)[:, None] * torch.tensor([[1.0, -2.0]]))
    assert torch.equal(interpolate_table(table, 5), table)
    assert interpolate_table(table.half(), 9).dtype == torch.float16


def test_other_classes_start_from_zero(tmp_path: Path) -> None:
    model = revive(small_model())
    model.class_names = tuple("abcde")
    halonet.save_model(model, tmp_path / "model.safetensors")
    loaded = halonet.load_model(tmp_path / "model.safetensors", num_classes=9).eval()
    assert torch.equal(loaded(IMAGES), torch.zeros(2, 9))
    assert loaded.class_names is None
    torch.testing.assert_close(loaded.forward_features(IMAGES), model.forward_features(IMAGES))
    report = halonet.load_weights(small_model(num_classes=9), tmp_path / "model.safetensors")
    assert report.started_from_zero == ("classifier.weight", "classifier.bias")


# A change of every field of `Variant` in which a model mustn't differ from the weights.
OTHER_MODELS: list[dict[str, Any]] = [
    {"value_ratio": 2.0},
    {"bottleneck_ratio": 4.0},
    {"query_key_ratio": 2.0},
    {"layers": (2, 1, 1, 1)},
    {"base_width": 16},
    {"heads": (1, 2, 2, 1)},
    {"spatial": ("convolution",) * 4},
    {"squeeze_excitation": (True, False, False, False)},
    {"stem": "patch"},
    {"stem_width": 16},
    {"final_width": 8},
    {"activation": "relu"},
    {"kernel_size": 3},
    {"position": "absolute"},
    {"position": "none"},
    {"mask_padding": False},
]
LABELS = {"name", "source", "parameters"}


@pytest.mark.parametrize("options", OTHER_MODELS, ids=str)
def test_another_function_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    halonet.save_model(small_model(), path)
    model = small_model(**options)
    (field,) = options
    with pytest.raises(
        ValueError, match=rf"doesn't fit halonet_tiny: {field} is .* there, .* here"
    ):
        halonet.load_weights(model, path)


def test_every_field_of_a_variant_is_refused_or_allowed() -> None:
    refused = {name for options in OTHER_MODELS for name in options}
    fields = {field.name for field in dataclasses.fields(halonet.Variant)}
    assert refused | set(ADAPTABLE_FIELDS) | LABELS == fields
    assert not refused & set(ADAPTABLE_FIELDS)


def test_grey_weights_are_refused_by_a_model_of_colour(tmp_path: Path) -> None:
    halonet.save_model(small_model(in_channels=1), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="in_channels is 1 there, 3 here"):
        halonet.load_weights(small_model(), tmp_path / "model.safetensors")


def test_what_may_differ_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    halonet.save_model(small_model(), path)
    changes = {"image_size": 64, "block_size": 8, "halo_size": 1} | {
        "dropout": 0.1,
        "stochastic_depth": 0.1,
    }
    report = halonet.load_weights(small_model(**changes), path)
    assert set(report.changed_fields) == set(changes) == set(ADAPTABLE_FIELDS)
    assert halonet.load_weights(small_model(), path).changed_fields == ()


def test_fields_without_effect_may_differ(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    halonet.save_model(small_model(spatial=("convolution",) * 4), path)
    without_attention = {"spatial": ("convolution",) * 4, "heads": (1, 1, 1, 1)}
    model = small_model(**without_attention, kernel_size=3, position="absolute")
    assert halonet.load_weights(model, path).changed_fields == ()
    halonet.save_model(small_model(heads=(1, 2, 2, 2)), path)
    halonet.load_weights(small_model(heads=(4, 2, 2, 2)), path)  # of a stage of convolutions


def test_a_change_that_is_asked_for_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = revive(small_model())
    halonet.save_model(model, path)
    loaded = halonet.load_model(path, activation="relu").eval()
    assert loaded.variant.activation == "relu"
    assert torch.equal(loaded.stem[0].weight, model.stem[0].weight)
    assert not torch.allclose(loaded(IMAGES), model(IMAGES))
    with pytest.raises(ValueError, match=r"doesn't fit .*projection.weight has shape"):
        halonet.load_model(path, value_ratio=2.0)
    with pytest.raises(ValueError, match=r"doesn't fit halonet_tiny: missing .*absolute_rows"):
        halonet.load_model(path, position="absolute")
    with pytest.raises(ValueError, match=r"can't create the model of .*block_size must be a posit"):
        halonet.load_model(path, block_size=7)


def test_absolute_positions_are_the_same_resampled_on_loading_and_in_running(
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.safetensors"
    model = revive(small_model(position="absolute", image_size=96))
    halonet.save_model(model, path)
    for size in (64, 160):
        images = torch.randn(2, 3, size, size)
        loaded = halonet.load_model(path, image_size=size).eval()
        name = "stages.3.0.spatial.absolute_rows"
        assert loaded.get_parameter(name).shape != model.get_parameter(name).shape
        torch.testing.assert_close(loaded(images), model(images))


def test_what_is_not_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        halonet.load_model(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        halonet.load_model(path)
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="was not written by halonet as a classifier"):
        halonet.load_model(path)
    save_file({"weight": torch.zeros(1)}, path, {"halonet_detector": "{}"})
    with pytest.raises(
        ValueError, match=r"is not a classifier, but a detector, for halonet detect"
    ):
        halonet.load_model(path)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="is not a safetensors file"):
        halonet.load_model(path)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    halonet.save_model(small_model(), path)
    before = path.read_bytes()

    def full(target: Path, content: bytes) -> None:
        with target.open("wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        halonet.save_model(small_model(), path)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["model.safetensors"]


def test_keys_are_frozen(tmp_path: Path) -> None:
    # Files out in the world have these names: a change needs a migration.
    model = small_model(squeeze_excitation=True, final_width=8)
    halonet.save_model(model, tmp_path / "model.safetensors")
    keys = set(load_file(tmp_path / "model.safetensors"))
    roots = {key.split(".")[0] for key in keys}
    assert roots == {"stem", "stages", "final", "classifier"}
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    expected = {"reduce.weight", "expand.weight", "shortcut.0.weight"}
    expected |= {f"spatial.{name}.weight" for name in ("query", "projection")}
    expected |= {"spatial.row_table", "spatial.column_table"}
    expected |= {
        f"{name}.{entry}"
        for name in ("reduce_norm", "spatial_norm", "expand_norm")
        for entry in norm
    }
    expected |= {f"shortcut.1.{entry}" for entry in norm}
    expected |= {
        f"squeeze_excitation.{name}.{entry}"
        for name in ("squeeze", "excite")
        for entry in ("weight", "bias")
    }
    prefix = "stages.3.0."
    assert {key.removeprefix(prefix) for key in keys if key.startswith(prefix)} == expected
    description = json.loads(_metadata(tmp_path / "model.safetensors")["halonet"])
    assert set(description) == {
        "variant", "num_classes", "in_channels", "preprocessing", "class_names", "task",
    }  # fmt: skip


def _metadata(path: Path) -> dict[str, str]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])["__metadata__"]
