"""What a bug report has to say of a machine: versions, processor, GPU, settings."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from halonet.ops import cpu

PACKAGES = ("triton", "torchvision", "timm", "accelerate", "huggingface_hub")
# Of a processor's features those that torch's and our kernels choose by.
FEATURES = (
    *("avx", "avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "asimd", "sve", "bf16", "i8mm"),
)
SETTINGS = (
    *("HALONET_", "OMP_", "GOMP_", "KMP_", "MKL_", "ONEDNN_", "DNNL_", "ATEN_", "MALLOC_"),
    *("TORCH_", "PYTORCH_", "TORCHINDUCTOR_", "TRITON_", "CUDA_", "NVIDIA_TF32", "ACCELERATE_"),
)


def list_versions() -> dict[str, str]:
    """halonet, torch and Python, and the packages beside them that are installed."""
    found = {
        "halonet": version("halonet"),
        "torch": torch.__version__,
        "Python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def name_processor() -> str:
    """The processor's model, as well as the system tells it."""
    lines = _read_processor()
    return lines.get("model name") or platform.processor() or platform.machine()


def list_features() -> list[str]:
    """Those of `FEATURES` that the processor has; none where the system doesn't tell."""
    lines = _read_processor()
    own = (lines.get("flags") or lines.get("Features") or "").split()
    return [feature for feature in FEATURES if feature in own]


def _read_processor() -> dict[str, str]:
    """The first processor's lines in Linux's /proc/cpuinfo."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(errors="replace").partition("\n\n")[0] if path.exists() else ""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def describe_machine() -> dict[str, str]:
    """The machine in a few lines, by topic."""
    capability = torch.backends.cpu.get_cpu_capability()
    features = ", ".join(list_features()) or "features unknown"
    settings = {name: value for name, value in os.environ.items() if name.startswith(SETTINGS)}
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return {
        "system": platform.platform(),
        "processor": f"{name_processor()}, {os.cpu_count()} cores{load}: {features}",
        "threads": f"{torch.get_num_threads()}, torch's kernels for {capability}, "
        f"ours for {cpu.variant() or 'none'}",
        "environment": " ".join(f"{name}={settings[name]}" for name in sorted(settings)) or "-",
    }


def describe_device(device: torch.device) -> str:
    """A device's name; of a GPU also its memory, capability and CUDA."""
    if device.type != "cuda":
        return name_processor() if device.type == "cpu" else device.type
    found = torch.cuda.get_device_properties(device)
    runtime = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    return (
        f"{found.name}, {found.total_memory / 2**30:.0f} GiB, compute capability "
        f"{found.major}.{found.minor}, {found.multi_processor_count} multiprocessors, {runtime}"
    )
