"""A page on this machine to try a classifier: drop a picture, see the answer and why."""

import io
import os
import tempfile
from typing import TYPE_CHECKING, Any

from halonet.inference import LoadedRun

if TYPE_CHECKING:
    import gradio

LOCAL = "127.0.0.1"
MAXIMUM_MEGABYTES = 20
SHOWN_CLASSES = 5
KEPT_SECONDS = 600  # that gradio keeps what was sent, in a folder that goes with the page


def make_page(run: LoadedRun) -> "gradio.Blocks":
    """The page for a classifier, not yet served.

    Raises:
        ModuleNotFoundError: gradio isn't there.
    """
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

    def look(image: str | None, stage: int, head: int, event: gradio.SelectData) -> Any:
        at = (float(event.index[0]), float(event.index[1]))
        attention = _answer(run.attention, image, at, stage=stage, head=int(head) or None)
        return _as_picture(attention.plot())

    # One after the other: explanations put hooks into the model for a while.
    alone: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}

    def reset() -> tuple[None, None, None]:
        return None, None, None

    with gradio.Blocks(
        title="halonet", analytics_enabled=False, delete_cache=(60, KEPT_SECONDS)
    ) as page:
        gradio.Markdown(f"# {run.model.variant.name}\nDrop or paste a picture, or take one.")
        with gradio.Row():
            image = gradio.Image(
                type="filepath", sources=["upload", "webcam", "clipboard"], label="picture"
            )
            # gradio's own reading ends in an error without a sentence; ours has one.
            image.preprocess = lambda sent: None if sent is None else sent.path
            answer = gradio.Label(num_top_classes=SHOWN_CLASSES, label="answer")
        with gradio.Row():
            with gradio.Column():
                class_name = gradio.Dropdown(
                    ["", *run.class_names], value="", label="class (empty: the most probable)"
                )
                method = gradio.Dropdown([*METHODS], value=DEFAULT_METHOD, label="method")
                button = gradio.Button("what speaks for this class?")
                relevance = gradio.Image(label="relevance", interactive=False)
            with gradio.Column(visible=bool(layers)):
                stage = gradio.Dropdown(stages, value=stages[-1] if stages else None, label="stage")
                head = gradio.Number(0, precision=0, minimum=0, label="head (0: the mean of all)")
                gradio.Markdown("Click on the picture to see where this place looks.")
                attention = gradio.Image(label="attention", interactive=False)
        image.input(predict, image, answer, api_name="predict", **alone)
        image.clear(reset, None, [answer, relevance, attention])
        button.click(explain, [image, class_name, method], relevance, api_name="explain", **alone)
        image.select(look, [image, stage, head], attention, **alone)
    return page


def serve(run: LoadedRun, *, host: str = LOCAL, port: int | None = None) -> None:
    """Serve the page until it is stopped. What was sent is deleted with the page's folder.

    Args:
        run: the classifier.
        host: address to listen on; the default one is reached from this machine only.
        port: None takes the first free one from 7860 on.

    Raises:
        ModuleNotFoundError: gradio isn't there.
        OSError: the port is taken.
    """
    # gradio reads where to put files from the environment.
    with tempfile.TemporaryDirectory(prefix="halonet-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        page = make_page(run)
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
    from PIL import Image

    content = io.BytesIO()
    figure.savefig(content, format="png")
    return Image.open(content)
