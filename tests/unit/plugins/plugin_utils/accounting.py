# SPDX-License-Identifier: MIT
"""Counts what a converter has lost without a word: every word of a service, or of llama-swap's model, has to be in the
result or in a note. It knows nothing of how the converters read."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator
from typing import Any

# What the collection's containers have too, or what is only how somebody else runs a container. docs/moving.md says so.
SAME = {
    "ipc": {"host"},
    "runtime": {"nvidia"},
    "driver": {"nvidia", "cdi"},
    "capabilities": {"gpu", "compute", "utility", "nvidia"},
    "count": {"all", "-1"},
    "gpus": {"all"},
    "devices": {"/dev/kfd", "/dev/dri", "/dev/kfd:/dev/kfd", "/dev/dri:/dev/dri", "nvidia.com/gpu=all"},
    "group_add": {"video", "render"},
    "security_opt": {"seccomp=unconfined", "seccomp:unconfined"},
    "type": {"bind", "volume"},
}
SAME_ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": {"1"},
    "VLLM_HOST_IP": {"127.0.0.1"},
    "VLLM_CONFIGURE_LOGGING": {"1"},
    "VLLM_LOGGING_CONFIG_PATH": {"/logs/logging.json"},
    "NVIDIA_VISIBLE_DEVICES": {"all"},
}
# Options that the collection sets from other keys: their values are looked for, but for those that mean the same.
SET = {"host": {"0.0.0.0", "127.0.0.1", "localhost"}, "port": set(), "enable-sleep-mode": set()}
DERIVED = {"model", "served-model-name", "tensor-parallel-size"}
SHORT = {"tp": "tensor-parallel-size", "dp": "data-parallel-size", "pp": "pipeline-parallel-size", "q": "quantization"}
CACHES = ("/root/.cache/huggingface", "/root/.cache/vllm", "/root/.triton/cache", "/root/.cache/flashinfer", "/logs")
LAUNCHERS = {"vllm", "serve", "python", "python3", "-u", "-m", "exec", "env", "--", "_"}
LAUNCHERS |= {"vllm.entrypoints.openai.api_server", "vllm.entrypoints.cli.main"}
VISIBLE = re.compile(r"(CUDA|NVIDIA|HIP|ROCR)_VISIBLE_DEVICES")


def texts(value: Any) -> Iterator[str]:
    """Every key and every value, as texts."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from texts(item)
    else:
        yield "true" if value is True else "false" if value is False else str(value)


class Account:
    """What is in a result and in its notes."""

    def __init__(self, variables: Any, notes: Iterable[str], model: Any) -> None:
        shared = {key: value for key, value in variables.items() if key != "vllm_models"}
        self.model = model
        self.texts = set(texts([model, shared]))
        self.notes = list(notes)
        self.visible: list[list[str]] = []
        self.env = {**variables.get("vllm_env", {}), **model.get("env", {})}

    def has(self, word: str) -> bool:
        """Whether the result has this value, as it is or as what it means."""
        if word in self.texts:
            return True
        kept = ["".join(re.split(r"[\\\"']", text)) for text in self.model.get("entrypoint", ())]
        if any("".join(re.split(r"[\\\"']", word)) in text for text in kept):
            return True
        try:
            value = json.loads(word)
        except ValueError:
            return False
        return all(text in self.texts for text in texts(value))

    def of_option(self, key: str, word: str) -> bool:
        """Whether an option of the result has this value, or the word is no value but one of the model's names."""
        values = set(texts(self.model["args"][key]))
        if word in values or word in (self.model["model"], *self.model.get("aliases", ())):
            return True
        try:
            value = json.loads(word)
        except ValueError:
            return False
        return set(texts(value)) <= values

    def names(self, word: str) -> bool:
        """Whether a note has this word, as a word."""
        return any(re.search(r"(?<!\w)%s(?!\w)" % re.escape(word), note) for note in self.notes)

    def told(self, *parts: str) -> bool:
        """Whether one note has all of these."""
        return any(all(part in note for part in parts) for note in self.notes)

    def noted(self, place: str, path: str) -> bool:
        """Whether a note names this key, one above it, or one below it."""
        keys = path.split(".")
        return any(
            re.search(r"(?:%s\.|, |: )%s(?![\w-])" % (re.escape(place), re.escape(".".join(keys[:end]))), note)
            or ("%s.%s" % (place, ".".join(keys[:end]))) in note
            for note in self.notes
            for end in range(1, len(keys) + 1)
        )


def of_service(service: Any, place: str, account: Account) -> list[str]:
    """The words of a compose service (variables replaced) that are lost."""
    lost = []
    started = []
    for key in ("entrypoint", "command"):
        value = service.get(key)
        started += (
            shlex.split(value) if isinstance(value, str) else [str(word) for word in value or [] if word is not None]
        )
    lost += ["command: %s" % word for word in of_words(started, account)]
    account.visible += lists_of(service)
    for key, value in service.items():
        if key in ("command", "entrypoint"):
            continue
        if key == "environment":
            pairs = (
                value.items() if isinstance(value, dict) else [str(item).partition("=")[::2] for item in value or []]
            )
            lost += ["environment: %s" % name for name, item in pairs if not of_variable(str(name), item, account)]
        elif key == "container_name":
            # The manager's configuration, where there is one, is what counts.
            continue
        elif key == "ports":
            lost += ["ports: %s" % port for port in value or [] if not of_port(port, account)]
        elif key == "volumes":
            lost += ["volumes: %s" % item for item in value or [] if not of_volume(item, account)]
        else:
            for path, leaf in leaves(value, key):
                last = [part for part in path.split(".") if not part.isdigit()][-1]
                same = str(leaf) in SAME.get(last, ()) or (
                    last == "count" and str(leaf) == str(len(account.model.get("gpus", [0])))
                )
                word = re.sub(r"\Anvidia\.com/gpu=", "", str(leaf))
                # Elsewhere a number that the result has too would be the same by chance.
                kept = key in ("image", "gpus", "devices") or last in ("device_ids", "count") or "device_ids" in path
                if not same and leaf not in (None, "") and not (kept and account.has(word)):
                    named = re.sub(r"\.\d+", "", path)
                    if not account.noted(place, named) and not gpus_told(path, account):
                        lost.append("%s: %s" % (path, leaf))
    return lost


def lists_of(service: Any) -> list[list[str]]:
    """The lists of GPUs that a service has in one place or the other."""
    environment = service.get("environment") or {}
    pairs = environment.items() if isinstance(environment, dict) else [item.partition("=")[::2] for item in environment]
    found = [str(value).split(",") for name, value in pairs if VISIBLE.match(str(name))]
    devices = [leaf for path, leaf in leaves(service, "") if "device_ids" in path]
    return found + ([[str(leaf) for leaf in devices]] if devices else [])


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The values of a tree, each with its path."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, "%s.%s" % (path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, "%s.%d" % (path, index))
    else:
        yield path, value


def gpus_told(path: str, account: Account) -> bool:
    """Whether it is told that the GPUs of a reservation have to be looked at."""
    return bool(re.search(r"device_ids|count|gpus|devices", path)) and account.told("gpus")


def of_variable(name: str, value: Any, account: Account) -> bool:
    """Whether an environment variable is in the result or told."""
    text = "true" if value is True else "false" if value is False else "" if value is None else str(value)
    if text in SAME_ENVIRONMENT.get(name, ()) or account.env.get(name) == text:
        return True
    if VISIBLE.match(name):
        # As they are, or counted among those of another list.
        gpus = [str(gpu) for gpu in account.model.get("gpus", [])]
        parts = text.split(",")
        others = [
            one
            for one in account.visible
            if one != parts and len(one) > max(map(int, re.findall(r"\d+", text)), default=0)
        ]
        return account.told(name) or account.told("gpus is") or bool(set(gpus) & set(parts)) or bool(others)
    # The note about variables of the file that have no value may have one of the same name.
    notes = [note for note in account.notes if "without a value, so the defaults" not in note]
    return any(name in note for note in notes) or ("TOKEN" in name and account.told("vllm_hf_token"))


def of_port(item: Any, account: Account) -> bool:
    """Whether a port is the model's, or it is told that it is not."""
    if isinstance(item, dict):
        item = "%s:%s" % (item.get("published"), item.get("target"))
    here = "%s:%s" % (account.model["host_port"], account.model.get("port", 8000))
    return ":".join(str(item).split(":")[-2:]) == here or account.told(".ports")


def of_volume(item: Any, account: Account) -> bool:
    """Whether a volume is in the result or told."""
    if isinstance(item, dict):
        source, target = str(item.get("source", "")), str(item.get("target", ""))
    else:
        source, _colon, rest = str(item).partition(":")
        target = rest.partition(":")[0]
    target = target.rstrip("/")
    if any(target and target in text for text in account.texts if ":" in text):
        return True
    if target in CACHES or target == "/root/.cache" or target.startswith("/logs"):
        base = re.sub(r"/(huggingface|vllm|triton|flashinfer)\Z", "", source)
        return target.startswith("/logs") or base in (*account.texts, "/root/.cache") or account.told("caches")
    return account.told("volume", target or source)


def of_words(words: list[str], account: Account) -> list[str]:
    """The words of a command that are lost. Where the note says that it was not understood, none of them is."""
    if account.told("can't be parsed from here on") and account.model.get("startup_mode") == "disabled":
        return []
    lost = []
    option = ""
    for given in flat(list(unkept(words, account.model.get("entrypoint", ())))):
        word = given
        level = re.fullmatch(r"-O(\d)", word)
        if level and account.model.get("args", {}).get("optimization_level") == int(level.group(1)):
            continue
        match = re.match(r"--?([A-Za-z][\w.-]*)(?:=(.*))?\Z", word, re.DOTALL)
        if match and not re.match(r"-\d", word):
            option = SHORT.get(match.group(1), match.group(1).replace("_", "-"))
            name = re.sub(r"\Ano-", "", option)
            key = name.replace("-", "_")
            known = key in account.texts or account.has(word) or option.replace("-", "_") in account.texts
            told = account.told("--" + name) or account.names(word)
            if not (known or told or name in SET or name in DERIVED or word in LAUNCHERS):
                lost.append(word)
            if match.group(2) is None:
                continue
        name, word = option, match.group(2) if match and match.group(2) is not None else given
        unknown = re.findall(r"\$\{(\w+)\}", word)
        if unknown and all(account.told(variable) for variable in unknown):
            continue
        key = re.sub(r"\Ano-", "", name).replace("-", "_")
        kept = account.of_option(key, word) if key in account.model.get("args", {}) else account.has(word)
        if kept or word in SET.get(name, ()) or name in ("port",) or word in LAUNCHERS or not word.strip():
            continue
        if name == "tensor-parallel-size" and str(len(account.model.get("gpus", [0]))) == word:
            continue
        if re.search(r"/(vllm|python3?|bash|sh)\Z", word) or account.names(word) or account.told("--" + name + ":"):
            continue
        if account.told("belong to no option") or re.fullmatch(r"[A-Za-z_]\w*=.*", word, re.DOTALL):
            assigned = word.partition("=")
            if assigned[1] and not account.told("belong to no option"):
                if of_variable(assigned[0], assigned[2], account):
                    continue
            else:
                continue
        lost.append(word)
    return lost


def unkept(words: Iterable[str], entrypoint: Iterable[str]) -> Iterator[str]:
    """The words that an entrypoint has not taken over as they are; of a shell's text what is behind its beginning."""
    fronts = [match.group(1) for text in entrypoint if (match := re.match(r'(.+)exec .* "\$@"\Z', text, re.DOTALL))]
    for word in words:
        front = next((front for front in fronts if word.startswith(front)), None)
        if front is not None and word not in entrypoint:
            yield from ("bash", "-c", word[len(front) :])
        elif word not in entrypoint:
            yield word


def flat(words: list[str]) -> Iterator[str]:
    """The words, those of a shell's text one by one, its own variables replaced."""
    for index, word in enumerate(words):
        if (
            index > 1
            and re.fullmatch(r"-[a-z]*c[a-z]*", words[index - 1])
            and re.search(r"(ba|da)?sh\Z", words[index - 2])
        ):
            text = word.replace("\\\n", " ")
            assigned = dict(re.findall(r"(?m)(?:^|[;\s])([A-Z]+)=(\w+)", text))
            for name, value in assigned.items():
                text = re.sub(r"\$\{?%s\b\}?" % name, value, text)
            text = re.sub(r"\$\{\w+:-(\w*)\}", r"\1", text)
            try:
                parts = shlex.split(text, comments=True)
            except ValueError:
                parts = text.split()
            inner = [part.rstrip(";") for part in parts]
            skipped = ("&&", "", "export", "set", "-e", "-euo", "pipefail", "$@")
            known = {"%s=%s" % pair for pair in assigned.items()}
            yield from (part for part in flat(inner) if part not in skipped and part not in known)
        elif not re.fullmatch(r"(?:/usr)?(?:/bin/)?(?:ba|da)?sh|-[a-z]*c", word):
            yield word


# Options of `docker run` that say how it is waited for, and those that compose's own way of running stands for.
RUN = {"rm", "it", "i", "t", "d", "ti", "detach", "interactive", "tty", "name", "gpus", "device"}
RUN |= {"ipc", "runtime", "quiet", "replace", "group-add", "security-opt"}
WITHOUT_WORD = {
    "rm",
    "it",
    "i",
    "t",
    "d",
    "ti",
    "detach",
    "interactive",
    "tty",
    "quiet",
    "replace",
    "init",
    "privileged",
}


def of_swap(entry: Any, place: str, account: Account, macros: Any = None) -> list[str]:
    """The words of one of llama-swap's models that are lost; it has been taken over, and not been left out."""
    names = {**(macros or {}), **(entry.get("macros") or {})}
    lost = []
    for key, value in entry.items():
        if key == "cmd":
            text = re.sub(r"(?m)^\s*#.*$|\\\s*$", "", value)
            for name, item in (*reversed(names.items()), ("PORT", account.model["host_port"]), ("MODEL_ID", "")):
                text = text.replace("${%s}" % name, str(item))
            lost += ["cmd: %s" % word for word in of_run(shlex.split(text), place + ".cmd", account)]
        elif key == "env":
            pairs = value.items() if isinstance(value, dict) else [item.partition("=")[::2] for item in value]
            lost += ["env: %s" % name for name, item in pairs if not of_variable(name, item, account)]
        elif key in ("macros", "name", "proxy", "sleepEndpoints", "wakeEndpoints"):
            # Used by name; or told apart, which has tests of its own.
            continue
        else:
            for path, leaf in leaves(value, key):
                told = account.has(str(leaf)) or account.told("%s.%s" % (place, path.partition(".")[0]))
                if leaf not in (None, "", "/health") and not told:
                    lost.append("%s: %s" % (path, leaf))
    return lost


def of_run(words: list[str], place: str, account: Account) -> list[str]:
    """The same for a command that may be `docker run`."""
    if len(words) == 3 and words[1] == "-c" and " run " in words[2]:
        words = list(flat(words))
    at = next((index for index, word in enumerate(words) if word == "run" and index), None)
    if at is None or not re.search(r"(docker|podman)\Z", words[at - 1]):
        return of_words(words, account)
    lost = of_words(words[: at - 1], account)
    entrypoint: list[str] = []
    rest = words[at + 1 :]
    while rest and rest[0].startswith("-"):
        name, equals, value = rest.pop(0).lstrip("-").partition("=")
        if not equals and name not in WITHOUT_WORD:
            value = rest.pop(0)
        if name in ("e", "env"):
            variable = value.partition("=")
            if not of_variable(variable[0], variable[2], account):
                lost.append("-e " + variable[0])
        elif name in ("v", "volume"):
            lost += [] if of_volume(value, account) else ["-v " + value]
        elif name == "mount":
            pairs = dict(part.partition("=")[::2] for part in value.split(","))
            named = {"source": pairs.get("src", pairs.get("source")), "target": pairs.get("dst", pairs.get("target"))}
            lost += [] if of_volume(named, account) else ["--mount " + value]
        elif name == "entrypoint":
            entrypoint = [value]
        elif name in ("p", "publish"):
            if str(account.model["host_port"]) not in value.split(":") and not account.told("--publish"):
                lost.append("-p " + value)
        elif name not in RUN and not account.told(name) and not account.told("." + name.replace("-", "_")):
            lost.append("--" + name)
    return lost + of_words([*rest[:1], *entrypoint, *rest[1:]], account)
