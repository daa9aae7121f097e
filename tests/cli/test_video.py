"""Videos and cameras: frames in, predictions and annotated videos out."""

import json
import sys
from itertools import islice

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

import halonet
from halonet import cli
from halonet.detection.detector import save_detector
from halonet.inference import video as videos
from halonet.inference.video import Video, VideoWriter
from tests.detection.pictures import small_detector
from tests.pictures import COLORS

FRAMES, RATE = 10, 10


@pytest.fixture(scope="module")
def run(whole_run):
    return halonet.load_run(whole_run.folder, device="cpu")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A second of red, then green, 63 x 48."""
    path = tmp_path_factory.mktemp("video") / "walk.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 63, 48, "yuv420p"
        for number in range(FRAMES):
            image = Image.new("RGB", (63, 48), COLORS[number // 5])
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return path


@pytest.fixture
def camera(monkeypatch):
    """A camera 2, whose picture changes from frame to frame."""
    drawn = "testsrc=size=64x48:rate=10:duration=1:decimals={}"
    monkeypatch.setattr(videos, "CAMERAS", {sys.platform: ("lavfi", drawn)})
    return 2


def read_video(path):
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_image()) for frame in container.decode(video=0)]


def test_frames_have_their_times(run, video):
    predictions = run.predict(str(video))
    assert [one.time for one in predictions] == pytest.approx([n / RATE for n in range(FRAMES)])
    assert {one.image for one in predictions} == {str(video)}
    frames = [image for _, image in read_video(video)]
    expected = run.predict(frames)
    for one, same, image in zip(predictions, expected, frames, strict=True):
        torch.testing.assert_close(one.probabilities, same.probabilities)
        assert one.source().tobytes() == image.tobytes()  # read from the file again
    assert json.loads(predictions[3].to_json())["time"] == pytest.approx(0.3)
    few = run.predict([video, frames[0]], every=4)
    assert [one.time for one in few] == pytest.approx([0, 0.4, 0.8, None])
    torch.testing.assert_close(few[1].probabilities, predictions[4].probabilities)
    assert run.embed(video).shape == (FRAMES, run.model.num_features)
    with pytest.raises(ValueError, match=r"image must be one, got the video .*walk.mkv"):
        run.explain(video)
    with pytest.raises(ValueError, match="every must be 1 or more, got 0"):
        run.predict(video, every=0)


def test_a_video_at_a_url(run, video, serve):
    url = serve(video.parent)
    one, *_ = run.stream(f"{url}/walk.mkv?size=small")
    assert (one.image, one.time) == (f"{url}/walk.mkv?size=small", 0)
    torch.testing.assert_close(one.probabilities, run.predict(video)[0].probabilities)
    with pytest.raises(FileNotFoundError, match=f"can't download {url}/none.mp4"):
        run.predict(f"{url}/none.mp4")


def test_images_at_urls_are_explained_and_compared(whole_run, images, serve, capsys, tmp_path):
    run, url = str(whole_run.folder), f"{serve(images)}/red/0.png"
    cli.main(["explain", run, url, "--output", str(tmp_path / "why")])
    (entry,) = json.loads((tmp_path / "why" / "explanations.json").read_text())
    assert entry["image"] == url
    assert (tmp_path / "why" / "0.png.png").is_file()
    capsys.readouterr()
    cli.main(["similar", run, url, url, str(images / "red"), "--format", "json"])
    first, second, *_ = json.loads(capsys.readouterr().out)
    assert {first["image"], second["image"]} == {url, str(images / "red" / "0.png")}
    assert first["similarity"] == pytest.approx(1, abs=1e-4)


def test_frames_of_a_telephone_are_upright(tmp_path):
    """The track's matrix says that the picture is to be turned to the right by a quarter."""
    path = tmp_path / "film.mp4"
    writer = VideoWriter(path)
    image = Image.new("RGB", (64, 32), "blue")
    image.paste("white", (0, 0, 16, 32))
    writer.write(image, 0)
    writer.close()
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44
    turned = [0, 1 << 16, 0, -1 << 16, 0, 0, 32 << 16, 0, 1 << 30]
    content[place : place + 36] = np.array(turned, ">i4").tobytes()
    path.write_bytes(content)
    (frame,) = Video(str(path)).read_frames()
    upright = frame()
    assert upright.size == (32, 64)
    assert min(upright.getpixel((16, 8))) > 200
    assert upright.getpixel((16, 50))[0] < 50


def test_a_camera(run, camera):
    one = run.predict(camera)
    assert (one.image, one.time) == ("camera 2", 0)
    live = [*islice(run.stream(camera), 3)]
    assert [prediction.time for prediction in live] == pytest.approx([0, 0.1, 0.2])
    assert live[0].source().tobytes() != live[1].source().tobytes()


def test_pictures_of_classes(run, whole_run, images, video, serve, capsys, tmp_path):
    url = f"{serve(images)}/green/1.png"
    words = ["predict", str(whole_run.folder), str(images / "red"), url, str(video)]
    output, folder = tmp_path / "found.json", tmp_path / "pictures"
    options = ["--every", "5", "--format", "json", "--output", str(output)]
    cli.main([*words, *options, "--save-pictures", str(folder)])
    entries = json.loads(output.read_text())
    assert [entry.get("time") for entry in entries] == [*[None] * 13, 0.0, 0.5]
    assert [entry["image"] for entry in entries[-3:]] == [url, str(video), str(video)]
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    # Below the folder that holds the images and the video.
    video_name = f"{video.parent.name}/walk.mkv.mp4"
    red = {f"{images.name}/red/{number}.png.png" for number in range(12)}
    assert written == {"1.png.png", video_name} | red
    with Image.open(folder / "1.png.png") as drawn:
        assert drawn.width >= 240
        plain = Image.open(images / "green" / "1.png").resize(drawn.size)
        box = ImageChops.difference(drawn.convert("RGB"), plain.convert("RGB")).getbbox()
        assert box[0] < 20
        assert box[2] > 60  # the words
    frames = read_video(folder / video_name)
    assert [time for time, _ in frames] == pytest.approx([0, 0.5])
    assert frames[0][1].size == (252, 192)
    assert frames[0][1].getpixel((200, 180))[0] > 200
    capsys.readouterr()
    cli.main([*words[:2], str(video), "--every", "5"])
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert first.startswith(f"{video} 0.00 s  ")
    assert second.startswith(f"{video} 0.50 s  ")


def test_a_stopped_camera_leaves_its_video(camera, whole_run, monkeypatch, capsys, tmp_path):
    read_frames = Video.read_frames

    def stop(self, every):
        yield from islice(read_frames(self, every), 4)
        raise KeyboardInterrupt

    monkeypatch.setattr(Video, "read_frames", stop)
    monkeypatch.chdir(tmp_path)
    words = ["predict", str(whole_run.folder), "2", "--save-pictures", "seen"]
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 130
    assert capsys.readouterr().out.count("camera 2 0.") == 4
    assert len(read_video(tmp_path / "seen" / "camera-2.mp4")) == 4
    assert len([*(tmp_path / "seen").iterdir()]) == 1


def test_objects_in_videos(camera, video, capsys, monkeypatch, tmp_path):
    torch.manual_seed(0)
    model = small_detector()
    save_detector(model, tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    words = ["detect", "predict", "model.safetensors", str(video), "2", "--every", "4"]
    cli.main([*words, "--score-threshold", "0", "--data-set", "--output", "found"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:3]] == [str(video), "camera 2"]
    content = json.loads((tmp_path / "found" / "data_set.json").read_text())
    assert [image["id"] for image in content["images"]] == [1, 2, 3, 4, 5, 6]
    assert [image["time"] for image in content["images"]] == [0, 0.4, 0.8] * 2
    results = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert {one["image_id"] for one in results} == {1, 2, 3, 4, 5, 6}
    assert len(read_video(tmp_path / "found" / "walk.mkv.mp4")) == 3
    run = halonet.load_run("model.safetensors", device="cpu")
    found = run.predict(video, every=5, score_threshold=0)
    assert [one.time for one in found] == pytest.approx([0, 0.5])
    assert found[1].to_dict()["time"] == 0.5
    first = next(run.stream(video, score_threshold=0))
    torch.testing.assert_close(first.boxes, found[0].boxes)


def write_sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))


def test_what_is_no_video(fails, whole_run, tmp_path, serve, monkeypatch):
    broken, sound, output = tmp_path / "a.mp4", tmp_path / "b.mkv", tmp_path / "out"
    broken.write_bytes(b"no video" * 100)
    write_sound(sound)
    words = ["predict", whole_run.folder]
    assert "a.mp4 can't be read as a video: Invalid data" in fails([*words, broken])
    assert "b.mkv has no frames" in fails([*words, sound])
    assert "no video at none.mp4" in fails([*words, "none.mp4"])
    url = serve(tmp_path)
    for name in ("none.mp4", "none.jpg"):
        assert f"can't download {url}/{name}: HTTP Error 404" in fails([*words, f"{url}/{name}"])
    assert "http://127.0.0.1:9/a.jpg" in fails([*words, "http://127.0.0.1:9/a.jpg"])
    assert "every must be 1 or more" in fails([*words, broken, "--every", "0"], 2)
    monkeypatch.setattr(videos, "CAMERAS", {sys.platform: ("lavfi", "none{}")})
    assert "can't open camera 3" in fails([*words, "3"])
    monkeypatch.setattr(videos, "CAMERAS", {})
    assert "cameras can be read on Linux and macOS alone" in fails([*words, "3"])
    (output / "full").mkdir(parents=True)
    named = fails([*words, tmp_path, "--save-pictures", output])
    assert "isn't an empty folder" in named
    monkeypatch.setitem(sys.modules, "av", None)
    assert "av is not installed: pip install 'halonet[video]'" in fails([*words, broken])
