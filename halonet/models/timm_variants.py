"""timm's HaloNets that have public weights, by timm's names; without timm."""

from dataclasses import dataclass
from typing import Literal, get_args

TimmName = Literal[
    "halonet26t",
    "halonet50ts",
    "sehalonet33ts",
    "eca_halonext26ts",
    "haloregnetz_b",
    "halo2botnet50ts_256",
    "lamhalobotnet50ts_256",
]


@dataclass(frozen=True)
class TimmCheckpoint:
    """One of timm's HaloNets, and its weights on the Hub.

    Attributes:
        tag: of the weights, which stands after the model's name.
        image_size: pixels, as timm trained it.
        parameters: with 1000 classes and 3 channels.
        flops: of an image of this size, a multiply-add counting as two.
        any_size: whether it takes images of any size; else its last attention has a table of
            the map's size.
    """

    tag: str
    image_size: int
    parameters: int
    flops: int
    any_size: bool = True


# fmt: off
TIMM_CHECKPOINTS: dict[str, TimmCheckpoint] = dict(zip(get_args(TimmName), (
    TimmCheckpoint("a1h_in1k", 256, 12_480_288, 6_339_854_336),
    TimmCheckpoint("a1h_in1k", 256, 22_733_280, 10_520_264_704),
    TimmCheckpoint("ra2_in1k", 256, 13_691_712, 7_047_200_768),
    TimmCheckpoint("c1_in1k", 256, 10_756_885, 4_838_037_248),
    TimmCheckpoint("ra3_in1k", 224, 11_680_072, 3_896_054_400),
    TimmCheckpoint("a1h_in1k", 256, 22_635_360, 9_958_883_328, any_size=False),
    TimmCheckpoint("a1h_in1k", 256, 22_569_824, 9_969_369_088, any_size=False),
), strict=True))
# fmt: on


def find_timm_name(name: str) -> TimmName | None:
    """The model that a name of timm or of the Hub means, or None where it is none of the seven.

    Takes halonet50ts, halonet50ts.a1h_in1k, timm/halonet50ts.a1h_in1k and both forms of the
    Hub's prefix, hf-hub: and hf_hub:.

    Raises:
        ValueError: a tag for which there are no weights.
    """
    if not isinstance(name, str):
        return None
    plain = name.replace("hf_hub:", "hf-hub:", 1).removeprefix("hf-hub:").removeprefix("timm/")
    model, _, tag = plain.partition(".")
    for known in get_args(TimmName):
        if model == known:
            if tag not in ("", TIMM_CHECKPOINTS[known].tag):
                raise ValueError(
                    f"model {known} has the weights {known}.{TIMM_CHECKPOINTS[known].tag} "
                    f"only, got {name!r}"
                )
            return known
    return None
