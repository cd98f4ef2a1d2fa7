# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One model of llama-swap's configuration: from its command and settings to an entry of the inventory. Pure."""

from __future__ import annotations

import posixpath
import re
import typing

from ansible_collections.homegpt.vllm.plugins.module_utils.switching.texts import map_text
from ansible_collections.homegpt.vllm.plugins.plugin_utils import (
    convert,
    convert_builder,
    convert_container,
    convert_gpus,
    convert_sleep,
    launch,
    serve_line,
)

# The last two are what a llama-swap in a container calls it: the address of Docker's own bridge, and the name for that.
_THIS_HOST = ("127.0.0.1", "localhost", "[::1]", "172.17.0.1", "host.docker.internal")
# What becomes of settings that have no counterpart, of a model or of all.
UNTAKEN = {
    "apiKeys": "not converted: the gateway's are model_gateway_api_keys. vLLM's own is a model's args.api_key",
    "groups": "not converted: models that share a GPU conflict, others can be active together; check their gpus",
    "matrix": "not converted: models that share a GPU conflict, others can be active together; check their gpus",
    "routing": "not converted: models that share a GPU conflict, others can be active together; check their gpus",
    "profiles": "not converted: models that share a GPU conflict, others can be active together; check their gpus",
    "peers": "not converted: declare the models of another host in that host's variables",
    "globalTTL": "not converted: with the model manager, set idle_stop_seconds in model_manager_settings",
    "ttl": "not converted: with the model manager, set idle_stop_seconds of the model in model_manager_settings.models",
    "unloadTimeout": "not converted: vllm_switching.drain_timeout_seconds is how long requests may continue",
    "filters": "not converted: requests are not modified; change what the clients send, or vLLM's args",
    "concurrencyLimit": "not converted: args.max_num_seqs is vLLM's own limit",
    "checkEndpoint": "not converted: vLLM's /health is used",
    "timeouts": "not converted: the gateway's are in model_gateway_settings",
}
_MACRO = re.compile(r"\$\{(?!PID\})([A-Za-z0-9_.-]+)\}")
_SWAP_MODEL_KEYS = frozenset(
    [
        "cmd",
        "cmdStop",
        "name",
        "env",
        "proxy",
        "aliases",
        "macros",
        "useModelName",
        "sleepEndpoints",
        "wakeEndpoints",
        "sleepMode",
    ]
)


class SwappedModel:
    """One model of a llama-swap configuration."""

    def __init__(
        self,
        config: typing.Mapping[str, typing.Any],
        key: str,
        entry: typing.Mapping[str, typing.Any],
        place: str,
        port: int,
        servers: str,
        builder: convert_builder.Builder,
    ) -> None:
        self.config, self.key, self.entry, self.place, self.port = config, key, entry, place, port
        self.builder, self.notes = builder, builder.notes
        self.processes = servers == "processes"
        self.macros: dict[str, str] = {}
        for where, given in (("macros", config.get("macros")), (place + ": macros", entry.get("macros"))):
            if given is not None and not isinstance(given, dict):
                raise convert.ConvertError(["%s: must be a dictionary" % where])
            for macro, value in (given or {}).items():
                # Each may use those before it.
                self.macros[str(macro)] = convert.scalar(value)

    def model(self) -> dict[str, typing.Any] | None:
        """Its entry of C(vllm_models); None where there can be none."""
        entry, place, notes = self.entry, self.place, self.notes
        for key in sorted(map(str, entry)):
            if key in UNTAKEN and not (key == "checkEndpoint" and entry[key] == "/health"):
                notes.add("%s.%s" % (place, key), UNTAKEN[key])
            elif key not in _SWAP_MODEL_KEYS and key not in UNTAKEN:
                notes.add("%s.%s" % (place, key), "not converted: there is no equivalent")
        words = convert.split_words(_uncommented(self.expand(entry["cmd"], "cmd")), place + ".cmd")
        env = convert.environment(self.expand(entry.get("env") or [], "env"), place + ".env", notes)
        server = self._server(words, env)
        sleeps, wakes = (
            convert_sleep.calls(entry, self.config, kind, place, self.expand) for kind in ("sleep", "wake")
        )
        if str(entry.get("sleepMode", "enable")).lower() in ("disable", "disabled", "false"):
            notes.add(place + ".sleepMode", "disables its sleep: its endpoints are not converted")
            sleeps, wakes = [], []
        if bool(sleeps) != bool(wakes):
            raise convert.ConvertError(
                ["%s: has one of sleepEndpoints and wakeEndpoints: give both or neither" % place]
            )
        if server is None and not sleeps:
            notes.add(
                place, "left out: its cmd is not `vllm serve`, and without sleepEndpoints nothing can put it to sleep"
            )
            return None
        model: dict[str, typing.Any] = {"id": self.builder.new_id(self.key, place), "model": "", "host_port": self.port}
        if entry.get("name"):
            model["name"] = str(entry["name"])
        aliases = [self.key] if self.key != model["id"] else []
        for alias in convert.as_list(entry.get("aliases")):
            aliases.append(str(alias.get("id")) if isinstance(alias, dict) else str(alias))
        if entry.get("useModelName"):
            aliases.append(str(self.expand(entry["useModelName"], "useModelName")))
        model["aliases"] = aliases
        notes.add(place, "its memory is unknown: set gpu_memory_gb, and weights_gb where it sleeps at level 1")
        if server is None or self.processes:
            self._process(model, words, env, server)
        else:
            self.builder.serve(model, server, place + ".cmd")
            if not model["model"]:
                self.builder.unread(model, place, convert.UNREAD, "the model that it loads is not found in its cmd")
            if entry.get("cmdStop"):
                notes.add(place + ".cmdStop", "not converted: docker compose stops its container")
            if server.image == "":
                notes.add(place + ".cmd", "was a process of llama-swap and becomes a container: stop llama-swap first")
            if model["model"].startswith(("/", "./", "~")) and not server.image:
                notes.add(
                    place + ".cmd",
                    "loads from a directory that its container can't see: add it to vllm_volumes as "
                    "SOURCE:TARGET:ro and use the path inside the container",
                )
        convert_sleep.settle(model, sleeps, wakes, server is None, place, notes)
        self._proxy()
        return model

    def _server(self, words: list[str], env: dict[str, str]) -> convert.Server | None:
        """The server of its command; None where it is not vLLM. What is set before a command joins C(env)."""
        place, notes = self.place + ".cmd", self.notes
        main = launch.main_command(words, env, lambda name: convert.UNKNOWN % name)
        env.update(main.env)
        called = "vllm" in " ".join(words).lower()
        if main.problem:
            start = launch.Launch([], {}, [], main.before, main.problem)
            return convert.Server([], env, start=start) if called else None
        index = 1 + (main.words[1:2] == ["container"])
        program = posixpath.basename(main.words[0]) if main.words else ""
        if program in ("docker", "podman", "nerdctl") and main.words[index : index + 1] == ["run"]:
            return self._docker(main.words[index + 1 :], env, main.before)
        found = launch.serve_words(main.words)
        if found is None:
            start = launch.Launch([], {}, [], main.before, " ".join(main.words))
            return convert.Server([], env, start=start) if called else None
        prefix, _program, behind = found
        if prefix:
            notes.add(place, "a container needs no wrapper: %s" % convert.quoted(" ".join(prefix)))
        return convert.Server(
            behind, env, start=launch.Launch(behind, {}, [], main.before, plain=None if main.before else main.words)
        )

    def _docker(self, words: list[str], env: dict[str, str], before: list[str]) -> convert.Server | None:
        """The server of `docker run`."""
        place, notes = self.place + ".cmd", self.notes
        mistakes: list[str] = []
        service, others = convert_container.docker_run(list(words))
        image = service["image"]
        for published in service.pop("publish", []):
            if str(self.port) not in published.split(":")[:-1]:
                notes.add(
                    place + ": --publish", "not converted: its port on the host is the one of its proxy, or the next"
                )
        told = convert.Notes()
        self.builder.notes = told
        try:
            server = convert_container.read(service, place, self.builder, mistakes)
        finally:
            self.builder.notes = notes
        vllm = "vllm" in image.lower() or launch.serve_words([*service.get("entrypoint", []), *service["command"]])
        if not vllm and "vllm" not in " ".join(service["command"]).lower():
            return None
        notes.join(told)
        for name in others:
            notes.add("%s: --%s" % (place, name), "not converted: the collection's containers have no such setting")
        start = server.start
        if start is not None:
            start = start._replace(before=[*before, *start.before])
        return server._replace(env={**server.env, **env}, start=start)

    def _unnamed(self) -> str:
        return (
            "%s.cmd: the model that it loads is not found: put it directly after `vllm serve`, or pass the values of "
            "its variables as convert_variables" % self.place
        )

    def expand(self, value: typing.Any, field: str) -> typing.Any:
        """The value with macros and variables replaced, however deep; raises ConvertError for an unknown one."""
        builtin = {"PORT": str(self.port), "MODEL_ID": self.key, "PID": "${PID}"}

        def replace(match: re.Match[str]) -> str:
            macro = match.group(1)
            if macro.startswith("env."):
                return self.builder.variable(macro[4:])
            if macro in self.macros:
                return self.macros[macro]
            if macro in builtin:
                return builtin[macro]
            raise convert.ConvertError(
                [
                    "%s.%s: uses ${%s}, which no macro defines; there are: %s"
                    % (self.place, field, macro, ", ".join(sorted([*self.macros, "PORT", "MODEL_ID", "env.NAME"])))
                ]
            )

        def text(given: str) -> str:
            # Macros may hold macros, but no more deeply than there are any.
            for _dummy in range(len(self.macros) + 2):
                expanded = _MACRO.sub(replace, given)
                if expanded == given and not _MACRO.search(given):
                    return given
                given = expanded[:100000]
            raise convert.ConvertError(["%s.%s: its macros refer to each other in a circle" % (self.place, field)])

        return map_text(value, text)

    def _process(
        self, model: dict[str, typing.Any], words: list[str], env: dict[str, str], server: convert.Server | None
    ) -> None:
        """The server stays a process, begun by its command."""
        place, notes = self.place, self.notes
        if any(convert.UNKNOWN_NAME.search(word) for word in words):
            raise convert.ConvertError(
                [
                    "%s.cmd: give the values of its environment variables as convert_variables: %s"
                    % (place, ", ".join(convert.unknown(words)))
                ]
            )
        start = server.start if server else None
        # Options can be added to the server's own words only.
        open_end = start is None or bool(server and server.image) or start.plain is not None
        started = list(start.plain if start and start.plain is not None else words)
        if server is None:
            model["model"] = str(self.expand(self.entry.get("useModelName") or self.key, "useModelName"))
            notes.add(
                place,
                "its cmd is not `vllm serve`: it stays a process and needs a state_request that returns whether it "
                "sleeps; see docs/inventory.md, `Other servers than vLLM`",
            )
        else:
            line = serve_line.parse(server.words)
            if not line.model and not (start and start.problem):
                raise convert.ConvertError([self._unnamed()])
            model["model"] = line.model or convert.UNREAD + model["id"]
            if not open_end:
                model["startup_mode"] = "disabled"
                notes.add(
                    place,
                    "its server is behind a shell: add --enable-sleep-mode, --host 127.0.0.1 and --served-model-name "
                    "to it by hand. It is disabled until then",
                )
            elif server.image:
                notes.add(
                    place + ".cmd", "its container is still started by docker itself: it must end with that command"
                )
            else:
                started += [] if "enable_sleep_mode" in line.args else ["--enable-sleep-mode"]
                started += [] if line.host else ["--host", "127.0.0.1"]
                names = list(dict.fromkeys((model["id"], *model["aliases"], line.model)))
                if not line.names:
                    started += ["--served-model-name", *names]
                elif set(names) - set(line.names):
                    notes.add(place, "the server does not serve all of its names: add them to --served-model-name")
        model["gpus"] = convert_gpus.used(server or convert.Server([], env), {}, place, notes, processes=True)
        # A dollar and a brace would be a variable of the inventory.
        if any("${" in word for word in started):
            raise convert.ConvertError(["%s.cmd: contains a ${...} that is not a macro" % place])
        model["start_command"] = started
        stop = convert.split_words(self.expand(self.entry.get("cmdStop") or "", "cmdStop"), place + ".cmdStop")
        if any("${PID}" in word for word in stop):
            notes.add(place + ".cmdStop", "not converted: without a stop_command the process is ended by a signal")
        elif stop:
            model["stop_command"] = stop
        kept = {key: value for key, value in env.items() if not convert.UNKNOWN_NAME.search(value)}
        for key in sorted(set(env) - set(kept)):
            notes.add(
                "%s.env.%s" % (place, key), "not converted: its value is not in the file; set it in the model's env"
            )
        model["env"] = {**kept, **({"VLLM_SERVER_DEV_MODE": "1"} if server else {})}

    def _proxy(self) -> None:
        proxy = str(self.entry.get("proxy") or "")
        host = re.match(r"https?://(\[[^]]*\]|[^:/]*)", proxy)
        if proxy and (not host or host.group(1) not in _THIS_HOST):
            self.notes.add(self.place + ".proxy", "is another host: declare the model in that host's variables")


def _uncommented(command: str) -> str:
    """A command without its lines that are comments, and without the backslashes at the ends of its lines."""
    lines = [line for line in command.splitlines() if not line.lstrip().startswith("#")]
    return "\n".join(re.sub(r"\\\s*\Z", "", line) for line in lines)
