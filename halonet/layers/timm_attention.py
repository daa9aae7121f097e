"""timm's halo attention by our operator: its layer, replaced in any model.

timm is imported only when a function here needs it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halonet.layers.attention import interpolate_table
from halonet.layers.pointwise import PointwiseConvolution
from halonet.ops.attention_weights import AttentionWeights, attention_weights
from halonet.ops.halo_attention import check_backend_name, check_geometry, halo_attention

TIMM_TABLES = ("height_rel", "width_rel")


class TimmHaloAttention(nn.Module):
    """timm's `HaloAttn` by our operator: the same function, parameters and state-dict keys.

    Where timm's layer asserts that the block divides the map, this one takes any map: it computes
    what timm's computes on keys and values padded with zeros below and at the right, and crops.
    timm's rules differ from the paper's and are kept: cells outside the map count, with key and
    value 0; tables of full head width; relative logits that are not scaled, unless
    `scale_pos_embed`; at stride 2 distances in the indices of the subsampled queries; and average
    pooling instead, which drops the last row of an odd map, where the stride doesn't divide the
    block or with `avg_down`.

    Args:
        layer: a `timm.layers.halo_attn.HaloAttn`, whose parameters are shared, not copied.
        backend: name of the operator's backend; None takes the fastest.

    Raises:
        TypeError: `layer` isn't such a layer.
        ValueError: an unknown backend.
    """

    def __init__(self, layer: nn.Module, *, backend: str | None = None) -> None:
        super().__init__()
        if not _is_timms(layer):
            raise TypeError(f"layer must be timm's HaloAttn, got {type(layer).__name__}")
        check_backend_name(backend)
        source: Any = layer
        self.in_channels: int = source.q.weight.shape[1]
        self.heads: int = source.num_heads
        self.query_key_channels: int = source.dim_head_qk  # of each head
        self.value_channels: int = source.dim_head_v
        self.block_size: int = source.block_size
        self.halo_size: int = source.halo_size
        self.stride: int = source.block_stride
        self.scale: float = source.scale
        self.scale_pos_embed: bool = source.scale_pos_embed
        self.backend = backend
        # timm's names, so that state dicts go both ways.
        self.q = _as_product(source.q)
        self.kv = _as_product(source.kv)
        self.pos_embed: nn.Module = source.pos_embed
        self.pool: nn.Module = source.pool
        self.train(source.training)

    def reset_parameters(self) -> None:
        """Draw fresh weights as timm does; its models ask for it when they are initialized."""
        for projection in (self.q, self.kv):
            nn.init.trunc_normal_(projection.weight, std=self.in_channels**-0.5)
        for table in self.pos_embed.parameters():
            nn.init.trunc_normal_(table, std=self.scale)

    def forward(self, maps: Tensor) -> Tensor:
        """[batch, channels, height, width] to
        [batch, heads * value_channels, ceil(height / stride), ceil(width / stride)]; the floors of
        half the height and width where it pools."""
        return self.pool(self.attend(*self.project(maps)).flatten(3).permute(0, 3, 1, 2))

    def operator_arguments(self, maps: Tensor) -> dict[str, Any]:
        """What `halonet.halo_attention` is called with for a map, but for the backend.

        Its result is what the layer pools, where it pools.
        """
        query, key, value = self.project(maps)
        return {"query": query, "key": key, "value": value, **self._rules()}

    def attention_weights(
        self, maps: Tensor, pixels: Sequence[tuple[int, int]]
    ) -> AttentionWeights:
        """As of `HaloAttention`, before any pooling."""
        arguments = self.operator_arguments(maps)
        del arguments["value"]
        return attention_weights(**arguments, pixels=pixels)

    def project(self, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The queries, keys and values of a map, each [batch, height, width, heads, channels]."""
        query = self.q(maps).permute(0, 2, 3, 1).unflatten(3, (self.heads, -1))
        # The keys and values of a head are adjacent.
        both = self.kv(maps).permute(0, 2, 3, 1).unflatten(3, (self.heads, -1))
        key, value = both.split([self.query_key_channels, self.value_channels], dim=4)
        return query, key, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The operator under timm's rules; shapes as `halonet.halo_attention` has them."""
        return halo_attention(query, key, value, **self._rules(), backend=self.backend)

    def _rules(self) -> dict[str, Any]:
        row_table, column_table = self.tables()
        return {
            "row_table": row_table,
            "column_table": column_table,
            "block_size": self.block_size,
            "halo_size": self.halo_size,
            "stride": self.stride,
            "position_stride": 1,
            "scale": self.scale,
            "position_scale": None if self.scale_pos_embed else 1.0,
            "mask_padding": False,
        }

    def tables(self) -> tuple[Tensor, Tensor]:
        """The tables as the operator takes them, [2 (block_size + halo_size) - 1, channels].

        timm's have 2 (block_size + 2 halo_size) - 1 rows: row t stands for the offset of a cell's
        index in the window from a query's in the block, plus their last index. That is 2 halo_size
        more than in ours, so its first 2 halo_size rows are never read.
        """
        tables: Any = self.pos_embed
        unread = 2 * self.halo_size
        return tables.height_rel[unread:], tables.width_rel[unread:]

    @torch.no_grad()
    def change_window(self, block_size: int, halo_size: int) -> None:
        """Take another block and halo; the tables are interpolated linearly between distances.

        Raises:
            ValueError: a block or halo that doesn't fit.
        """
        check_geometry(block_size, halo_size, self.stride, None)
        length = 2 * (block_size + halo_size) - 1
        resampled = [interpolate_table(table, length) for table in self.tables()]
        self.block_size, self.halo_size = block_size, halo_size
        tables: Any = self.pos_embed
        tables.block_size = block_size
        for name, table in zip(TIMM_TABLES, resampled, strict=True):
            setattr(tables, name, nn.Parameter(F.pad(table, (0, 0, 2 * halo_size, 0))))

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, heads={self.heads}, block_size={self.block_size}, "
            f"halo_size={self.halo_size}, stride={self.stride}, "
            f"scale_pos_embed={self.scale_pos_embed}"
        )


def replace_timm_layers(model: nn.Module, *, backend: str | None = None) -> nn.Module:
    """Replace timm's `HaloAttn` layers in a model, timm's or yours, by our operator.

    Every `timm.layers.halo_attn.HaloAttn` becomes a `TimmHaloAttention` on the same parameters:
    the same logits and gradients, the same state-dict keys, so that checkpoints go both ways, and
    any image size that the rest of the model takes. Device, type, training mode and frozen
    parameters stay as they are; an optimizer that holds the parameters goes on with them. Hooks on
    the layers themselves are lost.

    Args:
        model: is changed in place.
        backend: name of the operator's backend in every layer; None takes the fastest.

    Returns:
        `model`, or its replacement where it is itself such a layer.

    Raises:
        ValueError: the model has no such layer, or an unknown backend.
        ModuleNotFoundError: timm is not installed.

    Example:
        >>> model = timm.create_model("halonet50ts", pretrained=True)
        >>> model = halonet.replace_timm_layers(model)
    """
    check_backend_name(backend)
    import_timm()
    exchanged = _exchange(model, _is_timms, lambda layer: TimmHaloAttention(layer, backend=backend))
    if exchanged is None:
        if any(isinstance(module, TimmHaloAttention) for module in model.modules()):
            return model
        raise ValueError(
            f"model must have layers of timm's HaloAttn, {type(model).__name__} has none"
        )
    from timm.models import register_notrace_module

    # The operator's checks read shapes: torch.fx takes the layer as one node.
    register_notrace_module(TimmHaloAttention)
    return exchanged


def restore_timm_layers(model: nn.Module) -> nn.Module:
    """Undo `replace_timm_layers`: timm's own layers, on the same parameters, for its scripts.

    Raises:
        ValueError: the model has no `TimmHaloAttention`.
        ModuleNotFoundError: timm is not installed.
    """
    import_timm()
    exchanged = _exchange(model, lambda layer: isinstance(layer, TimmHaloAttention), _as_timms)
    if exchanged is None:
        raise ValueError(f"model must have layers to restore, {type(model).__name__} has none")
    return exchanged


def import_timm() -> Any:
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise ModuleNotFoundError(
            "timm is not installed; its models need it: pip install 'halonet[timm]'", name="timm"
        ) from None
    return timm


def _is_timms(layer: nn.Module) -> bool:
    """Whether a module computes what timm's layer does; a subclass may compute something else."""
    import_timm()
    from timm.layers.halo_attn import HaloAttn

    return isinstance(layer, HaloAttn) and type(layer).forward is HaloAttn.forward


def _exchange(
    model: nn.Module,
    wanted: Callable[[nn.Module], bool],
    make: Callable[[nn.Module], nn.Module],
) -> nn.Module | None:
    """Replace the wanted modules of a model in place; None where there is none.

    A layer that is used in several places is replaced by one that is used in all of them.
    """
    if wanted(model):
        return make(model)
    made: dict[nn.Module, nn.Module] = {}
    for path, layer in list(model.named_modules(remove_duplicate=False)):
        if wanted(layer):
            if layer not in made:
                made[layer] = make(layer)
            model.set_submodule(path, made[layer])
    return model if made else None


def _as_product(convolution: nn.Conv2d) -> nn.Conv2d:
    """A plain 1x1 convolution as a matrix product, on the same parameters.

    One that was wrapped, parametrized or hooked stays as it is, for what relies on it.
    """
    hooked = convolution._forward_hooks or convolution._forward_pre_hooks
    if type(convolution) is not nn.Conv2d or hooked:
        return convolution
    with torch.device("meta"):
        product = PointwiseConvolution(
            convolution.in_channels, convolution.out_channels, stride=convolution.stride[0]
        )
    return _share(convolution, product)


def _as_timms(layer: nn.Module) -> nn.Module:
    from timm.layers.halo_attn import HaloAttn

    assert isinstance(layer, TimmHaloAttention)
    pooled = not isinstance(layer.pool, nn.Identity)
    with torch.device("meta"):
        restored: Any = HaloAttn(
            layer.in_channels,
            layer.heads * layer.value_channels,
            stride=2 if pooled else layer.stride,
            num_heads=layer.heads,
            dim_head=layer.query_key_channels,
            block_size=layer.block_size,
            halo_size=layer.halo_size,
            avg_down=pooled,
            scale_pos_embed=layer.scale_pos_embed,
        )
    for name in ("q", "kv"):
        projection = getattr(layer, name)
        if type(projection) is PointwiseConvolution:
            projection = _share(projection, getattr(restored, name))
        setattr(restored, name, projection)
    restored.pos_embed, restored.pool = layer.pos_embed, layer.pool
    return restored.train(layer.training)


def _share(source: nn.Conv2d, target: nn.Conv2d) -> nn.Conv2d:
    """Give `target` the parameters of `source`, not copies."""
    target.weight, target.bias = source.weight, source.bias
    return target.train(source.training)
