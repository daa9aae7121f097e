"""HaloNets in PyTorch: Scaling Local Self-Attention for Parameter Efficient Visual Backbones."""

from halonet import openmp as _openmp  # noqa: F401 - before all that loads torch
from halonet.creation import create_model
from halonet.export.formats import ExportReport, export_model
from halonet.integrations.timm_checkpoints import replace_timm_layers, restore_timm_layers
from halonet.layers.attention import HaloAttention
from halonet.models.flops import count_flops
from halonet.models.halonet import (
    HaloNet,
    Preprocessing,
    get_variant,
    list_models,
)
from halonet.models.pretrained import LoadReport, load_model, load_weights, save_model
from halonet.models.variants import Variant
from halonet.ops.halo_attention import (
    BackendChoice,
    explain_backend,
    halo_attention,
    list_backends,
)

__all__ = [
    "BackendChoice",
    "ExportReport",
    "HaloAttention",
    "HaloNet",
    "LoadReport",
    "Preprocessing",
    "Variant",
    "count_flops",
    "create_model",
    "explain_backend",
    "export_model",
    "get_variant",
    "halo_attention",
    "list_backends",
    "list_models",
    "load_model",
    "load_weights",
    "replace_timm_layers",
    "restore_timm_layers",
    "save_model",
]
