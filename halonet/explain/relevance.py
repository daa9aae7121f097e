"""The relevance of each pixel of an image for a class, by one of several methods."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from halonet.explain.attention import keep_outputs
from halonet.explain.rollout import roll_attention
from halonet.models.classifier import STRIDES, Classifier

Method = Literal["gradcam", "rollout", "integrated_gradients", "occlusion"]
METHODS: tuple[str, ...] = get_args(Method)
DEFAULT_METHOD = "integrated_gradients"  # docs/explain.md compares them
INTEGRATION_STEPS = 16
OCCLUDED_SHARE = 1 / 4  # of the image's side that a square hides
BATCH_SIZE = 8  # small: explanations are of one image, which may be large
GRADIENT_BATCH_SIZE = 4  # a gradient keeps the maps of all layers


def measure_relevance(
    model: Classifier,
    image: Tensor,
    class_index: int,
    *,
    method: str = DEFAULT_METHOD,
    stage: int | None = None,
) -> Tensor:
    """How much each pixel speaks for a class, [height, width]; below 0 where it speaks against.

    Only the order and the proportions mean something. Coarse maps are enlarged bilinearly.

    Args:
        model: in eval mode, not fused.
        image: as the model takes it, [channels, height, width].
        class_index: the class.
        method: `gradcam` (Selvaraju et al. 2017, arXiv 1610.02391, without its last ReLU),
            `rollout` (gradient times attention, see `roll_attention`), `integrated_gradients`
            (Sundararajan et al. 2017, arXiv 1703.01365, from the mean colour on), or `occlusion`
            (Zeiler and Fergus 2013, arXiv 1311.2901: what the logit loses where squares of the
            mean colour hide the image).
        stage: whose map `gradcam` reads, 1 to 4; None means 4. The other methods have none.

    Raises:
        ValueError: an unknown method or stage, a stage for another method than `gradcam`, rollout
            of a model without attention.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if method == "gradcam":
        last = len(STRIDES)
        if stage is not None and not 1 <= stage <= last:
            raise ValueError(f"stage must be from 1 to {last}, got {stage}")
        coarse = grad_cam(model, image, class_index, last if stage is None else stage)
        return _enlarge(coarse, image)
    if stage is not None:
        raise ValueError(f"stage is for method gradcam, not {method}")
    if method == "rollout":
        return _enlarge(roll_attention(model, image, class_index), image)
    run = integrate_gradients if method == "integrated_gradients" else occlude
    return run(model, image, class_index)


def _enlarge(coarse: Tensor, image: Tensor) -> Tensor:
    size = (image.shape[1], image.shape[2])
    return F.interpolate(coarse[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]


def grad_cam(model: Classifier, image: Tensor, class_index: int, stage: int) -> Tensor:
    """The stage's channels, added with the means of their gradients as weights."""
    kept: list[Tensor] = []
    module = model.stages[stage - 1]
    with torch.enable_grad(), keep_outputs(module, kept.append):
        score = model(image[None].requires_grad_())[0, class_index]
        maps = kept[0]
        (gradients,) = torch.autograd.grad(score, maps)
    return (gradients.mean((2, 3), keepdim=True) * maps).sum(1)[0].detach()


def integrate_gradients(model: Classifier, image: Tensor, class_index: int) -> Tensor:
    """The image times the mean gradient on the way to it from the mean colour, which is 0."""
    steps = (torch.arange(INTEGRATION_STEPS, device=image.device) + 0.5) / INTEGRATION_STEPS
    total = torch.zeros_like(image)
    for part in steps.view(-1, 1, 1, 1).split(GRADIENT_BATCH_SIZE):
        path = (part * image).requires_grad_()
        with torch.enable_grad():
            (gradients,) = torch.autograd.grad(model(path)[:, class_index].sum(), path)
        total += gradients.sum(0)
    return (total / INTEGRATION_STEPS * image).sum(0)


@torch.no_grad()
def occlude(model: Classifier, image: Tensor, class_index: int) -> Tensor:
    """What the logit loses by squares over a pixel, on the mean."""
    height, width = image.shape[1:]
    side = max(1, round(OCCLUDED_SHARE * min(height, width)))
    step = max(1, side // 2)
    # From half outside on: pixels at the border are hidden as often as others, almost.
    corners = [
        (top, left)
        for top in range(step - side, height, step)
        for left in range(step - side, width, step)
    ]
    hidden = torch.zeros(len(corners), height, width, dtype=torch.bool, device=image.device)
    for square, (top, left) in zip(hidden, corners, strict=True):
        square[max(0, top) : top + side, max(0, left) : left + side] = True
    images = (image.masked_fill(one[:, None], 0) for one in hidden.split(BATCH_SIZE))
    scores = torch.cat([model(batch)[:, class_index] for batch in images])
    losses = model(image[None])[0, class_index] - scores
    return torch.einsum("khw,k->hw", hidden.to(losses), losses) / hidden.sum(0)
