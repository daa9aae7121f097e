"""Our models on the Hugging Face Hub, through the hub's own mixin, with a model card."""

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from halonet.files import write_text
from halonet.models.building import build_classifier
from halonet.models.classifier import Classifier
from halonet.models.flops import count_flops
from halonet.models.halonet import HaloNet
from halonet.models.metadata import HUB_NAME, find_misfit, unwrap
from halonet.models.pretrained import describe_model, load_model, save_model

try:
    from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin, hf_hub_download
except ModuleNotFoundError as error:
    if error.name != "huggingface_hub":
        raise
    raise ModuleNotFoundError(
        "huggingface_hub is not installed; the Hub needs it: pip install 'halonet[hub]'",
        name="huggingface_hub",
    ) from None

CONFIG_NAME = "config.json"
PAPER_URL = "https://arxiv.org/abs/2103.12731"

CARD = """---
{{ card_data }}
---

# {{ name }}

A HaloNet ([paper]({{ paper_url }})) for image classification, made with the Python package halonet.

| | |
|---|---|
| architecture | {{ name }}, {{ source }}; block {{ block_size }}, halo {{ halo_size }} |
| parameters | {{ parameters }} |
| FLOPs | {{ flops }} at {{ image_size }} px (a multiply-add counts as two) |
| images | {{ image_size }} px, {{ in_channels }} channels, mean {{ mean }}, std {{ std }} |
| classes | {{ num_classes }} |
| data | {{ data }} |
{% for metric, value in metrics.items() %}| {{ metric }} | {{ value }} |
{% endfor %}
{% if command %}The command that made it:

```
{{ command }}
```
{% endif %}
```python
from halonet.integrations.hub import HubHaloNet

model = HubHaloNet.from_pretrained("{{ repo_id }}")
logits = model(images)  # [batch, {{ in_channels }}, height, width], normalized as above
```
{% if class_names %}
Classes, in order: {{ class_names | join(", ") }}.
{% endif %}"""


class HubClassifier(
    Classifier,
    PyTorchModelHubMixin,
    library_name="halonet",
    pipeline_tag="image-classification",
    tags=["image-classification", "halonet"],
    paper_url=PAPER_URL,
    model_card_template=CARD,
):
    """A classifier with the Hub's `save_pretrained`, `push_to_hub` and `from_pretrained`.

    A repository holds model.safetensors, which is a file of `halonet.save_model` and says
    everything, config.json, which repeats it for people, and the card. Nothing is unpickled.
    The card takes `model_card_kwargs`: `data`, `metrics` (names to values), `command`, `license`,
    `repo_id`.

    Example:
        >>> model = HubHaloNet.from_model(halonet.load_model("model.safetensors"))
        >>> card = {"data": "Flowers102, train", "metrics": {"top-1, test": "81.2 %"}}
        >>> model.push_to_hub("user/flowers", model_card_kwargs=card)
        >>> again = HubHaloNet.from_pretrained("user/flowers", block_size=16)
    """

    @classmethod
    def from_model(cls, model: nn.Module, *, backend: str | None = None) -> "HubClassifier":
        """The same model for the Hub; parameters share their memory with `model`'s.

        Raises:
            TypeError: `model` is no `Classifier`, nor the wrapper of one.
            ValueError: its tensors aren't those of its variant, as those of a fused model.
        """
        model = unwrap(model, Classifier)
        with torch.device("meta"):
            ours: Any = build_classifier(
                model.variant,
                num_classes=model.num_classes,
                in_channels=model.in_channels,
                backend=backend,
            )
        misfit = find_misfit(model.state_dict(), ours)
        if misfit is not None:
            raise ValueError(
                f"model can't go to the Hub: its tensors aren't those of {model.variant.name}: "
                f"{misfit}; of a fused or changed model, take the one that it was made from"
            )
        ours.load_state_dict(model.state_dict(), assign=True)
        ours.__class__ = _find_class(type(ours))
        ours.preprocessing = model.preprocessing
        ours.class_names = model.class_names
        ours.task = model.task
        return ours.train(model.training)

    def _save_pretrained(self, save_directory: Path) -> None:
        save_model(self, save_directory / HUB_NAME)
        description = {"library_name": "halonet", "model": asdict(describe_model(self))}
        content = json.dumps(description, indent=2) + "\n"
        write_text(save_directory / CONFIG_NAME, content)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **options: Any
    ) -> "HubClassifier":
        """The mixin's: a model of the Hub or of a folder, in eval mode.

        Args:
            pretrained_model_name_or_path: a repository, as "user/flowers", or a folder.
            **options: the mixin's `revision`, `cache_dir`, `token` and so on, `map_location`,
                `backend`, and `load_model`'s `num_classes` and fields of `Variant`.

        Raises:
            ValueError: its files aren't ours, or an option doesn't fit.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **options)
        except json.JSONDecodeError as error:  # the weights' own description is told by name
            raise ValueError(
                f"{CONFIG_NAME} of {pretrained_model_name_or_path} is not JSON: {error}"
            ) from None

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        map_location: str = "cpu",
        strict: bool = True,
        backend: str | None = None,
        **changes: Any,
    ) -> "HubClassifier":
        """`changes` are `load_model`'s: num_classes, fields of `Variant`."""
        if not strict:
            raise ValueError("strict must be True: load_model resamples what may differ, got False")
        path = os.path.join(model_id, HUB_NAME)
        if not os.path.isdir(model_id):
            path = hf_hub_download(
                repo_id=model_id,
                filename=HUB_NAME,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                token=token,
                local_files_only=local_files_only,
            )
        model = cls.from_model(load_model(path, **changes), backend=backend)
        return model.to(map_location).eval()

    def generate_model_card(
        self,
        *,
        data: str = "not stated",
        metrics: Mapping[str, object] | None = None,
        command: str | None = None,
        license: str | None = None,  # noqa: A002 - the card's own name
        repo_id: str = "user/repository",
    ) -> ModelCard:
        """The card: what the model is, and what its maker says of it.

        Args:
            data: what it was trained on.
            metrics: names to values, as {"top-1, held-out": "82.5 %"}.
            command: the command that made it.
            license: the weights' license, by the Hub's identifier.
            repo_id: where it will stand, for the lines that load it.
        """
        info = self._hub_mixin_info
        card_data = ModelCardData(**(info.model_card_data.to_dict() | {"license": license}))
        variant, size = self.variant, self.preprocessing.image_size
        operations = count_flops(
            variant, size, num_classes=self.num_classes, in_channels=self.in_channels
        )
        return ModelCard.from_template(
            card_data=card_data,
            template_str=info.model_card_template,
            paper_url=info.paper_url,
            name=variant.name,
            source=variant.source,
            block_size=_or_timms(variant.block_size),
            halo_size=_or_timms(variant.halo_size),
            parameters=f"{sum(parameter.numel() for parameter in self.parameters()):,}",
            flops=f"{operations / 1e9:.2f} billion",
            image_size=size,
            in_channels=self.in_channels,
            mean=_numbers(self.preprocessing.mean),
            std=_numbers(self.preprocessing.std),
            num_classes=self.num_classes,
            class_names=self.class_names,
            data=data,
            metrics=dict(metrics or {}),
            command=command,
            repo_id=repo_id,
        )


class HubHaloNet(HubClassifier, HaloNet):
    """A `HaloNet` for the Hub; its `from_model` and `from_pretrained` take timm's models too."""


@functools.cache
def _find_class(kind: type[Classifier]) -> type[Classifier]:
    """The class for the Hub of a kind of classifier."""
    if issubclass(kind, HaloNet):
        return HubHaloNet
    return type(f"Hub{kind.__name__}", (HubClassifier, kind), {"__doc__": kind.__doc__})


def _or_timms(size: int | None) -> str:
    return "timm's" if size is None else str(size)


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
