"""HaloNets in PyTorch: Scaling Local Self-Attention for Parameter Efficient Visual Backbones."""

from halonet import openmp as _openmp  # noqa: F401 - before all that loads torch
from halonet.export.formats import ExportReport, export_model
from halonet.inference.classifier import LoadedClassifier
from halonet.inference.detector import LoadedDetector
from halonet.inference.loading import load_run
from halonet.layers.attention import HaloAttention
from halonet.layers.timm_attention import replace_timm_layers, restore_timm_layers
from halonet.models.classifier import Classifier, Preprocessing
from halonet.models.creation import create_model
from halonet.models.flops import count_flops
from halonet.models.halonet import HaloNet
from halonet.models.pretrained import LoadReport, load_model, load_weights, save_model
from halonet.models.variants import Variant, get_variant, list_models
from halonet.ops.attention_weights import AttentionWeights, attention_weights
from halonet.ops.halo_attention import (
    BackendChoice,
    explain_backend,
    halo_attention,
    list_backends,
)
from halonet.runs import EvaluatedRun, evaluate, train

__all__ = [
    "AttentionWeights",
    "BackendChoice",
    "Classifier",
    "EvaluatedRun",
    "ExportReport",
    "HaloAttention",
    "HaloNet",
    "LoadReport",
    "LoadedClassifier",
    "LoadedDetector",
    "Preprocessing",
    "Variant",
    "attention_weights",
    "count_flops",
    "create_model",
    "evaluate",
    "explain_backend",
    "export_model",
    "get_variant",
    "halo_attention",
    "list_backends",
    "list_models",
    "load_model",
    "load_run",
    "load_weights",
    "replace_timm_layers",
    "restore_timm_layers",
    "save_model",
    "train",
]
