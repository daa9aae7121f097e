"""The license that a checkpoint's weights come under, as far as its run tells."""

from pathlib import Path
from typing import Any

from halonet.data.sources import TERMS
from halonet.models.creation import PACKAGED, find_weights
from halonet.models.timm_variants import find_timm_name
from halonet.models.variants import get_variant
from halonet.training.checkpoint import find_run, read_config


def find_license(checkpoint: Path) -> str | None:
    """The terms of the weights that a run started from and of its data; None where none are known.

    Args:
        checkpoint: in a run folder, of a classifier or a detector, or the weights of the package.

    Raises:
        ValueError: the run's configuration can't be read.
    """
    for name in PACKAGED:
        if checkpoint.samefile(find_weights(get_variant(name), True)):
            return _of_packaged(name)
    run = find_run(checkpoint)
    if run is None:
        return None
    make: Any = dict  # a run of any task
    config: Any = read_config(run, make)
    name = str(config.get("model"))
    parts = []
    if config.get("pretrained") is True:
        parts.append(_of_packaged(name) if name in PACKAGED else _of_timms(name))
    elif config.get("pretrained") or config.get("init"):
        parts.append("weights that it started from: unknown")
    if config.get("data") in TERMS:
        parts.append(f"data {config['data']}: {TERMS[config['data']]}")
    return "; ".join(parts) or None


def _of_packaged(name: str) -> str:
    return f"weights of {name} {PACKAGED[name].strip(' ()')}"


def _of_timms(name: str) -> str:
    from timm.models import get_pretrained_cfg

    stated = get_pretrained_cfg(find_timm_name(name) or name)
    return f"timm's weights of {name}: {(stated and stated.license) or 'unknown'}"
