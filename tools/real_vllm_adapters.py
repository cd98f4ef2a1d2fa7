# SPDX-License-Identifier: MIT
"""Make tiny LoRA adapters with random weights for the tiny models of real_vllm_models.py.

    python tools/real_vllm_adapters.py FOLDER NAME [NAME ...]

Run by the Python of the venv that tools/real_vllm.sh builds: needs torch and safetensors. Each adapter is seeded by its
name: two names give two different answers to the same greedy prompt, and neither is that of the bare model.
"""

from __future__ import annotations

import argparse
import json
import zlib
from pathlib import Path

import torch
from real_vllm_models import TINY  # type: ignore[import-not-found]  # beside this file
from safetensors.torch import save_file

RANK = 8
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


def build_adapter(target: Path) -> None:
    """Write an adapter as PEFT does; one that is there already is replaced."""
    target.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(zlib.crc32(target.name.encode()))
    size = TINY["hidden_size"]  # of all four, since there are as many heads of keys as of queries
    tensors = {}
    for layer in range(TINY["num_hidden_layers"]):
        for module in TARGETS:
            place = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            for half, shape in (("lora_A", (RANK, size)), ("lora_B", (size, RANK))):
                tensors[f"{place}.{half}.weight"] = 0.5 * torch.randn(shape, generator=generator)
    save_file(tensors, target / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(TARGETS),
    }
    (target / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


def main() -> None:
    """Read the command line and build every adapter asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+")
    args = parser.parse_args()
    for name in args.names:
        build_adapter(args.folder / name)


if __name__ == "__main__":
    main()
