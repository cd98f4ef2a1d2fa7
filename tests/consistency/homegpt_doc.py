# SPDX-License-Identifier: MIT
"""docs/homegpt.md: homeGPT's files beside those that the roles render for the same four models.

What homeGPT has, and why a rendered property differs, is said here; what is rendered is taken from the rendering of
the shipped inventory.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/homegpt.md"

# The model whose files stand for all four.
EXAMPLE = "qwen3-vl-32b"
MODELS = ("qwen3-vl-30b-a3b", "qwen3-vl-32b", "qwen3-next-80b-a3b-thinking", "gpt-oss-20b")


class Row(NamedTuple):
    """One property: what homeGPT says, where to find what is rendered, and why that is so."""

    what: str
    homegpt: str
    rendered: str
    why: str = ""


def render(ansible_playbook: str) -> dict[str, str]:
    """Return the rendered files by name."""
    with tempfile.TemporaryDirectory() as folder:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        ended = subprocess.run(
            [
                *(ansible_playbook, "-i", "inventory/homegpt", "tests/consistency/render_homegpt.yml"),
                *("-e", f"output={folder}"),
            ],
            cwd=ROOT,
            env={**kept, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_HOME": f"{folder}/.ansible"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if ended.returncode:
            raise RuntimeError(ended.stdout + ended.stderr)
        return {
            path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).glob("*.*")) if path.is_file()
        }


def code(*texts: object) -> str:
    """Return texts as code in a cell of a table."""
    return "<br>".join(f"`{str(text).replace('|', chr(92) + '|')}`" for text in texts)


def shown(value: object) -> str:
    """Return a rendered value as somebody would write it into a cell."""
    if isinstance(value, dict):
        return code(*(f"{name}: {item}" for name, item in value.items()))
    if isinstance(value, list):
        return code(*(json.dumps(item) if isinstance(item, dict) else item for item in value))
    return code(value)


def table(rows: Iterable[Row]) -> str:
    """Return a table of three columns and the reasons."""
    head = "| | homeGPT | rendered here | why it differs |\n| --- | --- | --- | --- |\n"
    return head + "".join(
        f"| {row.what} | {row.homegpt} | {row.rendered} | {row.why or 'the same'} |\n" for row in rows
    )


def model_table(files: dict[str, str]) -> str:
    """One compose file for each model."""
    name = f"compose-vllm-{EXAMPLE}.yml"
    ((service, said),) = yaml.safe_load(files[name])["services"].items()
    env = said["environment"]
    devices = said["deploy"]["resources"]["reservations"]["devices"]

    def volume(target: str) -> str:
        return code(*(each for each in said["volumes"] if each.split(":")[1] == target))

    return table(
        [
            Row("file", code("compose-vllm-<model>.yml"), code(name)),
            Row("service and container", code("vllm-<model>"), code(service, said["container_name"])),
            Row(
                "image",
                code("vllm/vllm-openai:nightly-x86_64"),
                code(said["image"]),
                "pinned by `vllm_image`, so that a restart never changes the version",
            ),
            Row("model", "the first word of the command", code(said["command"][0])),
            Row(
                "flags",
                "see the next table",
                "see the next table",
                "from `args` and `gpus` of the inventory; one word per line, so that a diff shows a single flag",
            ),
            Row(
                "port",
                code("<host port>:8000"),
                shown(said["ports"]),
                "on loopback only: everyone who can reach the port can put the model to sleep, "
                "and no API key prevents that",
            ),
            Row(
                "GPUs",
                "`driver: nvidia`, `count` = tensor-parallel size, `capabilities: [gpu]`",
                shown(devices),
                "the GPUs listed in `gpus` instead of a number of arbitrary GPUs; "
                "`vllm_gpu_access` also supports CDI, AMD and none",
            ),
            Row(
                "`CUDA_VISIBLE_DEVICES`",
                code("0,1"),
                code(env["CUDA_VISIBLE_DEVICES"]),
                "numbered within the container, where the reserved GPUs start at 0",
            ),
            Row("`ipc`", code("host"), code(said["ipc"])),
            Row(
                "`restart`",
                code("unless-stopped"),
                code(said["restart"]),
                "after a boot, all models would load at once and compete for the GPUs; "
                "`homegpt-restore.service` restores them one at a time",
            ),
            Row("network", code("homegpt-network"), shown(said["networks"])),
            Row(
                "Hugging Face token",
                code("HUGGING_FACE_HUB_TOKEN=${HF_TOKEN}"),
                code(f"HF_TOKEN_PATH={env['HF_TOKEN_PATH']}", f"secrets: {said['secrets']}"),
                "a compose secret from `.env`, which only its owner can read: `docker inspect` does not show it",
            ),
            *(
                Row(f"`{key}`", code(value), code(env[key]))
                for key, value in (
                    ("VLLM_SERVER_DEV_MODE", "1"),
                    ("VLLM_HOST_IP", "127.0.0.1"),
                    ("VLLM_CONFIGURE_LOGGING", "1"),
                    ("VLLM_LOGGING_CONFIG_PATH", "/logs/logging.json"),
                )
            ),
            *(
                Row(what, code(f"~/.cache/{source}:{target}"), volume(target), "an absolute path: `vllm_cache_dir`")
                for what, source, target in (
                    ("Hugging Face cache", "huggingface", "/root/.cache/huggingface"),
                    ("vLLM cache", "vllm", "/root/.cache/vllm"),
                    ("Triton cache", "triton", "/root/.triton/cache"),
                    ("FlashInfer cache", "flashinfer", "/root/.cache/flashinfer"),
                )
            ),
            *(
                Row(what, code(source), volume(target), "the compose files are in the same directory")
                for what, source, target in (
                    ("logging config", "../vllm-logging.json:/logs/logging.json:ro", "/logs/logging.json"),
                    ("log directory", "../logs/<model>:/logs", "/logs"),
                )
            ),
            Row("container log", "unbounded", shown(said["logging"]["options"]), "a full disk stops every model"),
            Row(
                "label",
                "none",
                shown(said["labels"]),
                "identifies the container when a model is removed; recreates it if the network or the token changes",
            ),
            Row(
                "`pull_policy`",
                "none: `up` pulls",
                code(said["pull_policy"]),
                "a switch must not wait for gigabytes: `prefetch.yml` and `bootstrap.yml` pull",
            ),
        ]
    )


FLAGS = (
    "MODEL", "gpu-memory-utilization", "max-model-len", "max-num-batched-tokens", "kv-cache-dtype",
    "tensor-parallel-size", "enable-chunked-prefill", "enable-sleep-mode", "enable-auto-tool-choice",
    "tool-call-parser", "served-model-name", "port",
)  # fmt: skip


def flags(files: dict[str, str]) -> str:
    """The command line of each of the four models."""
    text = "| | " + " | ".join(f"`{name}`" for name in MODELS) + " |\n" + "| --- " * (len(MODELS) + 1) + "|\n"
    columns = []
    for name in MODELS:
        ((_service, said),) = yaml.safe_load(files[f"compose-vllm-{name}.yml"])["services"].items()
        columns.append(parsed(said["command"]))
    known = [key for key in FLAGS if any(key in column for column in columns)]
    others = sorted({key for column in columns for key in column} - set(FLAGS))
    for key in [*known, *others]:
        cells = [code(column[key]) if column.get(key) else "yes" if key in column else "" for column in columns]
        text += f"| {'model' if key == 'MODEL' else f'`--{key}`'} | " + " | ".join(cells) + " |\n"
    return text


def parsed(command: list[str]) -> dict[str, str]:
    """Return the values of a command line by flag; the model comes first."""
    found = {"MODEL": command[0]}
    flag = ""
    for word in command[1:]:
        if word.startswith("--"):
            flag, _equals, value = word[2:].partition("=")
            found[flag] = value
        else:
            found[flag] = f"{found[flag]} {word}".strip()
    return {"MODEL": found.pop("MODEL"), **found}


def main_table(files: dict[str, str]) -> str:
    """The main compose file."""
    said = yaml.safe_load(files["docker-compose.yml"])
    return table(
        [
            Row("project", code("name: home-gpt"), code(f"name: {said['name']}")),
            Row(
                "`include`",
                "every model's file, the manager's and the WebUI's",
                shown(said["include"]),
                "the [model manager](manager.md) is optional, and a service of the host instead of a container",
            ),
            Row("network", "`homegpt-network`, a bridge", shown(said["networks"])),
            Row("secrets", "none", shown(said["secrets"]), "the Hugging Face token, see above"),
        ]
    )


def logging_table(files: dict[str, str]) -> str:
    """The logging config."""
    said = json.loads(files["vllm-logging.json"])
    return table(
        [
            Row("file", code("vllm-logging.json"), code("vllm-logging.json")),
            Row("format", "a Python logging dictConfig for vLLM", code(f"version: {said['version']}")),
            Row(
                "handlers",
                "its own choice",
                shown({name: each["class"] for name, each in said["handlers"].items()}),
                "to `docker logs` and to the model's log directory",
            ),
            Row(
                "loggers",
                "vLLM's",
                shown({name: each["level"] for name, each in said["loggers"].items()}),
                "also those of the web server, with its requests",
            ),
            Row("log directories", code("logs/<model>/"), code(*(f"logs/{name}/" for name in MODELS))),
        ]
    )


def open_webui_table(files: dict[str, str]) -> str:
    """Open WebUI."""
    ((_name, said),) = yaml.safe_load(files["compose-open-webui.yml"])["services"].items()
    env = said["environment"]
    return table(
        [
            Row("container", "Open WebUI", code(said["container_name"])),
            Row("image", "Open WebUI's", code(said["image"]), "pinned: `open_webui_image`"),
            Row("port", "3000", shown(said["ports"]), "the address and the port are variables"),
            Row(
                "`OPENAI_API_BASE_URLS`",
                "every model's `http://<container>:8000/v1`, joined with `;`",
                code(*env["OPENAI_API_BASE_URLS"].split(";")),
                "`disabled` models are left out: they never answer",
            ),
            Row("`OPENAI_API_KEYS`", "the same number of `dummy`, joined with `;`", code(env["OPENAI_API_KEYS"])),
            Row(
                "`BYPASS_MODEL_ACCESS_CONTROL`",
                "",
                code(env["BYPASS_MODEL_ACCESS_CONTROL"]),
                "otherwise accounts without administrator rights see no models; `open_webui_models_for_all`",
            ),
            Row("`OFFLINE_MODE`", "", code(env["OFFLINE_MODE"]), "otherwise a start waits for a model hub"),
            Row("`NO_PROXY`, `no_proxy`", "", code(*env["NO_PROXY"].split(",")), "the models are not behind a proxy"),
            Row(
                "`restart`",
                code("unless-stopped"),
                code(said["restart"]),
                "after the engine was killed, Docker 20.10 treats the container as stopped",
            ),
        ]
    )


def listing(*names: str) -> Callable[[dict[str, str]], str]:
    """Return what shows files as they are."""

    def show(files: dict[str, str]) -> str:
        return "\n".join(
            f"`{name}`\n\n```{'json' if name.endswith('.json') else 'yaml'}\n{files[name].strip()}\n```\n"
            for name in names
        )

    return show


BLOCKS: dict[str, Callable[[dict[str, str]], str]] = {
    "model-table": model_table,
    "flags": flags,
    "main-table": main_table,
    "logging-table": logging_table,
    "open-webui-table": open_webui_table,
    "model": listing(f"compose-vllm-{EXAMPLE}.yml"),
    "main": listing("docker-compose.yml", "compose-open-webui.yml"),
}


def rendered(files: dict[str, str]) -> dict[str, str]:
    """Return the blocks of the page."""
    return {name: block(files) for name, block in BLOCKS.items()}
