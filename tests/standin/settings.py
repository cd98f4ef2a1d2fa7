# SPDX-License-Identifier: MIT
"""What the stand-in is told: the command line of `vllm serve`, and its own settings from the environment."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .family import Family
from .gpu import number_of

# What the model gives; what classifies texts and what rewards them is served alike.
KINDS = ("text", "embedding", "score", "classify", "speech")


@dataclass(frozen=True)
class Settings:
    """Everything that is known before the server starts."""

    model: str
    host: str
    port: int
    ssl_keyfile: str | None
    ssl_certfile: str | None
    names: tuple[str, ...]
    api_keys: tuple[str, ...]
    max_model_len: int
    max_num_seqs: int
    sleep_mode: bool
    load_tracking: bool
    dev_mode: bool
    gpu_memory_utilization: float
    gpus: tuple[str, ...]
    version: str
    kind: str
    lora: bool
    adapters: dict[str, str]  # name -> path, from the command line
    updates_adapters: bool
    listens_while_loading: bool
    load_seconds: float
    sleep_seconds: float
    wake_seconds: float
    sleep_seconds_2: float  # at level 2
    wake_seconds_2: float
    tokens_per_second: float
    gpu_dir: Path | None
    gpu_total_gb: float
    vram_gb: float
    asleep_gb: float
    leak_gb: float
    faults_file: Path | None
    speculative: dict[str, Any] | None = None  # what --speculative-config says
    acceptance: float = 0.6  # the share of the drafted tokens that is right, while the weights of the drafts are
    reloads_drafts: bool = False  # as no version does
    faults: list[dict[str, Any]] = field(default_factory=list)

    @property
    def family(self) -> Family:
        """What this version does otherwise than another."""
        return Family.of(self.version)


def read(argv: list[str]) -> Settings:
    """Parse the command line and the environment; a mistake exits with status 2 as vLLM does."""
    parser = argparse.ArgumentParser(prog="vllm", description="A stand-in for vllm serve.")
    serve = parser.add_subparsers(required=True).add_parser("serve")
    serve.add_argument("model_tag", nargs="?")
    serve.add_argument("--model", default="Qwen/Qwen3-0.6B")
    serve.add_argument("--host", default="0.0.0.0")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--served-model-name", nargs="+", default=[])
    serve.add_argument("--ssl-keyfile")
    serve.add_argument("--ssl-certfile")
    serve.add_argument("--api-key", nargs="+", default=[])
    serve.add_argument("--max-model-len", type=_length, default=4096)
    serve.add_argument("--max-num-seqs", type=int, default=256)
    serve.add_argument("--enable-sleep-mode", action=argparse.BooleanOptionalAction, default=False)
    serve.add_argument("--enable-lora", action=argparse.BooleanOptionalAction, default=False)
    serve.add_argument("--lora-modules", nargs="+", default=[])
    serve.add_argument("--enable-server-load-tracking", action="store_true")
    serve.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    serve.add_argument("--tensor-parallel-size", "-tp", type=int)
    serve.add_argument("--speculative-config", "-sc", type=json.loads)
    args, _other_flags = parser.parse_known_args(argv)
    sleep_seconds, wake_seconds = _number("STANDIN_SLEEP_SECONDS", 0.0), _number("STANDIN_WAKE_SECONDS", 0.0)

    env = os.environ
    kind = env.get("STANDIN_KIND") or "text"
    if kind not in KINDS:
        parser.error(f"STANDIN_KIND {kind}: none of {', '.join(KINDS)}")
    model = args.model_tag or args.model
    visible = [number_of(gpu.strip()) for gpu in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu.strip()]
    if not visible:
        visible = [str(number) for number in range(args.tensor_parallel_size or 1)]
    total = _number("STANDIN_GPU_TOTAL_GB", 24.0)
    api_keys = args.api_key or [env.get("VLLM_API_KEY", "")]
    return Settings(
        model=model,
        host=args.host,
        port=args.port,
        ssl_keyfile=args.ssl_keyfile,
        ssl_certfile=args.ssl_certfile,
        names=tuple(args.served_model_name or [model]),
        api_keys=tuple(key for key in api_keys if key),
        max_model_len=args.max_model_len,
        max_num_seqs=args.max_num_seqs,
        sleep_mode=args.enable_sleep_mode,
        load_tracking=args.enable_server_load_tracking,
        dev_mode=env.get("VLLM_SERVER_DEV_MODE", "0") == "1",
        gpu_memory_utilization=args.gpu_memory_utilization,
        gpus=tuple(visible[: args.tensor_parallel_size or len(visible)]),
        version=env.get("STANDIN_VERSION", "0.32.0"),
        kind=kind,
        lora=args.enable_lora,
        adapters=dict(map(_adapter, args.lora_modules)),
        updates_adapters=env.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "0").lower() in ("1", "true"),
        listens_while_loading=env.get("STANDIN_LISTENS_WHILE_LOADING", "0") == "1",
        load_seconds=_number("STANDIN_LOAD_SECONDS", 0.0),
        sleep_seconds=sleep_seconds,
        wake_seconds=wake_seconds,
        sleep_seconds_2=_number("STANDIN_SLEEP_SECONDS_2", sleep_seconds),
        wake_seconds_2=_number("STANDIN_WAKE_SECONDS_2", wake_seconds),
        tokens_per_second=_number("STANDIN_TOKENS_PER_SECOND", 0.0),
        gpu_dir=Path(env["STANDIN_GPU_DIR"]) if env.get("STANDIN_GPU_DIR") else None,
        gpu_total_gb=total,
        vram_gb=_number("STANDIN_VRAM_GB", args.gpu_memory_utilization * total),
        asleep_gb=_number("STANDIN_ASLEEP_GB", 0.0),
        leak_gb=_number("STANDIN_LEAK_GB", 0.0),
        faults_file=Path(env["STANDIN_FAULTS_FILE"]) if env.get("STANDIN_FAULTS_FILE") else None,
        speculative=args.speculative_config,
        acceptance=_number("STANDIN_ACCEPTANCE", 0.6),
        reloads_drafts=env.get("STANDIN_RELOADS_DRAFTS", "0") == "1",
        faults=json.loads(env.get("STANDIN_FAULTS") or "[]"),
    )


def _adapter(word: str) -> tuple[str, str]:
    """Read name=path, or JSON with both."""
    if word.startswith("{"):
        fields = json.loads(word)
        return fields["name"], fields["path"]
    name, _equals, path = word.partition("=")
    return name, path


def _number(name: str, default: float) -> float:
    return float(os.environ.get(name) or default)


def _length(text: str) -> int:
    """vLLM also takes 16k and 16K (decimal and binary thousands)."""
    scale = {"k": 1000, "K": 1024}.get(text[-1:], 1)
    return int(float(text[:-1]) * scale) if scale > 1 else int(text)
