"""What holds of a model over many images: its relative tables and its receptive field."""

import json

import pytest
import torch
from PIL import Image
from torch import nn

import halonet
from halonet.explain.attention import keep_inputs, list_attention_layers
from halonet.explain.receptive_field import ReceptiveField, measure_receptive_field
from halonet.explain.tables import read_tables
from tests.pictures import SMALL_MODEL


def make_model(name="halonet_tiny", **options):
    torch.manual_seed(0)
    model = halonet.create_model(name, num_classes=2, image_size=64, **(SMALL_MODEL | options))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # bottlenecks start as their shortcut
            nn.init.ones_(module.weight)
    return model.eval()


@pytest.fixture(scope="module")
def paths(images):
    return sorted((images / "red").glob("*.png"))[:3]


@pytest.mark.parametrize("kernel_size", [None, 3])
def test_tables_are_the_mean_logits_of_the_queries(paths, kernel_size):
    attention = ["convolution", "attention", "attention", "attention"]
    model = make_model(heads=[1, 2, 1, 1], spatial=attention, kernel_size=kernel_size)
    kept = []
    first = list_attention_layers(model)[0].module
    with keep_inputs(first, kept.append):
        tables = read_tables(model, paths)
    assert tables.images == 3
    assert [(one.stage, one.layer) for one in tables.layers] == [(2, 1), (3, 1), (4, 1)]
    query = torch.cat([first.project(maps)[0] for maps in kept])  # [3, 8, 8, 2, channels]
    half = query.shape[-1] // 2
    # Blocks of two with a halo of one, stride 2: one query a block, cells from -1 to 2.
    found = tables.layers[0]
    assert found.offsets.tolist() == ([-1, 0, 1, 2] if kernel_size is None else [-1, 0, 1])
    logits = torch.empty(3, 8, 8, 2, len(found.offsets), len(found.offsets))
    for i, dy in enumerate(found.offsets.tolist()):
        for j, dx in enumerate(found.offsets.tolist()):
            row, column = first.row_table[dy + 2], first.column_table[dx + 2]
            score = query[..., :half] @ row + query[..., half:] @ column
            logits[..., i, j] = score * query.shape[-1] ** -0.5
    expected = logits.mean((0, 1, 2))
    expected -= expected.mean((1, 2), keepdim=True)
    torch.testing.assert_close(found.logits, expected.detach(), atol=1e-5, rtol=1e-4)
    assert expected.abs().max() > 0.01


def test_models_without_tables_say_so(paths):
    for options in ({"position": "none"}, {"spatial": ["convolution"] * 4}):
        with pytest.raises(ValueError, match="the model has no relative tables"):
            read_tables(make_model(**options), paths)


def test_timms_tables_are_read(paths):
    model = halonet.create_model("halonet26t", num_classes=2, image_size=64).eval()
    tables = read_tables(model, paths[:1])
    first = tables.layers[0]
    assert first.logits.shape[1:] == (len(first.offsets),) * 2
    assert torch.isfinite(first.logits).all()


def test_the_field_of_a_convolution_is_its_kernels(paths):
    """Three by three pixels at stride 1, and nine by nine after the four of a stage each."""

    class Stages(nn.Module):
        def __init__(self):
            super().__init__()
            made = make_model()
            self.preprocessing, self.in_channels = made.preprocessing, 3
            self.stages = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)))
            for stage in self.stages:
                nn.init.ones_(stage.weight)
                nn.init.constant_(stage.weight[..., 1, 1], 2)

        def forward_features(self, maps):
            return self.stages(maps)

    field = measure_receptive_field(Stages(), paths, name="plain")
    assert [field.side(stage, 1.0) for stage in (1, 2, 3, 4)] == [3, 5, 7, 9]
    torch.testing.assert_close(field.gradients.sum((1, 2)), torch.ones(4))
    expected = torch.full((3, 3), 0.1)
    expected[1, 1] = 0.2
    torch.testing.assert_close(field.gradients[0, 31:34, 31:34], expected)
    assert field.gradients[0].count_nonzero() == 9


def test_attention_sees_its_window_and_no_further(paths):
    options = {"block_size": 2, "halo_size": 1, "spatial": ["attention"] * 4}
    field = measure_receptive_field(make_model(**options), paths)
    assert field.gradients.shape == (4, 64, 64)
    assert field.images == 3
    # A window of four pixels at stride 4, each of a stem that reads eleven.
    assert field.gradients[0].sum(0).count_nonzero() == 3 * 4 + 11
    assert field.gradients[0].sum(1).count_nonzero() == 3 * 4 + 11
    assert field.side(1, 0.9) < field.side(3, 0.9)


def test_sides_of_squares():
    gradients = torch.zeros(1, 9, 9)
    gradients[0, 4, 4], gradients[0, 4, 6], gradients[0, 0, 0] = 0.5, 0.3, 0.2
    field = ReceptiveField("drawn", 1, gradients)
    assert [field.side(1, share) for share in (0.5, 0.7, 0.9)] == [1, 5, 9]
    assert json.loads(field.to_json())["side_of_50_percent"] == [1]


def test_from_a_run(whole_run, images, tmp_path):
    run = halonet.load_run(whole_run.folder, device="cpu")
    tables, field = run.tables(images / "red"), run.receptive_field(images / "red" / "0.png")
    assert (tables.images, field.images) == (12, 1)
    assert len(json.loads(tables.to_json())["layers"]) == len(tables.layers) == 2
    tables.plot(tmp_path / "tables.png")
    field.plot(tmp_path / "field.png", beside=field)
    for name in ("tables.png", "field.png"):
        with Image.open(tmp_path / name) as drawn:
            assert drawn.width > 200
