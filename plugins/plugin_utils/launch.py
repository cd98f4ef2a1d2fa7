# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a container or a process is started with: whether that is vLLM's server, and with which words. Pure."""

from __future__ import annotations

import posixpath
import re
import typing

from ansible_collections.homegpt.vllm.plugins.plugin_utils import shell

# Modules that `python -m` runs, and how many words of theirs follow.
_MODULES = {"vllm.entrypoints.openai.api_server": [], "vllm.entrypoints.cli.main": ["serve"]}
# What vLLM's own images run before the command.
_SERVE = ["vllm", "serve"]
_VLLM_IMAGE = re.compile(r"(?:\A|/)vllm-openai[^/]*\Z")
_OTHER_IMAGE = re.compile(
    r"llama[._-]?cpp|llama-swap|ollama|sglang|text-generation-inference|text-embeddings-inference|triton|lmdeploy|"
    r"tabbyapi|koboldcpp|localai|exllama|tensorrt|mlc|beellama|open-webui|litellm|infinity"
)
# A first word that is a program is no model.
_PROGRAM = re.compile(
    r"(?:python|pip|bash|sh|dash|ash|zsh|ray|sleep|tail|cat|echo|env|exec|nohup|numactl|taskset|tini|dumb-init|torchrun|"
    r"accelerate|uv|uvx|uvicorn|nvidia-smi|vllm|sglang|lmdeploy|ollama|llama|tritonserver|trtllm|mpirun|docker|podman|"
    r"sudo|nice|timeout|entrypoint|start|run)(?:[\d.]*|[_-].*)\Z|.*\.(?:sh|py|exe)\Z"
)
_PROGRAM_FOLDER = re.compile(r"/(?:[^/]+/)*s?bin/")
_PASSED_ON = re.compile(r"vllm serve\b[^\n]*\"\$(?:@|\{@\})\"")


class Launch(typing.NamedTuple):
    """How a server is started."""

    words: list[str]  # behind `vllm serve`; empty where they are not known
    env: dict[str, str]  # what is set in front of it
    entrypoint: list[str]  # what the container's entrypoint has to be; empty: the one of vLLM's own images
    before: list[str]  # what is run before it
    problem: str = ""  # why it is not sure that the words are all
    plain: list[str] | None = None  # the server's own command as words, where no shell is needed for it


class Main(typing.NamedTuple):
    """The command that is left when shells, C(env) and C(exec) are taken away."""

    words: list[str]
    env: dict[str, str]
    before: list[str]
    front: str = ""  # the text of a shell up to the command
    problem: str = ""
    scripts: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    shell: bool = False  # whether a shell runs it


def serve_words(words: typing.Sequence[str]) -> tuple[list[str], list[str], list[str]] | None:
    """What stands before vLLM's command, that command, and what behind it; None where it is not there."""
    for index, word in enumerate(words):
        behind = list(words[index + 1 :])
        if posixpath.basename(word) == "vllm" and behind[:1] == ["serve"]:
            return list(words[:index]), [word, "serve"], behind[1:]
        if word == "-m" and behind and behind[0] in _MODULES:
            more = _MODULES[behind[0]]
            if behind[1 : 1 + len(more)] == more:
                front = index
                # The interpreter stands before its own switches.
                while front and words[front - 1].startswith("-"):
                    front -= 1
                return list(words[: max(front - 1, 0)]), list(_SERVE), behind[1 + len(more) :]
    return None


def main_command(
    words: typing.Sequence[str], variables: typing.Mapping[str, str], missing: typing.Callable[[str], str]
) -> Main:
    """The command within shells, where those run no more than one command after the other.

    C(variables) are those of the server's environment; C(missing) gives what stands for another one.
    """
    env: dict[str, str] = {}
    before: list[str] = []
    front = ""
    rest = _stripped(words, env)
    for depth in range(4):
        found = shell.script(rest)
        if found is None:
            return Main(rest, env, before, front, shell=depth > 0)
        text, arguments = found
        known = {**variables, **env}
        last = None
        try:
            for command in shell.commands(text, known, arguments, missing):
                if last is not None:
                    before += _done(last, text[last.start : command.start], known, env)
                last = command
                # What is set for the rest of the text.
                if not command.words:
                    known.update(command.assigned)
                elif command.words[0] == "export":
                    known.update(_exported(command.words[1:], known))
        except shell.Unread as error:
            return Main([], env, before, front, str(error), (text,), tuple(arguments))
        if last is None:
            return Main([], env, before, front, "an empty text", (text,), tuple(arguments))
        env.update(last.assigned)
        front += text[: last.start]
        rest = _stripped(last.words, env)
    return Main([], env, before, front, "shells within shells")


def _exported(words: typing.Iterable[str], known: typing.Mapping[str, str]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    return {name: value if equals else known.get(name, "") for name, equals, value in pairs}


def _done(command: shell.Command, text: str, known: typing.Mapping[str, str], env: dict[str, str]) -> list[str]:
    """A command before the last one: a variable for it, or something that is run."""
    if not command.words:
        return []
    if command.words[0] == "export" and all("=" in word or word in known for word in command.words[1:]):
        env.update(_exported(command.words[1:], known))
        return []
    if command.words[0] == "set" and all(re.match(r"[-+][a-z]+\Z|pipefail\Z", word) for word in command.words[1:]):
        return []
    return [re.sub(r"\s*(?:;|&&|\n)?\s*\Z", "", text)]


def _stripped(words: typing.Sequence[str], env: dict[str, str]) -> list[str]:
    """The words without C(env), C(exec) and C(NAME=value) before them, which join C(env)."""
    rest = list(words)
    while rest and (posixpath.basename(rest[0]) in ("env", "exec") or re.match(r"[A-Za-z_]\w*=", rest[0])):
        name, equals, value = rest.pop(0).partition("=")
        if equals:
            env[name] = value
    return rest


def read(
    entrypoint: typing.Sequence[str] | None,
    command: typing.Sequence[str],
    image: str,
    variables: typing.Mapping[str, str],
    missing: typing.Callable[[str], str],
) -> Launch:
    """What a container is started with: its entrypoint, where it has one of its own, and its command."""
    given = [*(entrypoint or ()), *command]
    main = main_command(given, variables, missing)
    own = bool(_VLLM_IMAGE.search(image.partition("@")[0].rpartition(":")[0] or image))
    if main.problem:
        if any(_PASSED_ON.search(text) for text in main.scripts) and all(
            text.count("vllm serve") == len(_PASSED_ON.findall(text)) for text in main.scripts
        ):
            count = len(given) - len(main.arguments)
            return Launch(list(main.arguments[1:]), main.env, given[: count + 1], main.before, main.problem)
        return Launch([], main.env, [], main.before, main.problem)
    found = serve_words(main.words)
    if found is not None:
        prefix, program, words = found
        before = [*main.before, *([" ".join(prefix)] if prefix else [])]
        started: list[str] = [] if own and not before else [*prefix, *program]
        if main.before:
            # The shell does what it did, and then takes the words from the command.
            started = ["bash", "-c", main.front + "exec " + " ".join([*prefix, *program]) + ' "$@"', "--"]
        return Launch(words, main.env, started, before, plain=None if main.before else main.words)
    return _unnamed(entrypoint, list(command), image, main)


def _unnamed(entrypoint: typing.Sequence[str] | None, command: list[str], image: str, main: Main) -> Launch:
    """A command that does not name vLLM: its image does, or nobody."""
    name = re.sub(r"[:@][^/]*\Z", "", image)
    if _OTHER_IMAGE.search(name.lower()) and "vllm" not in name.lower():
        return Launch([], main.env, [], main.before, "the image of another server: %s" % image)
    if main.shell:
        return Launch([], main.env, [], main.before, " ".join(main.words))
    if entrypoint:
        words = [] if not _taken_for_words(command) else command
        return Launch(words, main.env, list(entrypoint), main.before, " ".join(entrypoint))
    words = main.words
    if words[:1] == ["serve"]:
        return Launch(words[1:], main.env, list(_SERVE), main.before)
    if words and not _taken_for_words(words):
        return Launch([], main.env, [], main.before, " ".join(words))
    return Launch(words, main.env, [], main.before)


def _taken_for_words(words: typing.Sequence[str]) -> bool:
    """Whether words can be those behind `vllm serve`: an option or a model comes first."""
    first = words[0] if words else ""
    if not first or first.startswith("-"):
        return bool(first)
    program = _PROGRAM.match(posixpath.basename(first)) and not re.match(r"[\w.-]+/[\w.-]+\Z", first)
    return not program and not _PROGRAM_FOLDER.match(first) and not re.search(r"\s", first)
