"""The effective receptive field of each stage (Luo et al. 2016, arXiv 1701.04128)."""

import json
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from halonet.data.pixels import prepare_image
from halonet.data.splits import Source
from halonet.explain.attention import keep_outputs
from halonet.files import save_figure
from halonet.models.classifier import Classifier

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARES = (0.5, 0.9)
ROUNDING = 1e-6  # of a sum


@dataclass(frozen=True)
class ReceptiveField:
    """How much each pixel of an image moves the pixel in the middle of a stage's map.

    Attributes:
        name: of the model.
        images: number of images over which it is the mean.
        gradients: of each stage [stages, image_size, image_size], above 0; they sum to 1.
    """

    name: str
    images: int
    gradients: Tensor

    def side(self, stage: int, share: float = 0.5) -> int:
        """Pixels on a side of the smallest square with this share of a stage's gradients.

        Its centre is the pixel of the largest gradient; of what lies outside the image is nothing.

        Args:
            stage: counted from 1.
            share: of the gradients, 0 to 1.
        """
        gradients = self.gradients[stage - 1]
        row, column = divmod(int(gradients.argmax()), gradients.shape[1])
        rows, columns = (torch.arange(size) for size in gradients.shape)
        distances = torch.maximum((rows - row).abs()[:, None], (columns - column).abs())
        sums = torch.zeros(int(distances.max()) + 1, dtype=torch.double)
        sums.index_add_(0, distances.flatten(), gradients.flatten().double())
        sums = sums.cumsum(0)
        return 2 * int((sums < share * sums[-1] * (1 - ROUNDING)).sum()) + 1

    def to_dict(self) -> dict[str, Any]:
        """The sides of the squares by stage as JSON has them."""
        sides = {
            f"side_of_{round(100 * share)}_percent": [
                self.side(stage, share) for stage in range(1, len(self.gradients) + 1)
            ]
            for share in SHARES
        }
        return {"model": self.name, "images": self.images, **sides}

    def to_json(self) -> str:
        """The sides as text."""
        return json.dumps(self.to_dict())

    def plot(
        self, path: Path | str | None = None, *, beside: "ReceptiveField | None" = None
    ) -> "Figure":
        """A picture for each stage, those of another model below; written to `path`."""
        from halonet.explain.pictures import draw_fields

        fields = [self] if beside is None else [self, beside]
        rows = [
            (field.name, field.gradients, [*map(field.side, range(1, len(field.gradients) + 1))])
            for field in fields
        ]
        return save_figure(draw_fields(rows), path)


def measure_receptive_field(
    model: Classifier, sources: Iterable[Source], *, name: str | None = None
) -> ReceptiveField:
    """The mean magnitude of the gradient of the middle of each stage's map, by the pixels.

    A pixel of the map is the sum of its channels, and so is one of the image, of magnitudes.

    Args:
        model: not fused; it is set to eval mode.
        sources: paths or other stored bytes, or functions that give an image; one or more.
        name: of the model, for the result; None takes its variant's.

    Raises:
        ValueError: an image can't be read. FileNotFoundError: there is no such image.
    """
    model.eval()
    device = next(model.parameters()).device
    total = torch.zeros(())
    images = 0
    for source in sources:
        image = prepare_image(source, model.preprocessing, model.in_channels).to(device)
        pixels = image[None].requires_grad_()
        maps: list[Tensor] = []
        with torch.enable_grad(), ExitStack() as hooks:
            for stage in model.stages.children():
                hooks.enter_context(keep_outputs(stage, maps.append))
            model.forward_features(pixels)
            middles = [one[0, :, one.shape[2] // 2, one.shape[3] // 2].sum() for one in maps]
            gradients = [
                torch.autograd.grad(middle, pixels, retain_graph=True)[0] for middle in middles
            ]
        total = total + torch.cat(gradients).abs().sum(1).cpu()
        images += 1
    shares = total / total.sum((1, 2), keepdim=True).clamp(min=torch.finfo(total.dtype).tiny)
    return ReceptiveField(name or model.variant.name, images, shares)
