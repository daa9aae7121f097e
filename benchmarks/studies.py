"""The paper's studies in miniature, on photos that a CPU can learn from in minutes.

    python benchmarks/studies.py components --data folder:flowers --output runs/components

trains one model for each row of a study, one after the other, and writes a table; what is
finished is kept, what was stopped is resumed. With so few photos a row's accuracy is uncertain by
almost two points, so that the tables show that the parts work, not which is better.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from halonet.classification.config import TrainingConfig
from halonet.classification.recipes import get_recipe
from halonet.classification.training import resume, train
from halonet.data.augmentation import Augmentation
from halonet.files import write_text

ATTENTION, CONVOLUTION = ["attention"] * 4, ["convolution"] * 4
TINY = {
    "activation": "relu",
    "heads": [2, 4, 8, 16],  # 16 channels a head, as in the paper's ablations
    "block_size": 4,
    "halo_size": 2,
    "layers": [1, 1, 1, 1],
}
RANDAUGMENT = Augmentation(randaugment=10)


def make_trial(
    data: str, seed: int, model_options: dict[str, Any], **changes: Any
) -> TrainingConfig:
    """Eight epochs at 64 px of a model whose stages have one bottleneck each."""
    return dataclasses.replace(
        get_recipe("small"),
        data=data,
        model_options={**TINY, **model_options},
        image_size=64,
        epochs=8,
        evaluate_epochs=8,
        optimizer="nadamw",
        learning_rate=2e-3,
        cutmix=0.0,
        label_smoothing=0.0,
        log_with="none",
        seed=seed,
        **changes,
    )


def list_components(data: str, seed: int) -> dict[str, TrainingConfig]:
    """Table of components (paper section 4.2): LS, RA, SE and SiLU, with and without attention."""
    smoothing, augmentation = {"label_smoothing": 0.1}, {"augmentation": RANDAUGMENT}
    excitation: dict[str, Any] = {"squeeze_excitation": True}
    silu = {**excitation, "activation": "silu"}
    rows: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "baseline": ({}, {}),
        "LS": ({}, smoothing),
        "LS, RA": ({}, smoothing | augmentation),
        "SE": (excitation, {}),
        "SE, SiLU": (silu, {}),
        "LS, SE": (excitation, smoothing),
        "LS, SE, SiLU": (silu, smoothing),
        "LS, SE, SiLU, RA": (silu, smoothing | augmentation),
    }
    return {
        f"{kind}: {name}": dataclasses.replace(
            make_trial(data, seed, {"spatial": spatial, **options}), **changes
        )
        for kind, spatial in (("attention", ATTENTION), ("convolution", CONVOLUTION))
        for name, (options, changes) in rows.items()
    }


def list_windows(data: str, seed: int) -> dict[str, TrainingConfig]:
    """Window, block and halo (paper section 4.2), SASA's mask and absolute position."""
    rows: dict[str, dict[str, Any]] = {
        f"window {block + 2 * halo}: b = {block}, h = {halo}": {
            "block_size": block,
            "halo_size": halo,
        }
        for block, halo in ((2, 1), (4, 0), (2, 3), (4, 2), (6, 1), (8, 0), (4, 4))
    }
    rows["window 8 masked to 5 x 5: b = 4, h = 2"] = {"kernel_size": 5}
    rows["window 8, absolute position"] = {"position": "absolute"}
    return {
        name: make_trial(data, seed, {"spatial": ATTENTION, **options})
        for name, options in rows.items()
    }


STUDIES = {"components": list_components, "windows": list_windows}


def main() -> None:
    """Run one study."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--data", required=True, help="as for halonet train: folder:PATH")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    lines = ["| | parameters, M | accuracy, % | loss |", "|---|---|---|---|"]
    for name, config in STUDIES[options.study](options.data, options.seed).items():
        folder = options.output / "".join(c if c.isalnum() else "_" for c in name)
        if not (folder / "config.json").is_file():
            train(config, output=str(folder))
        elif not (folder / "summary.json").is_file():
            resume(folder)
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        lines.append(
            f"| {name} | {summary['parameters'] / 1e6:.2f} | {100 * summary['accuracy']:.1f} "
            f"| {summary['loss']:.3f} |"
        )
        write_text(options.output / "results.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
