"""How well a relevance fits the model: deletion and insertion (RISE, arXiv 1806.07421)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from halonet.explain.relevance import BATCH_SIZE
from halonet.models.classifier import Classifier

STEPS = 32
BLUR_SHARE = 1 / 16  # standard deviation of the blur, of the image's shorter side


@dataclass(frozen=True)
class Curves:
    """A class's probability as pixels are taken away or added, the most relevant first.

    Attributes:
        deletion: probabilities [steps + 1] from the whole image to the mean colour only.
        insertion: probabilities [steps + 1] from the blurred image to the whole one.
    """

    deletion: Tensor
    insertion: Tensor

    @property
    def deletion_area(self) -> float:
        """Mean height of the deletion curve, 0 to 1; lower is better."""
        return torch.trapezoid(self.deletion).item() / (len(self.deletion) - 1)

    @property
    def insertion_area(self) -> float:
        """Mean height of the insertion curve, 0 to 1; higher is better."""
        return torch.trapezoid(self.insertion).item() / (len(self.insertion) - 1)


@torch.no_grad()
def measure_curves(
    model: Classifier,
    image: Tensor,
    relevance: Tensor,
    class_index: int,
    *,
    cell_size: int = 1,
    steps: int = STEPS,
) -> Curves:
    """Delete and insert an image's pixels in the order of their relevance.

    Pixels one by one favour methods that find noise to which the model is sensitive; squares of
    some pixels, each in the order of its mean relevance, show what parts of the image matter.

    Args:
        model: in eval mode.
        image: as the model takes it, [channels, height, width].
        relevance: [height, width].
        class_index: the class whose probability is followed.
        cell_size: pixels on a side of the squares that are deleted and inserted as a whole.
        steps: each takes away or adds the same number of pixels.
    """
    pixels = relevance.numel()
    if cell_size > 1:
        relevance = _average_cells(relevance, cell_size)
    order = relevance.flatten().argsort(descending=True, stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(pixels, device=order.device)
    limits = torch.linspace(0, pixels, steps + 1, device=order.device).round()
    taken = (ranks < limits[:, None]).view(-1, 1, *relevance.shape)  # [steps + 1, 1, H, W]
    sigma = BLUR_SHARE * min(image.shape[1:])
    side = 2 * min(round(3 * sigma), min(image.shape[1:]) - 1) + 1
    blurred = gaussian_blur(image, [side, side], [sigma, sigma])
    return Curves(
        find_probabilities(model, image.where(~taken, 0))[:, class_index].cpu(),
        find_probabilities(model, image.where(taken, blurred))[:, class_index].cpu(),
    )


def _average_cells(relevance: Tensor, side: int) -> Tensor:
    """The mean of each square, in all of its pixels."""
    means = F.avg_pool2d(relevance[None, None], side, ceil_mode=True)
    enlarged = means.repeat_interleave(side, 2).repeat_interleave(side, 3)[0, 0]
    return enlarged[: relevance.shape[0], : relevance.shape[1]]


@torch.no_grad()
def find_probabilities(model: Classifier, images: Tensor) -> Tensor:
    """Class probabilities [batch, classes] of images as the model takes them."""
    logits = torch.cat([model(batch) for batch in images.split(BATCH_SIZE)]).float()
    return logits.sigmoid() if model.task == "multilabel" else logits.softmax(1)
