"""halonet check: what a bug report begins with."""

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from halonet.cli.parser import CommandParser, make_table
from halonet.devices import find_device, list_devices

PURPOSE = "compare and time the backends on this machine"


def check_command(words: Sequence[str]) -> None:
    """Print the versions, the machine, and every backend's results and speed.

    Exits with status 1 if something is wrong.
    """
    options = make_check_parser().parse_words(words)
    # The CPU, and the GPU where there is one.
    names = list_devices()[:2] if options.device is None else [options.device]
    devices = [find_device(name) for name in names]
    # Trying tiles would take minutes, unless the user wants it.
    os.environ.setdefault("HALONET_AUTOTUNE", "0")
    from halonet.check.backends import check_device
    from halonet.check.machine import describe_device, describe_machine, list_versions
    from halonet.ops import cpu

    versions, machine = list_versions(), describe_machine()
    faults = []
    if cpu.MISSING is not None and cpu.find_library(cpu.LIBRARY) is not None:
        faults.append(cpu.MISSING)
    if not options.json:
        print(", ".join(f"{name} {number}" for name, number in versions.items()))
        print(make_table(["machine", ""], list(machine.items())), flush=True)
    found = []
    for device in devices:
        checked = check_device(device, thorough=options.thorough)
        result = dataclasses.asdict(checked) | {"name": describe_device(device)}
        found.append(result)
        faults += checked.faults
        if not options.json:
            print(f"\n{describe_result(result)}", flush=True)
    if options.json:
        report = {"versions": versions, "machine": machine, "devices": found, "faults": faults}
        print(json.dumps(report, indent=2))
    else:
        print(f"\n{len(faults)} faults" if faults else "\nno faults")
        print("".join(f"  {fault}\n" for fault in faults), end="")
    if faults:
        sys.exit(1)


def describe_result(result: Mapping[str, Any]) -> str:
    """What was found on a device, as text."""
    choice, compared, types = result["choice"], result["compared"], result["types"]
    rows = []
    for name, reason in choice["reasons"].items():
        wrong = sum(fault.startswith(f"{name} on ") for fault in result["faults"])
        if name == "reference":
            verdict = "the definition"
        elif name not in compared:
            verdict = f"doesn't run: {reason}"
        elif wrong:
            verdict = f"WRONG in {wrong} of {compared[name]} results and gradients"
        else:
            verdict = f"equals the reference in {compared[name]} results and gradients"
        rows.append([name, verdict + (", the first choice" if name == choice["chosen"] else "")])
    lines = [
        f"{result['device']}: {result['name']}",
        make_table(["backend", f"in {', '.join(types[:-1])} and {types[-1]}"], rows),
    ]
    proven = not any(fault.startswith("triton ") for fault in result["faults"])
    if "triton" in compared and proven and choice["chosen"] != "triton":
        lines.append("HALONET_BACKEND=triton in the environment makes triton the first choice here")
    rate = result["matrix_rate"]
    lines += [
        "",
        f"H1's stages, {result['batch']} images, {result['dtype']}; share of the matrix rate "
        f"{rate:.0f} GFLOP/s (torch's product of square matrices)",
        make_table(
            ["stage", "backend", "forward, ms", "GFLOP/s", "share", "with backward, ms", "GFLOP/s",
             "share"],
            [
                [
                    speed["stage"],
                    speed["backend"],
                    *_describe_speed(speed["forward"], speed["forward_rate"], rate),
                    *_describe_speed(speed["both"], speed["both_rate"], rate),
                ]
                for speed in result["speeds"]
            ],
        ),
    ]  # fmt: skip
    if result["untimed"]:
        lines.append(f"not timed, as it took too long: {', '.join(result['untimed'])}")
    return "\n".join(lines)


def _describe_speed(milliseconds: float, rate: float, matrix_rate: float) -> list[str]:
    return [f"{milliseconds:.2f}", f"{rate:.1f}", f"{100 * rate / matrix_rate:.1f} %"]


def make_check_parser() -> CommandParser:
    """The options of `halonet check`."""
    parser = CommandParser(prog="halonet check", description=PURPOSE)
    parser.add_argument(
        "--device",
        type=str | None,
        help="auto, cpu, cuda, cuda:1, mps; without it the CPU, and the GPU where there is one",
    )
    parser.add_argument(
        "--thorough",
        action="store_true",
        help="compare in every case of the tests, and in float16 too; minutes on a GPU, whose "
        "kernels are compiled for each",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with every figure")
    return parser
