"""The page as a Space of the Hugging Face Hub: a folder to push there."""

import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path

from halonet.files import require_empty, write_atomically, write_text
from halonet.inference.loading import find_weights, is_detector
from halonet.models.metadata import HUB_NAME

APP = f'''"""The page of `halonet demo`, as a Space."""

from pathlib import Path

from halonet import load_run
from halonet.demo.page import serve

serve(load_run(Path(__file__).with_name("{HUB_NAME}")), host=None)
'''
# https://huggingface.co/docs/hub/spaces-config-reference
README = """---
title: {title}
emoji: \N{EYE}
colorFrom: blue
colorTo: yellow
sdk: gradio
sdk_version: {gradio}
app_file: app.py
pinned: false
---

A model made with halonet, and a page to try it: drop a picture, see the prediction.
"""


def write_space(model: str | os.PathLike[str], folder: Path) -> list[Path]:
    """Write all that a Space needs: app.py, requirements.txt, README.md and the weights.

    Args:
        model: as `halonet.load_run` takes it.
        folder: new or empty.

    Returns:
        The files.

    Raises:
        FileExistsError: the folder holds something.
        FileNotFoundError, ValueError: as `load_run`.
        ModuleNotFoundError: gradio isn't there.
    """
    weights = find_weights(model)
    extras = "demo,detection" if is_detector(weights) else "demo"
    texts = {
        "README.md": README.format(
            title=json.dumps(folder.resolve().name), gradio=version("gradio")
        ),
        "app.py": APP,
        "requirements.txt": f"halonet[{extras}]=={version('halonet')}\n",
    }
    require_empty(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / HUB_NAME, lambda temporary: shutil.copyfile(weights, temporary))
    for name, text in texts.items():
        write_text(folder / name, text)
    return sorted(folder.iterdir())
