"""From the description of an architecture to the model, whichever kind it is."""

from typing import Any

from halonet.layers.timm_attention import import_timm
from halonet.models.classifier import Classifier
from halonet.models.halonet import HaloNet
from halonet.models.variants import TimmVariant, Variant


def build_classifier(
    variant: Variant | TimmVariant,
    *,
    num_classes: int,
    in_channels: int = 3,
    backend: str | None = None,
) -> Classifier:
    """The model of an architecture, with fresh weights.

    Raises:
        ValueError: an option of the variant that doesn't fit; the message names it.
        ModuleNotFoundError: a model of timm's without timm.
    """
    options: dict[str, Any] = {"in_channels": in_channels, "backend": backend}
    if isinstance(variant, Variant):
        return HaloNet(variant, num_classes=num_classes, **options)
    import_timm()
    from halonet.models.byob_halonet import make_byob_halonet  # with timm, which is an extra

    return make_byob_halonet(variant, num_classes=num_classes, **options)
