"""The page: drop a picture, see the prediction and why."""

import io
import os
import signal
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from halonet.inference.classifier import LoadedClassifier
from halonet.inference.detector import LoadedDetector

if TYPE_CHECKING:
    import gradio

LOCAL = "127.0.0.1"
MAXIMUM_MEGABYTES = 20
SHOWN_CLASSES = 5
# One after the other: explanations put hooks into the model for a while.
ALONE: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
KEPT_SECONDS = 600  # that gradio keeps what was sent, in a folder that goes with the page


def make_page(run: LoadedClassifier | LoadedDetector) -> "gradio.Blocks":
    """The page for a model, not yet served.

    Raises:
        ModuleNotFoundError: gradio isn't there.
    """
    import gradio

    with gradio.Blocks(
        title="halonet", analytics_enabled=False, delete_cache=(60, KEPT_SECONDS)
    ) as page:
        gradio.Markdown(f"# {run.name}\nDrop or paste a picture, or take one.")
        if isinstance(run, LoadedDetector):
            _lay_out_detector(run)
        else:
            _lay_out_classifier(run)
    return page


def _lay_out_classifier(run: LoadedClassifier) -> None:
    import gradio

    from halonet.explain.attention import list_attention_layers
    from halonet.explain.relevance import DEFAULT_METHOD, METHODS

    layers = list_attention_layers(run.model)
    stages = sorted({one.stage for one in layers})

    def predict(image: str | None) -> dict[str, float]:
        prediction = _answer(run.predict, image)
        return dict(zip(prediction.class_names, prediction.probabilities.tolist(), strict=True))

    def explain(image: str | None, class_name: str | None, method: str) -> Any:
        explanation = _answer(run.explain, image, class_name=class_name or None, method=method)
        return _as_picture(explanation.plot())

    def look(
        image: str | None,
        stage: int,
        layer: int | None,
        head: int | None,
        event: gradio.SelectData,
    ) -> Any:
        at = (float(event.index[0]), float(event.index[1]))
        place = {"stage": stage, "layer": layer or None, "head": head or None}
        return _as_picture(_answer(run.attention, image, at, **place).plot())

    def reset() -> tuple[None, None, None]:
        return None, None, None

    with gradio.Row():
        image = _make_input()
        answer = gradio.Label(num_top_classes=SHOWN_CLASSES, label="answer", elem_id="answer")
    with gradio.Row():
        with gradio.Column():
            class_name = gradio.Dropdown(
                ["", *run.class_names], value="", label="class (empty: the most probable)"
            )
            method = gradio.Dropdown([*METHODS], value=DEFAULT_METHOD, label="method")
            button = gradio.Button("what speaks for this class?")
            relevance = _make_output("relevance")
        with gradio.Column(visible=bool(layers)):
            stage = gradio.Dropdown(stages, value=stages[-1] if stages else None, label="stage")
            layer = gradio.Number(0, precision=0, minimum=0, label="layer (0: the last)")
            head = gradio.Number(0, precision=0, minimum=0, label="head (0: the mean of all)")
            gradio.Markdown("Click on the picture to see where this place looks.")
            attention = _make_output("attention")
    image.input(predict, image, answer, api_name="predict", **ALONE)
    image.clear(reset, None, [answer, relevance, attention])
    button.click(explain, [image, class_name, method], relevance, api_name="explain", **ALONE)
    image.select(look, [image, stage, layer, head], attention, **ALONE)


def _lay_out_detector(run: LoadedDetector) -> None:
    import gradio

    from halonet.data.pixels import read_image

    def detect(image: str | None, score_threshold: float) -> tuple[Any, list[list[Any]]]:
        objects = _answer(run.predict, image, score_threshold=score_threshold)
        found = zip(objects.names, objects.scores.tolist(), objects.boxes.tolist(), strict=True)
        rows = [[name, round(score, 3), *map(round, box)] for name, score, box in found]
        return objects.draw(read_image(objects.source)), rows

    def reset() -> tuple[None, None]:
        return None, None

    with gradio.Row():
        with gradio.Column():
            image = _make_input()
            threshold = gradio.Slider(0, 1, 0.5, step=0.05, label="least score")
        found = _make_output("objects")
    table = gradio.Dataframe(
        headers=["class", "score", "left", "top", "right", "bottom"],
        label="objects, with their boxes in pixels",
        interactive=False,
        elem_id="answer",
    )
    given, results = [image, threshold], [found, table]
    image.input(detect, given, results, api_name="predict", **ALONE)
    image.clear(reset, None, results)
    threshold.release(detect, given, results, api_name=False, **ALONE)


def serve(
    run: LoadedClassifier | LoadedDetector, *, host: str | None = LOCAL, port: int | None = None
) -> None:
    """Serve the page until it is stopped, by Ctrl-C or SIGTERM; then what was sent is deleted.

    Args:
        run: the model.
        host: address to listen on; the default one is reached from this machine only. None takes
            the environment's GRADIO_SERVER_NAME, as a Space sets it, and else the default.
        port: None takes the environment's GRADIO_SERVER_PORT, or the first free one from 7860 on.

    Raises:
        ModuleNotFoundError: gradio isn't there.
        OSError: the port is taken.
    """
    # gradio reads where to put files from the environment.
    with tempfile.TemporaryDirectory(prefix="halonet-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        page = make_page(run)
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        try:
            _, url, _ = page.launch(
                server_name=host,
                server_port=port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                max_file_size=f"{MAXIMUM_MEGABYTES}mb",
            )
            print(f"open {url}; Ctrl-C ends it", flush=True)
            page.block_thread()
        finally:
            page.close(verbose=False)
            signal.signal(signal.SIGTERM, before)


def _make_input() -> "gradio.Image":
    import gradio

    image = gradio.Image(
        type="filepath",
        sources=["upload", "webcam", "clipboard"],
        label="picture",
        elem_id="picture",
    )
    # gradio's own reading ends in an error without a sentence; ours has one.
    image.preprocess = lambda sent: None if sent is None else sent.path
    return image


def _make_output(name: str) -> "gradio.Image":
    """Where a picture comes that says in itself what it shows: a label would cover its title."""
    import gradio

    return gradio.Image(
        label=name,
        show_label=False,
        elem_id=name,
        interactive=False,
        buttons=["download", "fullscreen"],
    )


def _answer(function: Any, image: str | None, *arguments: Any, **options: Any) -> Any:
    """A result for the page; what is wrong with a picture becomes a sentence there."""
    import gradio

    if image is None:
        raise gradio.Error("There is no picture yet.", print_exception=False)
    try:
        return function(image, *arguments, **options)
    except (ValueError, FileNotFoundError) as error:
        sentence = str(error).replace(image, "This picture")
        raise gradio.Error(sentence, print_exception=False) from None


def _as_picture(figure: Any) -> Any:
    from PIL import Image, ImageOps

    content = io.BytesIO()
    figure.savefig(content, format="png")
    picture = Image.open(content).convert("RGB")
    # gradio's buttons lie on the upper border, where the titles are.
    return ImageOps.expand(picture, (0, picture.width // 10, 0, 0), "white")
