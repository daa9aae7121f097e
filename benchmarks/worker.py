"""The process of one contestant: takes orders and replies to them, both as JSON lines."""

import json
import os
import resource
import sys
import time
from pathlib import Path


def main() -> None:
    """Serve `build`, `time` and `memory` until standard input ends."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to standard error
    step = layer_times = None
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if order["do"] == "build":
                if order["package"] is not None:
                    _import_halonet_from(order["package"])
                import torch
                from contestants import build

                torch.set_num_threads(order["threads"])
                if os.environ.get("ATEN_CPU_CAPABILITY") == "avx2":
                    from halonet.ops import cpu

                    cpu.select_variant("avx2")
                idle = _peak_mebibytes()
                contestant = build(order["case"], order["contestant"], order["compiled"])
                step, layer_times = contestant.step, contestant.layer_times
                step()
                step()
                reply = {"checked": contestant.checked, "idle": idle}
            elif order["do"] == "time" and step is not None:
                if layer_times is not None:
                    layer_times.clear()
                started = time.perf_counter()
                for _ in range(order["repeats"]):
                    step()
                reply = {"seconds": (time.perf_counter() - started) / order["repeats"]}
                if layer_times is not None:
                    reply["layer_seconds"] = sum(layer_times) / order["repeats"]
            else:
                reply = {"peak": _peak_mebibytes()}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
        print(json.dumps(reply), file=replies, flush=True)


def _import_halonet_from(package: str) -> None:
    """Take halonet from a folder, also where an editable install's finder comes first."""
    sys.meta_path[:] = [one for one in sys.meta_path if "editable" not in type(one).__module__]
    sys.path.insert(0, package)
    import halonet

    if not Path(halonet.__file__).is_relative_to(package):
        raise ImportError(f"halonet comes from {halonet.__file__}, not from {package}")


def _peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
