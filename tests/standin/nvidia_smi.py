# SPDX-License-Identifier: MIT
"""A stand-in for nvidia-smi: the two queries that the engine makes, answered from the ledger of the stand-ins' GPUs.

STANDIN_GPU_DIR is that ledger's folder (see gpu.py; without it there is no driver to speak to), STANDIN_GPU_TOTAL_GB
the memory of each GPU, STANDIN_GPU_COUNT how many there are, STANDIN_GPU_MIG the numbers of those that are divided into
MIG instances (as in `0,2`), STANDIN_GPU_UNIFIED whether they have no memory of their own. Whatever holds memory in the
ledger is a process, so a test makes one that is not of vLLM with
`GpuHost(folder, ("0",), total, "python3").hold(gigabytes)`.

tests/standin/bin, on the PATH, has it as a command.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from .gpu import Ledger, alive, uuid_of

FORMAT = "--format=csv,noheader,nounits"


def mebibytes(gigabytes: float) -> int:
    """Return so many GB, of 10^9 bytes, in nvidia-smi's unit."""
    return round(gigabytes * 1e9 / 1024 / 1024)


def gpus(ledger: Ledger, count: int, total: float) -> list[str]:
    """Return a line for each GPU."""
    divided = os.environ.get("STANDIN_GPU_MIG", "").split(",")
    lines = []
    for index in map(str, range(count)):
        used = sum(entry["gpus"].get(index, 0.0) for entry in ledger.values())
        mig = "Enabled" if index in divided else "Disabled"
        memory = f"{mebibytes(total)}, {mebibytes(max(total - used, 0.0))}"
        if os.environ.get("STANDIN_GPU_UNIFIED"):
            memory, mig = "[N/A], [N/A]", "[N/A]"
        lines.append(f"{index}, {uuid_of(index)}, {memory}, {mig}")
    return lines


def processes(ledger: Ledger) -> list[str]:
    """Return a line for each process on each of its GPUs."""
    return [
        f"{uuid_of(gpu)}, {entry['pid']}, {entry['model']}, {mebibytes(held)}"
        for entry in ledger.values()
        for gpu, held in entry["gpus"].items()
    ]


def main(argv: list[str]) -> int:
    """Answer one query."""
    if not os.environ.get("STANDIN_GPU_DIR"):
        print("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.")
        return 9
    folder = Path(os.environ["STANDIN_GPU_DIR"])
    count, total = int(os.environ.get("STANDIN_GPU_COUNT", "2")), float(os.environ.get("STANDIN_GPU_TOTAL_GB", "24"))
    path = folder / "ledger.json"
    written: Ledger = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    ledger = {holder: entry for holder, entry in written.items() if alive(folder, holder)}
    if argv == ["--query-gpu=index,uuid,memory.total,memory.free,mig.mode.current", FORMAT]:
        lines = gpus(ledger, count, total)
    elif argv == ["--query-compute-apps=gpu_uuid,pid,process_name,used_memory", FORMAT]:
        lines = processes(ledger)
    else:
        print(f"Invalid combination of input arguments: {argv}")
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
