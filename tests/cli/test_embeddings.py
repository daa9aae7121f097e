"""halonet embed and similar: features of images in files, and the images most like one."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import halonet
from halonet import cli
from halonet.classification.embeddings import find_similar
from halonet.data.pixels import prepare_image


@pytest.fixture
def photos(images, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(images, folder)
    return folder


def test_embeddings_are_the_pooled_features(capsys, whole_run, photos, tmp_path):
    for name in ("a.npz", "b.parquet"):
        cli.main(["embed", str(whole_run.folder), str(photos), "--output", str(tmp_path / name)])
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.startswith("24 embeddings of 128 numbers: ")
    with np.load(tmp_path / "a.npz") as content:
        paths, embeddings = content["paths"], content["embeddings"]
    assert embeddings.shape == (24, 128)
    assert embeddings.dtype == np.float32
    model = halonet.load_model(whole_run.folder).eval()
    image = prepare_image(photos / "green" / "3.png", model.preprocessing)[None]
    expected = model.forward_features(image).mean((2, 3))[0].detach()
    place = paths.tolist().index(str(photos / "green" / "3.png"))
    torch.testing.assert_close(torch.from_numpy(embeddings[place]), expected, atol=1e-5, rtol=1e-4)

    parquet = pytest.importorskip("pyarrow.parquet")
    columns = parquet.read_table(tmp_path / "b.parquet").to_pydict()
    assert columns["path"] == paths.tolist()
    assert np.array_equal(np.array(columns["embedding"], np.float32), embeddings)


def test_similar_images_come_first(capsys, whole_run, photos, tmp_path):
    query = photos / "red" / "5.png"
    sheet = tmp_path / "similar.png"
    words = ["similar", str(whole_run.folder), str(query), str(photos), "--count", "8"]
    cli.main([*words, "--output", str(sheet)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["image", "similarity"]
    assert len(lines) == 10
    assert str(query) not in "".join(lines[1:])
    with Image.open(sheet) as image:
        assert image.size[0] > 800
    cli.main([*words[:-1], "100", "--format", "json"])
    shown = capsys.readouterr()
    assert shown.err == "halonet: --count 100: there are 23 images to compare with\n"
    entries = json.loads(shown.out)
    assert len(entries) == 23
    similarities = [entry["similarity"] for entry in entries]
    assert similarities == sorted(similarities, reverse=True)
    assert all(-1 <= similarity <= 1.000001 for similarity in similarities)


def test_nearest_by_cosine():
    embeddings = torch.tensor([[10.0, 1.0], [0.0, 3.0], [-1.0, 0.0], [0.1, 0.1]])
    found = find_similar(torch.tensor([1.0, 0.0]), embeddings, 3)
    assert [one.index for one in found] == [0, 3, 1]
    assert found[1].similarity == pytest.approx(0.5**0.5)


def test_what_does_not_fit(capsys, fails, whole_run, photos, tmp_path):
    run = whole_run.folder
    assert "must end in .npz or .parquet" in fails(["embed", run, photos, "--output", "a.csv"])
    assert "no folder at" in fails(["embed", run, photos, "--output", tmp_path / "no" / "a.npz"])
    assert "output" in fails(["embed", run, photos], 2)
    assert "--count must be 1 or more" in fails(["similar", run, "a.png", photos, "--count=0"], 2)
    assert "no image at" in fails(["similar", run, photos / "no.png", photos])
    query = photos / "red" / "5.png"
    assert "no image to compare" in fails(["similar", run, query, query])
    words = ["similar", run, query, photos, "--output"]
    assert "output must end in one of .pdf, .png, .svg" in fails([*words, tmp_path / "a.bmp"])
    (photos / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(SystemExit):
        cli.main(["embed", str(run), str(photos), "--output", str(tmp_path / "a.npz")])
    assert "1 of 25 images can't be read" in capsys.readouterr().err
    with np.load(tmp_path / "a.npz") as content:
        assert len(content["paths"]) == 24
