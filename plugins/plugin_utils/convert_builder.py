# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The builder of a model inventory: what servers of another system say becomes models, and what they have in common the
host's variables. Pure."""

from __future__ import annotations

import re
import typing

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import inventory, options, redaction
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.errors import InventoryError
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.gpus import is_mig
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.redaction import is_secret_name, secret_texts
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.texts import map_text
from ansible_collections.homegpt.vllm.plugins.plugin_utils import (
    compose_variables,
    convert_gpus,
    convert_host,
    launch,
    serve_line,
)
from ansible_collections.homegpt.vllm.plugins.plugin_utils.convert import (
    PLACEHOLDER,
    UNKNOWN,
    UNREAD,
    VISIBLE,
    Converted,
    ConvertError,
    Notes,
    Server,
    quoted,
    scalar,
    unknown,
)

# What the collection gives every container (compose.service), and what it gives none.
_OWN_ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_CONFIGURE_LOGGING": "1",
    "VLLM_LOGGING_CONFIG_PATH": "/logs/logging.json",
}
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")
# The key of a model that has its container's entrypoint, as a list of words; empty while there is none.
ENTRYPOINT_KEY = "entrypoint"


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
                "variables without a value, so the defaults in the file are used: %s. Pass the file with the values as "
                "convert_env, or single values as convert_variables" % ", ".join(defaults),
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
        model["gpus"] = convert_gpus.used(server, args, place, self.notes)
        model["env"] = self._own_environment(server.env, place)
        if unknown(server.image):
            self.notes.add(
                place + ": image",
                "not converted: its value is not in the file (%s); set image or vllm_image"
                % ", ".join(unknown(server.image)),
            )
        elif server.image:
            model["image"] = server.image
        self._accesses.setdefault(server.access, []).append(place)
        model["args"] = args
        model["aliases"] = [*line.names, *model.get("aliases", [])]
        if line.host not in ("", "127.0.0.1", "localhost", "0.0.0.0"):  # noqa: S104  # nothing listens here
            self.notes.add(place + ": --host", "not converted: ports are published on 127.0.0.1, always")
        if unknown(line.port):
            self.notes.add(place + ": --port", "not converted: the collection sets it")
        self._volumes += [(volume, place) for volume in server.volumes]

    def _started(self, model: dict[str, typing.Any], start: launch.Launch, place: str) -> None:
        """What its container runs, where that is more than `vllm serve`; without a place for it, it is told."""
        if start.entrypoint and ENTRYPOINT_KEY and _may_be_kept(start.entrypoint):
            model[ENTRYPOINT_KEY] = start.entrypoint
            if start.problem:
                self.notes.add(place, "its entrypoint is copied unchanged: check that it starts `vllm serve`")
            return
        if start.problem:
            model["startup_mode"] = "disabled"
            self.notes.add(
                place,
                "its command can't be parsed from here on: %s. It is disabled: check what that does, and set model, "
                "gpus and args by hand" % quoted(start.problem),
            )
        if start.entrypoint and ENTRYPOINT_KEY and start.before and not start.problem:
            model[ENTRYPOINT_KEY] = ["vllm", "serve"]
        for text in start.before:
            self.notes.add(place, "not converted, although it runs before vLLM: %s" % quoted(text))
        if start.entrypoint and not (start.before or start.problem):
            self.notes.add(
                place,
                "runs %s itself: here, a container runs the entrypoint of its image, which must be `vllm serve`"
                % quoted(" ".join(start.entrypoint)),
            )

    def unread(self, model: dict[str, typing.Any], place: str, prefix: str, why: str) -> None:
        """Nobody knows what the model loads: a placeholder takes its place, and nothing switches to it."""
        was = model.get("startup_mode", "sleep")
        model.update(model=prefix + model["id"], startup_mode="disabled")
        again = {
            PLACEHOLDER: "Convert again with that file, or set",
            UNREAD: "Convert again with the missing values, or set",
        }[prefix]
        self.notes.add(
            place,
            "%s, so it is unknown what it loads: it is disabled, with a placeholder as its model. %s its model, gpus "
            "and args by hand%s" % (why, again, "" if was == "disabled" else " and set startup_mode back to %s" % was),
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
                    "not converted: its value is not in the file (%s); set args.%s" % (", ".join(unknown(value)), name),
                )
            elif name == "enable_sleep_mode":
                if value is not True:
                    self.notes.add(flag, "not converted: without sleep mode no switch is possible")
            else:
                kept[name] = value
        return kept

    def _leave_out(self, model: dict[str, typing.Any], args: dict[str, typing.Any], place: str) -> None:
        """Take out what the inventory refuses in a container; who relies on more than TLS is another sort of server."""
        other_sort = dict(options.unfollowed(args))
        for name, why in list(options.unfollowed_in_container(args)):
            text = "not converted: %s" % why
            if name in other_sort:
                model["startup_mode"] = "disabled"
                text += ". It is disabled until you correct that"
            self.notes.add("%s: --%s" % (place, name.replace("_", "-")), text)
            del args[name]

    def _token(self, value: typing.Any, place: str) -> None:
        if isinstance(value, str) and value and not unknown(value):
            self._tokens[place] = value
            self.notes.add(place, "is now vllm_hf_token, in plain text: encrypt it with ansible-vault")
        else:
            self.notes.add(place, "its value is not in the file: put the token into vllm_hf_token, in a vault")

    def _own_environment(self, env: typing.Mapping[str, str], place: str) -> dict[str, str]:
        kept = {}
        for name, value in env.items():
            where = "%s: %s" % (place, name)
            if name in _TOKENS:
                self._token(value, where)
            elif name in VISIBLE or value == _OWN_ENVIRONMENT.get(name):
                continue
            elif name in ("VLLM_SERVER_DEV_MODE", "VLLM_LOGGING_CONFIG_PATH"):
                self.notes.add(where, "not converted: the collection sets it")
            elif unknown(value):
                self.notes.add(
                    where,
                    "not converted: its value is not in the file (%s); set env.%s" % (", ".join(unknown(value)), name),
                )
            else:
                kept[name] = value
        return kept

    def finish(self, switching: dict[str, typing.Any], name: str) -> Converted:
        """The variables, once they are a right inventory."""
        found: dict[str, typing.Any] = {}
        served = [model for model in self.models if not model["model"].startswith((PLACEHOLDER, UNREAD))]
        convert_host.access(found, self._accesses, self.notes)
        contained = [model for model in served if "start_command" not in model]
        images = {model.get("image", "") for model in contained}
        if len(images) == 1 and "" not in images:
            (found["vllm_image"],) = images
            for model in contained:
                del model["image"]
        floating = sorted(image for image in images if image and not re.search(r"@sha256:|:v?\d[^/]*\Z", image))
        if floating:
            self.notes.add(", ".join(floating), "is kept, but its tag can change: pin it")
        if len(set(self._tokens.values())) == 1:
            found["vllm_hf_token"] = next(iter(self._tokens.values()))
        elif self._tokens:
            self.notes.add(
                ", ".join(self._tokens),
                "several tokens for Hugging Face: put the right one into vllm_hf_token, in a vault",
            )
        convert_host.shared_environment(found, contained)
        convert_host.volumes(found, self._volumes, self.notes)
        found["vllm_models"] = self.models
        if switching:
            found["vllm_switching"] = switching
        if any(True for dummy in secret_texts({"vllm_models": self.models, "vllm_env": found.get("vllm_env")})):
            self.notes.add(name, "its secrets are in the result as plain text: encrypt the file with ansible-vault")
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
                "gpus are numbers in some models and UUIDs in others, so it is unknown which models share a GPU: it "
                "is disabled. Write all of them one way (nvidia-smi -L lists both) and set startup_mode back to %s"
                % was,
            )

    def _check(self, switching: dict[str, typing.Any], name: str) -> None:
        """The one validation, its mistakes at the places that they come from."""
        try:
            inventory.parse(self.models, switching)
        except InventoryError as error:
            mask = redaction.Mask(redaction.secrets_of(self.models, switching))
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


def _may_be_kept(entrypoint: list[str]) -> bool:
    """Whether an inventory can have it: one without secrets, which a compose file would show to all."""
    if unknown(entrypoint) or redaction.secrets_in_shell(entrypoint):
        return False
    try:
        inventory.parse([{"id": "a", "model": "a", "host_port": 1, "entrypoint": entrypoint}])
    except InventoryError:
        return False
    return True
