# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the weights of models in containers lie, inside the container and on the host. Pure; runs on the controller.

The cache of Hugging Face is what huggingface_hub takes for it (constants.py, in 0.36.0 as in 2.4.0): HF_HUB_CACHE, else
HUGGINGFACE_HUB_CACHE, else C(hub) in HF_HOME, else in C(huggingface) in XDG_CACHE_HOME or C(~/.cache); tildes and
variables are expanded. TRANSFORMERS_CACHE moves no weights: vLLM asks huggingface_hub for them, and transformers before
5 kept only configurations and tokenizers there. C(args.download_dir) is the C(cache_dir) of the weights alone
(model_executor/model_loader/weight_utils.py of vLLM 0.32.0). ModelScope's is MODELSCOPE_CACHE, else
C(~/.cache/modelscope) (modelscope_hub 0.5.1); what is in there differs with its version (C(_download.py) knows both
the newer and the older ways, which write a dot as three underscores).
"""

from __future__ import annotations

import posixpath
import re
import typing

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import options
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.inventory import parse
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.texts import map_text

# The folders of vllm_cache_dir, and where containers have them.
CACHES = {
    "huggingface": "/root/.cache/huggingface",
    "vllm": "/root/.cache/vllm",
    "triton": "/root/.triton/cache",
    "flashinfer": "/root/.cache/flashinfer",
}
# The same, of those models alone that come from ModelScope.
MODELSCOPE = {"modelscope": "/root/.cache/modelscope"}
# Who runs the servers in vLLM's images.
_HOME = "/root"
# No second slash, no colon, nothing that begins with a dot: "." and ".." must never become a folder's name.
_REPOSITORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*/[A-Za-z0-9_][A-Za-z0-9._-]*\Z")
# Docker's own rule for names of volumes.
_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+\Z")
_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})")

Values = typing.Mapping[str, typing.Any]


class Volume(typing.NamedTuple):
    """One volume of a container, its folders without a slash at their ends."""

    target: str
    folder: str = ""  # of the host; empty for a volume of Docker's
    name: str = ""  # of a volume of Docker's; both are empty for one that has no name
    read_only: bool = False


class Place(typing.NamedTuple):
    """A folder as the container and as the host see it."""

    inside: str
    outside: str = ""  # empty where the host has no folder of its own for it
    volume: str = ""  # the volume of Docker's that has it
    read_only: bool = False

    @property
    def kept(self) -> bool:
        """Whether what is written there outlives the container."""
        return bool(self.outside or self.volume)


class Weights(typing.NamedTuple):
    """Where a model's weights come from and where they are put."""

    hub: str  # huggingface or modelscope
    repo: str
    revision: str
    load_format: str
    cache: Place  # of all repositories
    folder: Place  # of this one; for ModelScope the cache
    split: bool  # whether configuration and tokenizer have another cache (args.download_dir)

    @property
    def marker(self) -> str:
        """The name of the file in the folder that says that all is fetched."""
        return ".homegpt-" + re.sub(r"[^A-Za-z0-9._-]", "-", f"{self.revision}.{self.load_format}")


def uses_modelscope(env: Values) -> bool:
    """Whether vLLM asks ModelScope. As in vllm/envs.py since 0.29.0; before, only C(true) counted, in any case."""
    return str(env.get("VLLM_USE_MODELSCOPE", "")).strip().lower() in ("1", "true")


def volume_of(text: str, stack_dir: str, home: str = "~") -> Volume:
    """What C(SOURCE:TARGET[:MODE]) or C(TARGET) of a compose file means. C(home): of who runs docker compose."""
    source, target, mode = ([*text.split(":", 2), "", ""])[:3]
    if not target:
        source, target = "", source
    target = _clean(target)
    read_only = "ro" in mode.split(",")
    if source == "~" or source.startswith("~/"):
        return Volume(target, _clean(home + source[1:]), "", read_only)
    if source.startswith(("/", ".")):
        # Relative ones begin at the folder of the compose file.
        return Volume(target, _clean(posixpath.join(stack_dir, source)), "", read_only)
    return Volume(target, "", source, read_only)


def volume_problem(text: str) -> str:
    """Why compose takes no such volume, and the remedy; empty where it does, as far as words can tell."""
    source, colon, rest = text.partition(":")
    target = rest.partition(":")[0] if colon else source
    if not target.startswith("/"):
        return f"must end in a full path of the container (SOURCE:/TARGET), is {text or 'empty'}"
    if not colon or source == "~" or source.startswith(("/", "./", "../", "~/")) or source in (".", ".."):
        return ""
    if _VOLUME_NAME.match(source):
        return ""
    return (
        f"{source or 'nothing'} is neither a folder of the host nor a volume's name: write a full path, or one that "
        "begins with ~/ or ./ (variables of a shell or of compose have no value here)"
    )


def cache_volumes(cache_dir: str, volumes: typing.Iterable[str], modelscope: bool = False) -> dict[str, str]:
    """The folders of the host that are the caches, and where containers have them.

    Left out are those above which the user has put a volume of his own, at whatever level: else they would hide it.
    """
    own = [volume_of(text, "/").target for text in volumes]
    return {
        posixpath.join(cache_dir, name): target
        for name, target in {**CACHES, **(MODELSCOPE if modelscope else {})}.items()
        if not any(within(target, above) for above in own)
    }


def all_volumes(
    cache_dir: str, volumes: typing.Sequence[str], stack_dir: str, home: str = "~", modelscope: bool = False
) -> list[Volume]:
    """Every volume of a model's container that may have weights."""
    caches = cache_volumes(cache_dir, volumes, modelscope)
    return [Volume(target, _clean(source)) for source, target in caches.items()] + [
        volume_of(text, stack_dir, home) for text in volumes
    ]


def locate(inside: str, volumes: typing.Iterable[Volume]) -> Place:
    """Where a folder of the container is on the host: the volume with the longest target has it."""
    inside = _clean(inside)
    # Of two with the same target the last counts; Docker refuses them anyway.
    found = max(
        (volume for volume in reversed(list(volumes)) if within(inside, volume.target)),
        key=lambda volume: len(volume.target),
        default=None,
    )
    if found is None:
        return Place(inside)
    outside = _clean(found.folder + "/" + inside[len(found.target.rstrip("/")) :]) if found.folder else ""
    return Place(inside, outside, found.name, found.read_only)


def hub_cache(env: Values) -> str:
    """The folder in the container that has the repositories of the Hugging Face Hub.

    Raises ValueError, beginning with the variable's name, where it begins at a folder that nobody knows.
    """
    name = next((name for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE") if name in env), "")
    if name:
        return _full(name, str(env[name]), env)
    if "HF_HOME" in env:
        return posixpath.join(_full("HF_HOME", str(env["HF_HOME"]), env), "hub")
    if "XDG_CACHE_HOME" in env:
        return posixpath.join(_full("XDG_CACHE_HOME", str(env["XDG_CACHE_HOME"]), env), "huggingface/hub")
    return posixpath.join(_home(env), ".cache/huggingface/hub")


def weights_of(model: str, args: Values, env: Values, volumes: typing.Sequence[Volume]) -> Weights | None:
    """Where a model's weights are; None for what is in no cache: a path, a URL, a single GGUF file.

    C(env): of its container, all of it. Raises ValueError for an environment that leaves it open.
    """
    if not _REPOSITORY.match(model):
        return None
    revision = str(args.get("revision") or "main")
    load_format = str(args.get("load_format") or "auto")
    download_dir = _full("args.download_dir", str(args["download_dir"]), {}) if args.get("download_dir") else ""
    if uses_modelscope(env):
        given = env.get("MODELSCOPE_CACHE")
        default = posixpath.join(_home(env), ".cache/modelscope")
        cache = locate(download_dir or (_full("MODELSCOPE_CACHE", str(given), env) if given else default), volumes)
        return Weights("modelscope", model, revision, load_format, cache, cache, False)
    inside = download_dir or hub_cache(env)
    folder = posixpath.join(inside, "models--" + model.replace("/", "--"))
    return Weights(
        "huggingface",
        model,
        revision,
        load_format,
        locate(inside, volumes),
        locate(folder, volumes),
        bool(download_dir),
    )


def plain(weights: Weights, volumes: typing.Sequence[Volume]) -> dict[str, str]:
    """The same as plain data, for tasks; C(locks) is where huggingface_hub keeps those of the repository."""
    # What may be removed: a volume of a repository's own may be anything on the host.
    name = posixpath.basename(weights.folder.inside)
    known = weights.hub == "huggingface" and weights.folder.outside.endswith("/" + name)
    removable = known and not weights.folder.read_only
    locks = posixpath.join(weights.cache.inside, ".locks", name)
    if weights.hub != "huggingface" or weights.split:
        fetch = "leave"
    elif weights.folder.read_only or not weights.folder.kept:
        fetch = "look"
    else:
        fetch = "fetch" if removable else "ask"
    return {
        "hub": weights.hub,
        "repo": weights.repo,
        "revision": weights.revision,
        "load_format": weights.load_format,
        "cache": weights.cache.inside,
        "folder": weights.folder.outside if removable else "",
        "locks": locate(locks, volumes).outside if removable else "",
        "marker": weights.marker,
        "fetch": fetch,
    }


def host_folders(cache_dir: str, volumes: typing.Sequence[str], stack_dir: str, modelscope: bool = False) -> list[str]:
    """The folders of the host that containers are given, each once; one in the user's home begins with C(~)."""
    found = [volume.folder for volume in all_volumes(cache_dir, volumes, stack_dir, modelscope=modelscope)]
    return list(dict.fromkeys(filter(None, found)))


def command_folders(model: str, args: Values, env: Values, words: typing.Iterable[str]) -> list[str]:
    """The paths of the host that a server without a container needs, as far as its command and environment tell."""
    words = list(words)
    # Also of --download-dir=/srv/weights. The command gets nothing of args.
    given = [word.partition("=")[2] if word.startswith("-") else word for word in words]
    found = [path for path in (model, *given) if path.startswith("/")]
    said = options.of_command(words)
    try:
        weights = weights_of(model, args if said is None else said, env, ())
    except ValueError:
        weights = None  # relative to a folder that nobody knows
    return [*found, weights.cache.inside] if weights else found


def of_models(
    models: typing.Iterable[Values],
    env: Values | None = None,
    cache_dir: str = "/root/.cache",
    volumes: typing.Sequence[str] = (),
    stack_dir: str = "/opt/homegpt",
    home: str = "~",
    disabled: bool = False,
) -> dict[str, dict[str, str]]:
    """Where the weights of models in containers are, by id. Raises ValueError for an environment that leaves it open.

    C(env): of every model's server; a model's own wins. C(disabled): whether disabled models count too.
    """
    found = {}
    for model in models:
        if model["start_command"] or (model["startup_mode"] == "disabled" and not disabled):
            continue
        own = {**(env or {}), **model["env"]}
        given = all_volumes(cache_dir, volumes, stack_dir, home, uses_modelscope(own))
        try:
            weights = weights_of(model["model"], model["args"], own, given)
        except ValueError as error:
            if model["startup_mode"] == "disabled":
                continue  # it is left alone, mistaken or not
            raise ValueError(f"{model['id']}: {error}") from error
        if weights is not None:
            found[model["id"]] = plain(weights, given)
    return found


def folders_on_host(
    models: typing.Iterable[Values],
    env: Values | None = None,
    cache_dir: str = "/root/.cache",
    volumes: typing.Sequence[str] = (),
    stack_dir: str = "/opt/homegpt",
    home: str = "~",
) -> dict[str, dict[str, dict[str, typing.Any]]]:
    """What the engine is told of where weights are: the C(models) of its state file, without those of no known folder.

    C(folders) are of the host: of the first that has weights they are read. The engine finds by itself what a
    C(start_command) loads from a path.
    """
    found = {}
    for model in models:
        command = model["start_command"]
        if model["startup_mode"] == "disabled":
            continue
        own = {**({} if command else env or {}), **model["env"]}
        given = [] if command else all_volumes(cache_dir, volumes, stack_dir, home, uses_modelscope(own))
        said = options.of_command(command) if command else None
        args = model["args"] if said is None else said
        try:
            weights = weights_of(model["model"], args, own, given)
        except ValueError:
            continue  # of a container it is told elsewhere
        if weights is not None:
            folders = _folders(weights, bool(command))
        elif model["model"].startswith("/") and not command:
            folders = [locate(model["model"], given).outside]
        else:
            continue
        if any(folders):
            revision, load_format = str(args.get("revision") or "main"), str(args.get("load_format") or "auto")
            found[model["id"]] = {"folders": folders, "revision": revision, "load_format": load_format}
    return {"models": found}


def _folders(weights: Weights, on_host: bool) -> list[str]:
    """The folders of the host that a repository may be in."""
    if weights.hub == "huggingface":
        return [weights.folder.inside if on_host else weights.folder.outside]
    cache = weights.cache.inside if on_host else weights.cache.outside
    owner, name = weights.repo.split("/")
    older = dict.fromkeys((f"{owner}/{name.replace('.', '___')}", weights.repo))
    names = [f"{above}/{one}" for above in ("hub/models", "models", "hub") for one in older]
    return [posixpath.join(cache, one) for one in (f"models/{owner}--{name}", *names)] if cache else []


def container_volumes(
    volumes: typing.Sequence[str], cache_dir: str, stack_dir: str, home: str = "~", modelscope: bool = False
) -> dict[str, typing.Any]:
    """The volumes of the models' containers: C(volumes), those of the inventory with the home written out, and more.

    C(caches): folders of the host and where containers have them. C(named): volumes of Docker's own.
    """
    return {
        "caches": cache_volumes(cache_dir, volumes, modelscope),
        "volumes": [home + text[1:] if text.startswith(("~/", "~:")) else text for text in volumes],
        "named": list(dict.fromkeys(name for text in volumes if (name := volume_of(text, stack_dir, home).name))),
    }


def folders_of_models(
    models: typing.Any,
    env: Values | None = None,
    cache_dir: str = "/root/.cache",
    volumes: typing.Sequence[str] = (),
    stack_dir: str = "/opt/homegpt",
) -> list[str]:
    """The folders of the host whose disks and shares have to be there before the models are started, each once.

    What containers are given of the host; of a C(start_command), what that names and where the weights are.
    """
    enabled = parse(models).enabled
    found = []
    contained = [model for model in enabled if not model.start_command]
    if contained:
        modelscope = any(uses_modelscope({**(env or {}), **model.env}) for model in contained)
        found += host_folders(cache_dir, volumes, stack_dir, modelscope)
    for model in enabled:
        if model.start_command:
            found += command_folders(model.model, model.args, model.env, model.start_command)
    return list(dict.fromkeys(found))


def is_named(repo: str, models: typing.Any) -> bool:
    """Whether models name a repository anywhere: as what they serve, in an argument or in a command."""
    name = re.compile(r"(?<![\w./-])%s(?![\w./-])" % re.escape(repo))
    found: list[str] = []
    map_text(models, lambda text: found.append(text) or text)  # type: ignore[func-returns-value]
    return any(map(name.search, found))


def within(path: str, folder: str) -> bool:
    """Whether the path is the folder or below it."""
    folder = folder.rstrip("/")
    return path == (folder or "/") or path.startswith(folder + "/")


def _full(name: str, text: str, env: Values) -> str:
    """The value of a variable as a full path."""
    home = _home(env)
    known = {"HOME": home, **{key: str(value) for key, value in env.items()}}
    path = home + text[1:] if text == "~" or text.startswith("~/") else text
    path = _VARIABLE.sub(lambda match: known.get(match[1].strip("{}"), match[0]), path)
    if not path.startswith("/") or "$" in path:
        raise ValueError(f"{name} must be a full path in the container, is {text or 'empty: leave it out'}")
    return _clean(path)


def _home(env: Values) -> str:
    return str(env.get("HOME") or _HOME)


def _clean(path: str) -> str:
    """The path without what means nothing. normpath keeps two slashes at the beginning."""
    path = posixpath.normpath(path) if path else path
    return path[1:] if path.startswith("//") else path
