# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the converters have in common: notes and mistakes, and the builder of a model inventory.

Pure: they are given what was read from the files. Notes and errors name keys and places, and never the value of an
argument or of an environment variable, since that may be a secret.
"""

from __future__ import annotations

import collections
import posixpath
import re
import shlex
import typing

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import inventory, masking
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import InventoryError
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.texts import map_text
from ansible_collections.homegpt.vllm.plugins.plugin_utils import serve_line

# What the collection gives every container (compose.service), and what it gives none.
_OWN_ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_CONFIGURE_LOGGING": "1",
    "VLLM_LOGGING_CONFIG_PATH": "/logs/logging.json",
}
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")
_CACHES = {
    "/root/.cache/huggingface": "/huggingface",
    "/root/.cache/vllm": "/vllm",
    "/root/.triton/cache": "/triton",
    "/root/.cache/flashinfer": "/flashinfer",
    "/root/.cache": "",
}
# Stands in a text where a variable was whose value nobody knows. No file has these characters.
UNKNOWN = "\ue000%s\ue001"
UNKNOWN_NAME = re.compile("\ue000(.*?)\ue001")
# The model of an entry whose compose file is missing. Hugging Face has no such name, so it can't be loaded by mistake.
PLACEHOLDER = "COMPOSE-FILE-MISSING/"


class ConvertError(Exception):
    """What can't be converted: every mistake, each with its place in the source."""

    def __init__(self, mistakes: typing.Sequence[str]) -> None:
        super().__init__("nothing was written:\n- " + "\n- ".join(mistakes))
        self.mistakes = list(mistakes)


class Converted(typing.NamedTuple):
    """The variables of a host, and what to look at."""

    variables: dict[str, typing.Any]
    notes: list[str]


class Notes:
    """Notes in their order; one text about many places is one note."""

    def __init__(self) -> None:
        self._places: collections.OrderedDict[str, list[str]] = collections.OrderedDict()

    def add(self, place: str, text: str) -> None:
        """One more note about a place in the source."""
        places = self._places.setdefault(text, [])
        if place not in places:
            places.append(place)

    def texts(self) -> list[str]:
        """The notes, each with its places."""
        return ["%s: %s" % (_together(places), text) for text, places in self._places.items()]


def _together(places: typing.Iterable[str]) -> str:
    """Places as one text, each file named once."""
    files: dict[str, list[str]] = {}
    for place in places:
        file, _dummy, inner = place.partition(": ")
        files.setdefault(file, []).append(inner)
    return ", ".join(file + ": " * any(inner) + ", ".join(filter(None, inner)) for file, inner in files.items())


class Server(typing.NamedTuple):
    """How a source says that a server is run."""

    words: list[str]  # behind `vllm serve`
    env: dict[str, str]
    image: str = ""
    reserved: list[str] | None = None  # GPUs by name
    number: int | None = None  # or so many
    volumes: typing.Sequence[str] = ()


class Builder:
    """Gathers models, and then what they have in common."""

    def __init__(self, notes: Notes, variables: typing.Mapping[str, typing.Any] | None) -> None:
        self.notes = notes
        self.models: list[dict[str, typing.Any]] = []
        self._places: list[str] = []
        self._ids: set[str] = set()
        self._variables = {str(name): scalar(value) for name, value in (variables or {}).items()}
        self._tokens: dict[str, str] = {}
        self._volumes: list[tuple[str, str]] = []

    def add(self, model: dict[str, typing.Any], place: str) -> None:
        """One more model, with where it comes from."""
        model["aliases"] = [
            name for name in dict.fromkeys(model.get("aliases", [])) if name not in (model["id"], model["model"])
        ]
        self.models.append({key: model[key] for key in _ORDER if model.get(key) not in (None, [], {}, "")})
        self._places.append(place)

    def new_id(self, name: str, place: str) -> str:
        """A name as an id that is nobody else's."""
        found = base = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("._-") or "model"
        number = 2
        while found in self._ids:
            found, number = "%s-%d" % (base, number), number + 1
        self._ids.add(found)
        if found != name:
            self.notes.add(place, "its id is %s: ids are lower-case letters, digits, dots, dashes, underscores" % found)
        return found

    def variable(self, name: str) -> str:
        """The value of an environment variable, or what stands for it."""
        return self._variables.get(name, UNKNOWN % name)

    def known(self, value: typing.Any) -> typing.Any:
        """A value of a compose file with its variables replaced, however deep."""
        pattern = re.compile(r"\$(?:(\$)|(\w+)|\{(\w+)(?:(:?[-?+])([^{}]*))?\})")

        def replace(match: re.Match[str]) -> str:
            dollar, bare, name, operator, other = match.groups()
            if dollar:
                return "$"
            name = name or bare
            if operator in (":-", "-") and not self._variables.get(name):
                return other or ""
            return self.variable(name)

        return map_text(value, lambda text: pattern.sub(replace, text))

    def serve(self, model: dict[str, typing.Any], server: Server, place: str) -> None:
        """What a server's command, environment and container say, into its model."""
        line = serve_line.parse(server.words)
        for problem in line.problems:
            self.notes.add(place, problem)
        if unknown(line.model):
            self.notes.add(
                place, "give the values of its variables as convert_variables: " + ", ".join(unknown(line.model))
            )
        else:
            model["model"] = line.model
        args = self._arguments(line.args, place)
        model["gpus"] = self.gpus(server, args, place)
        model["env"] = self._own_environment(server.env, place)
        if server.image and not unknown(server.image):
            model["image"] = server.image
        model["args"] = args
        model["aliases"] = [*line.names, *model.get("aliases", [])]
        if line.host not in ("", "127.0.0.1", "localhost", "0.0.0.0"):  # noqa: S104  # nothing listens here
            self.notes.add(place + ": --host", "not taken over: ports are published on 127.0.0.1, always")
        self._volumes += [(volume, place) for volume in server.volumes]

    def _arguments(self, args: dict[str, typing.Any], place: str) -> dict[str, typing.Any]:
        kept = {}
        for name, value in args.items():
            flag = "%s: --%s" % (place, name.replace("_", "-"))
            if name == "hf_token":
                self._token(value, flag)
            elif unknown(value):
                self.notes.add(
                    flag,
                    "not taken over: its value is not in the file (%s); set args.%s"
                    % (", ".join(unknown(value)), name),
                )
            elif name == "enable_sleep_mode":
                if value is not True:
                    self.notes.add(flag, "not taken over: without sleep mode no switch is possible")
            else:
                kept[name] = value
        return kept

    def _token(self, value: typing.Any, place: str) -> None:
        if isinstance(value, str) and value and not unknown(value):
            self._tokens[place] = value
            self.notes.add(place, "is vllm_hf_token now, in plain text: encrypt it with ansible-vault")
        else:
            self.notes.add(place, "its value is not in the file: put the token into vllm_hf_token, in a vault")

    def _own_environment(self, env: typing.Mapping[str, str], place: str) -> dict[str, str]:
        kept = {}
        for name, value in env.items():
            where = "%s: %s" % (place, name)
            if name in _TOKENS:
                self._token(value, where)
            elif name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES") or value == _OWN_ENVIRONMENT.get(name):
                continue
            elif name in ("VLLM_SERVER_DEV_MODE", "VLLM_LOGGING_CONFIG_PATH"):
                self.notes.add(where, "not taken over: the collection sets it")
            elif unknown(value):
                self.notes.add(
                    where,
                    "not taken over: its value is not in the file (%s); set env.%s" % (", ".join(unknown(value)), name),
                )
            else:
                kept[name] = value
        return kept

    def gpus(self, server: Server, args: dict[str, typing.Any], place: str, processes: bool = False) -> list[int]:
        """The host's numbers of the GPUs that a server uses; takes the tensor-parallel size out of C(args)."""
        given = serve_line.parse(server.words).args if processes else args
        sizes = [given.get(key, 1) for key in inventory.PARALLEL_SIZES]
        needed = 1
        for size in sizes:
            needed *= size if isinstance(size, int) and not isinstance(size, bool) and 0 < size < 1000 else 1
        visible = _numbers(server.env.get("CUDA_VISIBLE_DEVICES"))
        reserved = _numbers(",".join(server.reserved) if server.reserved else server.env.get("NVIDIA_VISIBLE_DEVICES"))
        for name, numbers, text in (
            ("CUDA_VISIBLE_DEVICES", visible, server.env.get("CUDA_VISIBLE_DEVICES")),
            ("the reserved devices", reserved, ",".join(server.reserved or [])),
        ):
            if text and numbers is None:
                self.notes.add(place, "%s has no plain numbers: check gpus, which counts as nvidia-smi does" % name)
        if reserved and visible:
            # In its container the reserved ones are numbered from 0.
            inside = [reserved[number] for number in visible if number < len(reserved)]
            visible = inside if len(inside) == len(visible) else reserved
        available = visible or reserved or (list(range(server.number)) if server.number else None)
        if available is None:
            found = list(range(needed))
            self.notes.add(place, "says nothing of GPUs by number: gpus is %s, check it" % found)
        elif len(available) > needed and all(size == 1 for size in sizes) and "tensor_parallel_size" not in given:
            found = available[:1]
            self.notes.add(
                place, "may see GPUs %s, but uses the first alone: so does gpus" % ", ".join(map(str, available))
            )
        else:
            found = available[:needed]
            if len(available) != needed:
                self.notes.add(
                    place,
                    "may see GPUs %s, and is told to use %d: check gpus" % (", ".join(map(str, available)), needed),
                )
        if any(key in args for key in inventory.PARALLEL_SIZES[1:]):
            # It would be the number of all GPUs otherwise.
            args.setdefault("tensor_parallel_size", 1)
        elif args.get("tensor_parallel_size") == len(found):
            del args["tensor_parallel_size"]
        return found

    def finish(self, switching: dict[str, typing.Any], name: str) -> Converted:
        """The variables, once they are a right inventory."""
        found: dict[str, typing.Any] = {}
        served = [model for model in self.models if not model["model"].startswith(PLACEHOLDER)]
        contained = [model for model in served if "start_command" not in model]
        images = {model.get("image", "") for model in contained}
        if len(images) == 1 and "" not in images:
            (found["vllm_image"],) = images
            for model in contained:
                del model["image"]
        floating = sorted(image for image in images if image and not re.search(r"@sha256:|:v?\d[^/]*\Z", image))
        if floating:
            self.notes.add(", ".join(floating), "is kept as it is named, and changes under a running host: pin it")
        if len(set(self._tokens.values())) == 1:
            found["vllm_hf_token"] = next(iter(self._tokens.values()))
        elif self._tokens:
            self.notes.add(
                ", ".join(self._tokens),
                "several tokens for Hugging Face: put the right one into vllm_hf_token, in a vault",
            )
        self._shared_environment(found, contained)
        self._take_volumes(found)
        found["vllm_models"] = self.models
        if switching:
            found["vllm_switching"] = switching
        if any(
            True for dummy in inventory.secret_texts({"vllm_models": self.models, "vllm_env": found.get("vllm_env")})
        ):
            self.notes.add(name, "secrets of it are in the result as plain text: encrypt the file with ansible-vault")
        self._check(switching, name)
        return Converted(found, self.notes.texts())

    def _shared_environment(self, found: dict[str, typing.Any], models: list[dict[str, typing.Any]]) -> None:
        """What all models in containers have in their environment is the host's."""
        if len(models) < 2:
            return
        first = models[0].get("env", {})
        shared = {
            name: value
            for name, value in first.items()
            if not inventory.is_secret_name(name) and all(model.get("env", {}).get(name) == value for model in models)
        }
        if shared:
            found["vllm_env"] = shared
        for model in models:
            model["env"] = {name: value for name, value in model.get("env", {}).items() if name not in shared}
            if not model["env"]:
                del model["env"]

    def _take_volumes(self, found: dict[str, typing.Any]) -> None:
        bases: dict[str, str] = {}
        kept: dict[str, str] = {}
        for volume, place in self._volumes:
            source, _colon, rest = volume.partition(":")
            target, _colon, mode = rest.partition(":")
            target = target.rstrip("/")
            where = "%s: volume of %s" % (place, target or source)
            if target in ("/logs", "/logs/logging.json"):
                continue
            if target in _CACHES:
                bases.setdefault(_cache_base(source, _CACHES[target]), place)
            elif not source.startswith("/") or not target or unknown(volume):
                self.notes.add(where, "not taken over: give it in vllm_volumes with the source's full path")
            else:
                taken = source + ":" + target + (":ro" if "ro" in mode.split(",") else "")
                if kept.setdefault(target, taken) != taken:
                    self.notes.add(
                        where, "not taken over: another model has another one there; vllm_volumes is for all"
                    )
        if kept:
            found["vllm_volumes"] = list(kept.values())
        base = next(iter(bases), "")
        if len(bases) == 1 and base.startswith("/") and not unknown(base):
            if base.rstrip("/") != "/root/.cache":
                found["vllm_cache_dir"] = base.rstrip("/")
        elif bases:
            self.notes.add(
                ", ".join(dict.fromkeys(bases.values())),
                "its caches are in %s: set vllm_cache_dir to that folder's full path, or the weights are fetched again "
                "into /root/.cache" % ", ".join(base or "folders of their own" for base in bases if not unknown(base)),
            )

    def _check(self, switching: dict[str, typing.Any], name: str) -> None:
        """The one validation, its mistakes at the places that they come from."""
        try:
            inventory.parse(self.models, switching)
        except InventoryError as error:
            mask = masking.Mask(masking.secrets_of(self.models, switching))
            mistakes = []
            for mistake in error.mistakes:
                text = re.sub(
                    r"vllm_models\[(\d+)\](?: \([^)]*\))?", lambda match: self._places[int(match.group(1))], mistake
                )
                text = text.replace("vllm_switching", "%s: switching" % name, 1)
                mistakes.append(mask(text))
            raise ConvertError(mistakes) from None


_ORDER = [
    "id",
    "name",
    "model",
    "host_port",
    "port",
    "container_name",
    "gpus",
    "gpu_memory_gb",
    "startup_mode",
    "sleep_level",
    "image",
    "aliases",
    "args",
    "env",
    "sleep_requests",
    "wake_requests",
    "start_command",
    "stop_command",
]


def holds_secrets(variables: typing.Mapping[str, typing.Any]) -> bool:
    """Whether anything in the variables looks like a secret, by its name, or in a command by the option before it."""
    if any(True for dummy in inventory.secret_texts(dict(variables))):
        return True
    words = [word for model in variables["vllm_models"] for word in model.get("start_command", [])]
    return any(word.startswith("-") and inventory.is_secret_name(word) for word in words)


def _cache_base(source: str, folder: str) -> str:
    """The folder that vllm_cache_dir would be for the source of a cache's volume; empty if it is called otherwise."""
    if not folder:
        return source
    return source[: -len(folder)] if source.endswith(folder) else ""


def split_words(command: typing.Any, place: str) -> list[str]:
    """The words of a command that is a text or a list."""
    if isinstance(command, (list, tuple)):
        return [scalar(word) for word in command]
    try:
        return shlex.split(command or "")
    except (ValueError, AttributeError, TypeError):
        raise ConvertError([place + ": can't be split into words: check its quotes"]) from None


def environment(given: typing.Any, place: str, notes: Notes) -> dict[str, str]:
    """Environment variables, given as a dictionary or as C(NAME=value)."""
    if isinstance(given, dict):
        pairs = [(str(name), value) for name, value in given.items()]
    else:
        split = [str(item).partition("=") for item in as_list(given)]
        pairs = [(name, value if equals else None) for name, equals, value in split]
    found = {}
    for name, value in pairs:
        if value is None:
            notes.add("%s.%s" % (place, name), "not taken over: its value comes from where compose runs; set it in env")
        else:
            found[name] = scalar(value)
    return found


def _numbers(text: str | None) -> list[int] | None:
    """GPU numbers, each once; None where they are none."""
    parts = [part.strip() for part in (text or "").split(",")]
    if not all(part.isdigit() and len(part) < 4 for part in parts):
        return None
    return list(dict.fromkeys(map(int, parts)))


def unknown(value: typing.Any) -> list[str]:
    """The names of the variables in a value that nobody knows."""
    found: list[str] = []

    def look(text: str) -> str:
        found.extend(UNKNOWN_NAME.findall(text))
        return text

    map_text(value, look)
    return list(dict.fromkeys(found))


def scalar(value: typing.Any) -> str:
    """The text that YAML would have for the value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def as_list(value: typing.Any) -> list[typing.Any]:
    """The value as a list: empty for None, of one item for what is no list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def serve_words(words: list[str]) -> tuple[list[str], list[str]] | None:
    """What stands before vLLM's command, and what behind it."""
    for index, word in enumerate(words):
        behind = words[index + 1 : index + 2]
        if posixpath.basename(word) == "vllm" and behind == ["serve"]:
            return words[:index], words[index + 2 :]
        if word == "-m" and behind == ["vllm.entrypoints.openai.api_server"]:
            return words[: max(index - 1, 0)], words[index + 2 :]
    return None
