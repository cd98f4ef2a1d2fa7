# SPDX-License-Identifier: MIT
"""`vllm` in the image for CPUs: leaves out the flags that need a GPU, so that the usual compose files start it.

With --enable-sleep-mode vLLM refuses to start on a CPU; its sleep routes answer all the same.
"""

from __future__ import annotations

import os
import sys

# Those that take a value, and those that do not.
WITH_VALUE = {
    "--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp", "--data-parallel-size", "-dp",
    "--gpu-memory-utilization", "--kv-cache-dtype", "--quantization", "-q", "--attention-backend",
    "--cpu-offload-gb", "--compilation-config", "-O",
}  # fmt: skip
ALONE = {
    "--enable-sleep-mode", "--no-enable-sleep-mode", "--enable-expert-parallel", "--no-enable-expert-parallel",
    "--no-enforce-eager",
}  # fmt: skip
# A tiny model on few cores: nothing compiled, little memory.
INSTEAD = {"--enforce-eager": [], "--max-num-seqs": ["4"]}


def adapted(words: list[str]) -> list[str]:
    """The command line without what a CPU cannot do."""
    kept: list[str] = []
    value_follows = False
    for word in words:
        name, equals, _value = word.partition("=")
        if value_follows:
            value_follows = False
        elif name in WITH_VALUE:
            value_follows = not equals
        elif name not in ALONE:
            kept.append(word)
    given = {word.partition("=")[0] for word in kept}
    for flag, value in INSTEAD.items():
        if flag not in given:
            kept += [flag, *value]
    return kept


def main() -> None:
    """Become the real one."""
    words = sys.argv[1:]
    if words[:1] == ["serve"] and not {"-h", "--help"} & set(words):
        words = adapted(words)
        print("vllm", *words, flush=True)
    python = "/opt/vllm/bin/python"
    os.execv(python, [python, "-m", "vllm.entrypoints.cli.main", *words])


if __name__ == "__main__":
    main()
