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
import re
import shlex
import typing

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import inventory, masking, options
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import InventoryError
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.gpus import gpu_uuid, is_mig
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.texts import is_secret_name, map_text, secret_texts
from ansible_collections.homegpt.vllm.plugins.plugin_utils import compose_variables, launch, serve_line, weights

# What the collection gives every container (compose.service), and what it gives none.
_OWN_ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_CONFIGURE_LOGGING": "1",
    "VLLM_LOGGING_CONFIG_PATH": "/logs/logging.json",
}
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")
# What of the host's caches lies where in a container, as the collection mounts them.
_CACHES = {**{inside: "/" + name for name, inside in weights.CACHES.items()}, "/root/.cache": ""}
# Stands in a text where a variable was whose value nobody knows. No file has these characters.
UNKNOWN = "\ue000%s\ue001"
UNKNOWN_NAME = re.compile("\ue000(.*?)\ue001")
# The model of an entry whose compose file is missing, and of one whose command says nothing that is understood. Hugging
# Face has no such names, so they can't be loaded by mistake.
PLACEHOLDER = "COMPOSE-FILE-MISSING/"
UNREAD = "COMMAND-NOT-READ/"
# The key of a model that has its container's entrypoint, as a list of words; empty while there is none.
ENTRYPOINT_KEY = "entrypoint"
# Whether a model's gpus can be named by the ids that `nvidia-smi -L` prints (GPU-..., MIG-...).
GPU_IDS = True
# So many places are named before what is said of them.
_FEW = 3
# Environment variables that choose GPUs; each counts among those that the one before it has left. The collection sets
# them from gpus.
_VISIBLE = ("NVIDIA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


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

    def join(self, other: Notes) -> None:
        """The notes of another one, behind these."""
        for text, places in other._places.items():
            for place in places:
                self.add(place, text)

    def texts(self) -> list[str]:
        """The notes, each with its places."""
        return [readable(_note(places, text)) for text, places in self._places.items()]


def _note(places: typing.Sequence[str], text: str) -> str:
    """A note; many places of one file stand behind its text, where they hide nothing."""
    files = {place.partition(": ")[0] for place in places}
    if len(places) <= _FEW or len(files) > 1:
        return "%s: %s" % (_together(places), text)
    (file,) = files
    return "%s: %s: %s" % (file, text, ", ".join(place.partition(": ")[2] for place in places))


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
    access: str = ""  # the vllm_gpu_access that its devices stand for, where they do
    start: launch.Launch | None = None  # how it is started


def values(
    variables: typing.Mapping[str, typing.Any] | None, files: typing.Iterable[tuple[str, str]]
) -> dict[str, str]:
    """The values of variables: those that are given one by one, then those of C(.env) files, given as (name, text).

    Raises ConvertError.
    """
    found = {str(name): scalar(value) for name, value in (variables or {}).items()}
    for file, text in files:
        try:
            read = compose_variables.dotenv(text, found.get)
        except compose_variables.BadVariable as error:
            raise ConvertError(["%s: compose knows no variable %s" % (file, quoted(str(error)))]) from None
        found = {**read, **found}
    return found


class Builder:
    """Gathers models, and then what they have in common."""

    def __init__(self, notes: Notes, variables: typing.Mapping[str, typing.Any] | None) -> None:
        self.notes = notes
        self.models: list[dict[str, typing.Any]] = []
        self._places: list[str] = []
        self._ids: set[str] = set()
        self.values = {str(name): scalar(value) for name, value in (variables or {}).items()}
        self._tokens: dict[str, str] = {}
        self._volumes: list[tuple[str, str]] = []
        self._accesses: dict[str, list[str]] = {}

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
        return self.values.get(name, UNKNOWN % name)

    def known(self, value: typing.Any, place: str) -> typing.Any:
        """A value of a compose file with its variables replaced, however deep. Raises ConvertError with the place."""
        asked: list[str] = []
        unset: list[str] = []

        def lookup(name: str) -> str | None:
            if name not in self.values:
                asked.append(name)
            return self.values.get(name)

        def missing(name: str) -> str:
            unset.append(name)
            return UNKNOWN % name

        def replace(text: str) -> str:
            try:
                return compose_variables.interpolate(text, lookup, missing)
            except compose_variables.BadVariable as error:
                raise ConvertError(
                    ["%s: compose knows no variable %s: write $$ for a dollar" % (place, quoted(str(error)))]
                ) from None

        found = map_text(value, replace)
        defaults = [name for name in dict.fromkeys(asked) if name not in unset]
        if defaults:
            self.notes.add(
                place,
                "without a value, so that what the file says for that case is taken: %s. Give the file with the values "
                "as convert_env, or single ones as convert_variables" % ", ".join(defaults),
            )
        return found

    def serve(self, model: dict[str, typing.Any], server: Server, place: str) -> None:
        """What a server's command, environment and container say, into its model."""
        line = serve_line.parse(server.words)
        for problem in line.problems:
            self.notes.add(place, problem)
        if server.start is not None:
            self._started(model, server.start, place)
        if unknown(line.model):
            self.notes.add(
                place + ": model",
                "give the values of its variables as convert_variables: " + ", ".join(unknown(line.model)),
            )
        else:
            model["model"] = line.model
        args = self._arguments(line.args, place)
        self._leave_out(model, args, place)
        model["gpus"] = self.gpus(server, args, place)
        model["env"] = self._own_environment(server.env, place)
        if unknown(server.image):
            self.notes.add(
                place + ": image",
                "not taken over: its value is not in the file (%s); set image or vllm_image"
                % ", ".join(unknown(server.image)),
            )
        elif server.image:
            model["image"] = server.image
        self._accesses.setdefault(server.access, []).append(place)
        model["args"] = args
        model["aliases"] = [*line.names, *model.get("aliases", [])]
        if line.host not in ("", "127.0.0.1", "localhost", "0.0.0.0"):  # noqa: S104  # nothing listens here
            self.notes.add(place + ": --host", "not taken over: ports are published on 127.0.0.1, always")
        if unknown(line.port):
            self.notes.add(place + ": --port", "not taken over: the collection sets it")
        self._volumes += [(volume, place) for volume in server.volumes]

    def _started(self, model: dict[str, typing.Any], start: launch.Launch, place: str) -> None:
        """What its container runs, where that is more than `vllm serve`; without a place for it, it is told."""
        if start.entrypoint and ENTRYPOINT_KEY and _may_be_kept(start.entrypoint):
            model[ENTRYPOINT_KEY] = start.entrypoint
            if start.problem:
                self.notes.add(place, "its entrypoint is taken over as it is: check that it starts `vllm serve`")
            return
        if start.problem:
            model["startup_mode"] = "disabled"
            self.notes.add(
                place,
                "what it runs is not understood from here on: %s. It is disabled: see what that does, and write model, "
                "gpus and args as they are to be" % quoted(start.problem),
            )
        if start.entrypoint and ENTRYPOINT_KEY and start.before and not start.problem:
            model[ENTRYPOINT_KEY] = ["vllm", "serve"]
        for text in start.before:
            self.notes.add(place, "not taken over, but run before vLLM: %s" % quoted(text))
        if start.entrypoint and not (start.before or start.problem):
            self.notes.add(
                place,
                "runs %s itself: a container here runs the entrypoint of its image, which then has to be `vllm serve`"
                % quoted(" ".join(start.entrypoint)),
            )

    def unread(self, model: dict[str, typing.Any], place: str, prefix: str, why: str) -> None:
        """Nobody knows what the model loads: a placeholder takes its place, and nothing switches to it."""
        was = model.get("startup_mode", "sleep")
        model.update(model=prefix + model["id"], startup_mode="disabled")
        again = {
            PLACEHOLDER: "Convert again with that file, or write",
            UNREAD: "Convert again with what is missing, or write",
        }[prefix]
        self.notes.add(
            place,
            "%s, so nobody knows what it loads: it is disabled, with a placeholder as its model. %s its model, gpus "
            "and args by hand%s" % (why, again, "" if was == "disabled" else " and put startup_mode back to %s" % was),
        )

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

    def _leave_out(self, model: dict[str, typing.Any], args: dict[str, typing.Any], place: str) -> None:
        """Take out what the inventory refuses in a container; who relies on more than TLS is another sort of server."""
        other_sort = dict(options.unfollowed(args))
        for name, why in list(options.unfollowed_in_container(args)):
            text = "not taken over: %s" % why
            if name in other_sort:
                model["startup_mode"] = "disabled"
                text += ". It is disabled until you have seen to that"
            self.notes.add("%s: --%s" % (place, name.replace("_", "-")), text)
            del args[name]

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
            elif name in _VISIBLE or value == _OWN_ENVIRONMENT.get(name):
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
        available = self._visible(server, place)
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

    def _visible(self, server: Server, place: str) -> list[typing.Any] | None:
        """The GPUs that a server sees, by their numbers on the host, or their ids; None where nothing says which."""
        found = list(range(server.number)) if server.number else None
        given = [("the reserved devices", ",".join(server.reserved))] if server.reserved else []
        for name, text in [*given, *((name, server.env[name]) for name in _VISIBLE if server.env.get(name))]:
            if name == "NVIDIA_VISIBLE_DEVICES" and (text == "all" or found is not None):
                if text not in ("all", server.reserved and ",".join(server.reserved)):
                    self.notes.add(
                        "%s: %s" % (place, name), "not taken over: beside reserved devices it counts nothing"
                    )
                continue
            numbers = _numbers(text)
            if numbers is None:
                self.notes.add(
                    "%s: %s" % (place, name),
                    "has no plain numbers and no whole UUIDs: check gpus, which counts as nvidia-smi does",
                )
            elif found and name not in ("the reserved devices", "NVIDIA_VISIBLE_DEVICES"):
                # In its container the reserved ones are numbered from 0.
                inside = [
                    found[number] if isinstance(number, int) else number
                    for number in numbers
                    if not isinstance(number, int) or number < len(found)
                ]
                if len(inside) == len(numbers):
                    found = inside
                else:
                    self.notes.add("%s: %s" % (place, name), "names GPUs that it was not given: check gpus")
            else:
                found = numbers
        return found

    def finish(self, switching: dict[str, typing.Any], name: str) -> Converted:
        """The variables, once they are a right inventory."""
        found: dict[str, typing.Any] = {}
        served = [model for model in self.models if not model["model"].startswith((PLACEHOLDER, UNREAD))]
        self._take_access(found)
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
        if any(True for dummy in secret_texts({"vllm_models": self.models, "vllm_env": found.get("vllm_env")})):
            self.notes.add(name, "secrets of it are in the result as plain text: encrypt the file with ansible-vault")
        self._name_gpus_one_way()
        self._check(switching, name)
        return Converted(found, self.notes.texts())

    def _name_gpus_one_way(self) -> None:
        """Whether a number and a UUID are the same GPU is known on the host alone: the rarer form is disabled."""
        ways: dict[str, list[int]] = {"numbers": [], "UUIDs": [], "both": []}
        for index, model in enumerate(self.models):
            named = {isinstance(gpu, str) for gpu in model.get("gpus", []) if not is_mig(gpu)}
            if named and model.get("startup_mode") != "disabled":
                ways["both" if len(named) > 1 else "UUIDs" if True in named else "numbers"].append(index)
        rarer = min(ways["numbers"], ways["UUIDs"], key=len)
        for index in sorted([*ways["both"], *rarer]):
            was = self.models[index].get("startup_mode", "sleep")
            self.models[index]["startup_mode"] = "disabled"
            self.notes.add(
                self._places[index],
                "gpus are numbers in some models and UUIDs in others, so nobody can tell which models share a GPU: it "
                "is disabled. Write all of them one way (nvidia-smi -L lists both) and put startup_mode back to %s"
                % was,
            )

    def _shared_environment(self, found: dict[str, typing.Any], models: list[dict[str, typing.Any]]) -> None:
        """What all models in containers have in their environment is the host's."""
        if len(models) < 2:
            return
        first = models[0].get("env", {})
        shared = {
            name: value
            for name, value in first.items()
            if not is_secret_name(name) and all(model.get("env", {}).get(name) == value for model in models)
        }
        if shared:
            found["vllm_env"] = shared
        for model in models:
            model["env"] = {name: value for name, value in model.get("env", {}).items() if name not in shared}
            if not model["env"]:
                del model["env"]

    def _take_access(self, found: dict[str, typing.Any]) -> None:
        """How containers are given their GPUs, where all that say so say the same."""
        named = {access: places for access, places in self._accesses.items() if access}
        if len(self._accesses) == 1 and named:
            (found["vllm_gpu_access"],) = named
        elif named:
            self.notes.add(
                ", ".join(place for places in named.values() for place in places),
                "has devices for vllm_gpu_access: %s, and others have not: that variable is for all models of a host"
                % ", ".join(sorted(named)),
            )

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
                others = [option for option in mode.split(",") if option not in ("", "ro", "rw")]
                if others:
                    self.notes.add(where, "its options are not taken over: %s" % ", ".join(others))
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
    "entrypoint",
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
    if any(True for dummy in secret_texts(dict(variables))):
        return True
    words = [word for model in variables["vllm_models"] for word in model.get("start_command", [])]
    return any(word.startswith("-") and is_secret_name(word) for word in words)


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


def environment(
    given: typing.Any, place: str, notes: Notes, values: typing.Mapping[str, str] | None = None
) -> dict[str, str]:
    """Environment variables, given as a dictionary or as C(NAME=value); C(values) are those without a value here."""
    if isinstance(given, dict):
        pairs = [(str(name), value) for name, value in given.items()]
    else:
        split = [str(item).partition("=") for item in as_list(given)]
        pairs = [(name, value if equals else None) for name, equals, value in split]
    found = {}
    for name, value in pairs:
        if value is None and name in (values or {}):
            found[name] = (values or {})[name]
        elif value is None:
            key = "gpus" if name in _VISIBLE else "env"
            notes.add(
                "%s.%s" % (place, name), "not taken over: its value comes from where compose runs; set it in " + key
            )
        else:
            found[name] = scalar(value)
    return found


def _may_be_kept(entrypoint: list[str]) -> bool:
    """Whether an inventory can have it: one without secrets, which a compose file would show to all."""
    if unknown(entrypoint) or masking.secrets_in_shell(entrypoint):
        return False
    try:
        inventory.parse([{"id": "a", "model": "a", "host_port": 1, "entrypoint": entrypoint}])
    except InventoryError:
        return False
    return True


def _numbers(text: str) -> list[typing.Any] | None:
    """GPU numbers, or ids where those can be kept, each once; None where they are neither."""
    found: list[typing.Any] = []
    for part in (part.strip() for part in text.split(",")):
        if part.isdigit() and len(part) < 4:
            found.append(int(part))
        elif GPU_IDS and gpu_uuid(part):
            found.append(gpu_uuid(part))
        else:
            return None
    return list(dict.fromkeys(found))


def readable(text: str) -> str:
    """A text with its unknown variables as they were."""
    return UNKNOWN_NAME.sub(r"${\1}", text)


def quoted(text: str) -> str:
    """A part of the source for a note: on one line, not too long, and without values that may be secret."""
    text = masking.Mask(masking.secrets_of(text))(text)
    text = re.sub(r"""\b([A-Za-z_]\w*)=("[^"]*"|'[^']*'|[^\s;|&)]+)""", r"\1=...", text)
    text = " ".join(text.split())
    return text if len(text) <= 400 else text[:397] + "..."


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
