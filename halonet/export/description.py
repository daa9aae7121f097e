"""What an exported file says of its model, as JSON texts by name."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from halonet.models.classifier import Classifier, LabelTask, Preprocessing

KEY = "halonet."  # the names' common beginning


@dataclass(frozen=True)
class ExportDescription:
    """The metadata of an exported classifier.

    Attributes:
        model: name of the variant.
        num_classes, in_channels, preprocessing, class_names, task: as of a `Classifier`.
        parameters: number of the model's parameters.
        precision: of weights and activations.
        with_preprocessing: the file takes photos as bytes [batch, height, width, in_channels], not
            prepared images [batch, in_channels, height, width].
        command: that wrote the file.
        license: of the weights, in words; None where it isn't known, as in earlier files.
    """

    model: str
    num_classes: int
    in_channels: int
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None
    task: LabelTask
    parameters: int
    precision: str
    with_preprocessing: bool
    command: str
    license: str | None = None


def describe(
    model: Classifier,
    *,
    precision: str,
    with_preprocessing: bool,
    command: str,
    license: str | None = None,  # noqa: A002 - the usual name
) -> ExportDescription:
    """The metadata of a model's file."""
    return ExportDescription(
        model=model.variant.name,
        num_classes=model.num_classes,
        in_channels=model.in_channels,
        preprocessing=model.preprocessing,
        class_names=model.class_names,
        task=model.task,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        precision=precision,
        with_preprocessing=with_preprocessing,
        command=command,
        license=license,
    )


def to_metadata(description: ExportDescription) -> dict[str, str]:
    """A text for each field: "halonet.preprocessing" and so on, each in JSON."""
    fields = dataclasses.asdict(description)
    return {KEY + name: json.dumps(value) for name, value in fields.items()}


def from_metadata(metadata: Mapping[str, str]) -> ExportDescription:
    """Read what `to_metadata` made.

    Raises:
        ValueError: a field is missing, or isn't what it should be.
    """
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(ExportDescription):
        if KEY + field.name in metadata:
            fields[field.name] = json.loads(metadata[KEY + field.name])
        elif field.default is dataclasses.MISSING:
            raise ValueError(f"its metadata has no {KEY + field.name!r}")
    try:
        given = fields["preprocessing"]
        fields["preprocessing"] = Preprocessing(
            **given | {name: tuple(given[name]) for name in ("mean", "std")}
        )
        if fields["class_names"] is not None:
            fields["class_names"] = tuple(map(str, fields["class_names"]))
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"its metadata's preprocessing or class names are damaged: {error}"
        ) from None
    return ExportDescription(**fields)
