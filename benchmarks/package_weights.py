"""The weights that come with the package, from a run: matrices in half precision.

Vectors, batch norm's statistics among them, stay in float32: a variance may be below what half
precision holds. Run as `python benchmarks/package_weights.py RUN`.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save

import halonet
from halonet.files import write_atomically
from halonet.models.creation import find_weights
from halonet.models.metadata import find_checkpoint, read_metadata, read_weights
from halonet.models.pretrained import ModelDescription


def main(run: str) -> None:
    source = find_checkpoint(Path(run))
    tensors, description = read_weights(source, ModelDescription)
    halved = {
        name: tensor.half() if tensor.dim() > 1 and tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    if not all(torch.isfinite(tensor).all() for tensor in halved.values()):
        raise SystemExit("a weight is too large for half precision")
    path = Path(find_weights(description.variant, True))
    content = save(halved, read_metadata(source))
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
    model = halonet.create_model(description.variant.name, pretrained=True)
    difference = max(
        float((one - tensors[name]).abs().max()) for name, one in model.state_dict().items()
    )
    print(f"{path}: {path.stat().st_size:,} bytes, largest difference of a weight {difference:.1e}")


if __name__ == "__main__":
    main(*sys.argv[1:])
