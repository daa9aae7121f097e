"""The family: what a variant is made of, and the table of all of them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar


@dataclass(frozen=True)
class Variant:
    """The architecture of one model; the paper's symbols stand beside the fields.

    Per-stage fields have four entries, for the stages at 1/4, 1/8, 1/16 and 1/32 of the image.
    """

    name: str
    source: str  # where the paper has it, or "ours"
    image_size: int  # s, pixels
    block_size: int = 8  # b
    halo_size: int = 3  # h
    value_ratio: float = 1.0  # r_v
    bottleneck_ratio: float = 1.0  # r_b
    query_key_ratio: float = 1.0  # r_qk
    layers: tuple[int, int, int, int] = (3, 3, 7, 3)  # the third is l3
    base_width: int = 64  # c of the first stage, doubled in each later one
    heads: tuple[int, int, int, int] = (4, 8, 8, 8)
    spatial: tuple[str, str, str, str] = ("attention",) * 4  # or "convolution"
    squeeze_excitation: tuple[bool, bool, bool, bool] = (False,) * 4
    stem: str = "convolution"  # 7x7, stride 2, and max pool; or "patch": 4x4, stride 4
    stem_width: int = 64
    final_width: int | None = None  # d_f
    activation: str = "silu"
    kernel_size: int | None = None  # SASA's k
    position: str = "relative"
    mask_padding: bool = True
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    parameters: int | None = None  # counted with 1000 classes and 3 input channels


@dataclass(frozen=True)
class TimmVariant:
    """The architecture of one of timm's HaloNets, by timm's name.

    A block and a halo that are None are timm's, which may differ between stages.
    """

    architecture: str
    image_size: int  # pixels
    block_size: int | None = None
    halo_size: int | None = None
    dropout: float = 0.0
    stochastic_depth: float = 0.0

    @property
    def name(self) -> str:
        """timm's name, as `create_model` takes it."""
        return self.architecture

    @property
    def source(self) -> str:
        """Who made it."""
        return "timm"


_H7 = Variant(
    "halonet_h7",
    "paper table 3",
    600,
    block_size=10,
    value_ratio=4.0,
    bottleneck_ratio=3.5,
    layers=(3, 3, 26, 3),
    final_width=2048,
    parameters=67_393_288,
)
# Hybrids (appendix B): squeeze-and-excitation after the 3x3 in the stages of convolutions.
_H7_HYBRID = replace(_H7, source="paper appendix B")
_BASE128 = Variant(
    "halonet_h4_base128",
    "paper section 4.4",
    256,
    halo_size=2,
    bottleneck_ratio=4.0,
    layers=(3, 4, 12, 3),
    base_width=128,
    parameters=85_138_760,
)
_ABLATION = Variant(
    "halonet_50",
    "paper section 4.2",
    256,
    bottleneck_ratio=4.0,
    layers=(3, 4, 6, 3),
    activation="relu",
    heads=(4, 8, 16, 32),  # 16 channels a head
    parameters=18_017_576,
)
_A, _C = "attention", "convolution"
# Backbones for detection: attention of 8 heads in the last stage, squeeze-and-excitation in all.
_DETECTION = Variant(
    "resnet_50_se",
    "paper, detection",
    512,
    bottleneck_ratio=4.0,
    layers=(3, 4, 6, 3),
    spatial=(_C,) * 4,
    squeeze_excitation=(True,) * 4,
    activation="relu",
)
_DETECTION_HALO = replace(_DETECTION, spatial=(_C, _C, _C, _A))

# fmt: off
_TABLE = (
    Variant("halonet_h0", "paper table 3", 256, 8, 3, 1.0, 0.5, parameters=5_485_352),
    Variant("halonet_h1", "paper table 3", 256, 8, 3, 1.0, 1.0,
            layers=(3, 3, 10, 3), parameters=8_081_288),
    Variant("halonet_h2", "paper table 3", 256, 8, 3, 1.0, 1.25,
            layers=(3, 3, 11, 3), parameters=9_384_488),
    Variant("halonet_h3", "paper table 3", 320, 10, 3, 1.0, 1.5,
            layers=(3, 3, 12, 3), final_width=1024, parameters=11_817_928),
    Variant("halonet_h4", "paper table 3", 384, 12, 2, 1.0, 3.0,
            layers=(3, 3, 12, 3), final_width=1280, parameters=19_079_944),
    Variant("halonet_h5", "paper table 3", 448, 14, 2, 2.5, 2.0,
            layers=(3, 3, 23, 3), final_width=1536, parameters=30_679_016),
    Variant("halonet_h6", "paper table 3", 512, 8, 4, 3.0, 2.75,
            layers=(3, 3, 24, 3), final_width=1536, parameters=43_417_096),
    _H7,
    replace(_H7_HYBRID, name="halonet_h7_conv1", spatial=(_C, _A, _A, _A),
            squeeze_excitation=(True, False, False, False), parameters=67_302_064),
    replace(_H7_HYBRID, name="halonet_h7_conv12", spatial=(_C, _C, _A, _A),
            squeeze_excitation=(True, True, False, False), parameters=66_942_640),
    replace(_H7_HYBRID, name="halonet_h7_conv123", spatial=(_C, _C, _C, _A),
            squeeze_excitation=(True, True, True, False), parameters=54_535_856),
    _BASE128,
    replace(_BASE128, name="halonet_h4_base128_patch4", stem="patch", parameters=85_132_424),
    replace(_BASE128, name="halonet_h4_base128_conv12", spatial=(_C, _C, _A, _A),
            parameters=87_002_280),
    _ABLATION,
    replace(_ABLATION, name="resnet_50", spatial=(_C,) * 4, parameters=25_557_032),
    replace(_DETECTION, parameters=25_875_648),
    replace(_DETECTION_HALO, name="resnet_50_se_halo8", parameters=21_161_088),
    replace(_DETECTION_HALO, name="resnet_50_se_halo32", block_size=32, parameters=21_170_304),
    replace(_DETECTION, name="resnet_101_se", layers=(3, 4, 23, 3), parameters=45_151_200),
    replace(_DETECTION_HALO, name="resnet_101_se_halo8", layers=(3, 4, 23, 3),
            parameters=40_436_640),
    Variant("halonet_tiny", "ours", 96, 4, 2, 1.0, 2.0, layers=(1, 1, 1, 1), base_width=32,
            heads=(2, 4, 8, 8), spatial=(_C, _C, _A, _A), stem_width=32, parameters=1_251_096),
)
# fmt: on

VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _TABLE}

AnyVariant = TypeVar("AnyVariant", bound=Variant | TimmVariant)
_LABELS = {"name", "source", "parameters", "architecture"}


def get_variant(name: str, **changes: Any) -> Variant:
    """The architecture called `name`, with some of its fields changed."""
    if name not in VARIANTS:
        raise ValueError(f"model must be one of {', '.join(VARIANTS)}, got {name!r}")
    return change_variant(VARIANTS[name], changes)


def list_models() -> list[str]:
    """Names of the family's models, the paper's first."""
    return list(VARIANTS)


def change_variant(variant: AnyVariant, changes: Mapping[str, Any]) -> AnyVariant:
    """A variant with some of its fields changed, lists for tuples.

    Raises:
        ValueError: there is no such field; its message lists them.
    """
    values = dict(changes)
    names = {field.name for field in fields(variant)} - _LABELS
    unknown = sorted(values.keys() - names)
    if unknown:
        raise ValueError(f"options of a model are {', '.join(sorted(names))}; got {unknown[0]!r}")
    if isinstance(values.get("squeeze_excitation"), bool):
        values["squeeze_excitation"] = (values["squeeze_excitation"],) * 4
    for field, value in values.items():
        if isinstance(value, list):
            values[field] = tuple(value)
    if all(getattr(variant, field) == value for field, value in values.items()):
        return variant
    if isinstance(variant, Variant):
        values["parameters"] = None
    return replace(variant, **values)
