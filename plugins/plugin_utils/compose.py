# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From models of the normalised inventory to what compose files say about them. Runs on the controller.

Secrets stay out of compose files: there a reference stands in their place, and the value in the project's C(.env).
"""

from __future__ import annotations

import json
import re
import typing

from ansible_collections.homegpt.vllm.plugins.module_utils.switching import checks
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.gpus import Gpu
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.redaction import is_secret_name
from ansible_collections.homegpt.vllm.plugins.module_utils.switching.schema import API_SERVER
from ansible_collections.homegpt.vllm.plugins.plugin_utils.weights import uses_modelscope

# The switches of `vllm serve` that have no --no-... form, from vLLM 0.32.0's parser (make_arg_parser of
# vllm/entrypoints/launchers/cli_args.py): leaving them out is all that `false` can mean.
WITHOUT_NO_FORM = frozenset(
    (
        "aggregate_engine_logging",
        "data_parallel_multi_port_external_lb",
        "disable_log_stats",
        "grpc",
        "headless",
    )
)
# From the same parser: the options whose list is one JSON word, and the one that is given once for each item. Every
# other list is `--option item item`.
JSON_LISTS = frozenset(("allowed_headers", "allowed_methods", "allowed_origins"))
REPEATED = frozenset(("middleware",))

# The GPUs a container was given are numbered from 0 inside it; without that it sees the host's numbers.
RENUMBERED_ACCESS = ("nvidia", "cdi")
GPU_ACCESS = (*RENUMBERED_ACCESS, "amd", "none")
# An image that starts one of these wants the whole command.
_SHELLS = ("bash", "sh", "dash", "python", "python3")
# Of a value between double quotes in .env.
_ESCAPES = {"\\": "\\\\", '"': '\\"', "$": "\\$", "\n": "\\n", "\r": "\\r"}


class Word(typing.NamedTuple):
    """One word of a command line, or one environment variable's value: C(text) is what is written in front of it."""

    text: str
    value: str = ""
    secret: str = ""  # the value's name in .env, where it is a secret

    @property
    def plain(self) -> str:
        """The word itself."""
        return self.text + self.value

    def in_compose(self, inline: bool) -> str:
        """The word for a compose file; C(inline) puts secrets in instead of references to them."""
        value = "${%s}" % self.secret if self.secret and not inline else escape(self.value)
        return escape(self.text) + value


def escape(text: str) -> str:
    """The text with every dollar doubled, so that compose takes it for itself and not for a variable."""
    return text.replace("$", "$$")


def serve_words(model: typing.Mapping[str, typing.Any]) -> list[Word]:
    """What `vllm serve` is given for a model. Raises ValueError for what its command line can't take."""
    # A model's own arguments win.
    args = dict({"enable_sleep_mode": True, "tensor_parallel_size": len(model["gpus"])}, **model["args"])
    names = list(dict.fromkeys((model["id"], *model["aliases"], model["model"])))
    words = [Word(model["model"]), Word("--served-model-name"), *map(Word, names), Word("--port=%d" % model["port"])]
    taken: set[str] = set()
    for key, value in args.items():
        for word in _argument(model, key, value):
            secret = word.secret
            # `a.key` and `a__key` would be called alike, or the first of `api_key` and `api_key_1`.
            while secret and secret in taken:
                secret += "_"
            taken.add(secret)
            words.append(word._replace(secret=secret))
    return words


def _argument(model: typing.Mapping[str, typing.Any], key: str, value: typing.Any) -> typing.Iterator[Word]:
    """The words of one argument. What stands behind the first dot of a key names a part of a dictionary."""
    name, dot, part = key.partition(".")
    flag = "--" + name.replace("_", "-") + dot + part
    secret = _secret_name(model, key.upper().replace(".", "__").replace("-", "_")) if _is_secret(key, value) else ""
    if value is None:
        return
    if isinstance(value, bool) and not dot:
        if value:
            yield Word(flag)
        elif name not in WITHOUT_NO_FORM:
            yield Word("--no-" + flag[2:])
    elif isinstance(value, (list, tuple)) and not dot and name not in JSON_LISTS:
        if name in REPEATED:
            for number, item in enumerate(value, 1):
                yield Word(flag + "=", _text(item), secret and "%s_%d" % (secret, number))
        elif value:
            yield Word(flag)
            for number, item in enumerate(value, 1):
                text = _text(item)
                if re.match(r"-(?!\d+\Z)", text):
                    raise ValueError(
                        "%s: args.%s[%d] begins with a dash, which vLLM parses as another option: correct or remove it"
                        % (model["id"], key, number - 1)
                    )
                yield Word("", text, secret and "%s_%d" % (secret, number))
    else:
        yield Word(flag + "=", _text(value), secret)


def _text(value: typing.Any) -> str:
    """A value as one word: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def environment_words(model: typing.Mapping[str, typing.Any], shared: typing.Any = None) -> dict[str, Word]:
    """The environment that the inventory gives a model's server, by name; the model's own wins over the shared one."""
    taken = {word.secret for word in serve_words(model)} - {""}
    words = {}
    for name, value in dict(_environment(shared, "vllm_env"), **model["env"]).items():
        key = name
        while _secret_name(model, key) in taken:
            key = "ENV_" + key
        words[name] = Word("", value, _secret_name(model, key) if _is_secret(name, value) else "")
        taken.add(words[name].secret)
    return words


def plain_environment_words(environment: typing.Any, prefix: str) -> dict[str, Word]:
    """The same for a service that is no model, whose secrets are called by this prefix and their own name.

    Its role's variable is called by the prefix too: C(open_webui_env) is that of C(OPEN_WEBUI_).
    """
    return {
        name: Word("", value, prefix + name if _is_secret(name, value) else "")
        for name, value in _environment(environment, prefix.lower() + "env").items()
    }


def plain_environment(env: typing.Any, prefix: str, inline: bool = False) -> dict[str, str]:
    """The texts of that environment for a compose file, by the variables' names."""
    return {name: word.in_compose(inline) for name, word in plain_environment_words(env, prefix).items()}


def environment_mistakes(given: typing.Any, variable: str) -> typing.Iterator[str]:
    """What no environment can hold, with the remedy and without values. C(variable): the one that has it."""
    if given and not isinstance(given, dict):
        yield "%s must be a dictionary: write it as {NAME: VALUE}" % variable
        return
    for name, value in (given or {}).items():
        if not re.match(r"[A-Za-z_][A-Za-z0-9_]*\Z", str(name)):
            yield (
                "%s.%s is not a valid name of an environment variable: use letters, digits and underscores, and no "
                "digit first" % (variable, name)
            )
        elif not isinstance(value, (str, int, float)):
            # Of a date, its words have the value behind them.
            kind = checks.describe(value).partition(" (")[0]
            yield "%s.%s must be text or a number, is %s: put it in quotes, or remove it" % (variable, name, kind)


def shared_mistakes(env: typing.Any, variable: str = "vllm_env") -> typing.Iterator[str]:
    """What is wrong with the environment of every model's server, in the same way."""
    yield from environment_mistakes(env, variable)
    if isinstance(env, dict) and "VLLM_API_KEY" in env:
        yield "%s must not contain VLLM_API_KEY: set each model's own key in its env" % variable


def _environment(given: typing.Any, variable: str) -> dict[str, str]:
    """The variables of an unchecked environment. Raises ValueError for what no environment can hold."""
    wrong = list(environment_mistakes(given, variable))
    if wrong:
        raise ValueError("; ".join(wrong))
    return {str(name): checks.scalar_text(value) for name, value in (given or {}).items()}


def service(
    model: typing.Mapping[str, typing.Any], gpu_access: str, image: str, env: typing.Any = None, inline: bool = False
) -> dict[str, typing.Any]:
    """What a model's service in a compose file says that follows from the inventory, dollars escaped.

    C(image) and C(env) are those of every model; a model's own win. C(inline) puts secrets in, for a file that is never
    written. C(entrypoint) of the result is empty for the image's own. Raises ValueError for what the preflight tells.
    """
    if gpu_access not in GPU_ACCESS:
        raise ValueError("vllm_gpu_access must be one of %s, is %s" % (", ".join(GPU_ACCESS), gpu_access))
    wrong = list(shared_mistakes(env))
    if wrong:
        raise ValueError("; ".join(wrong))
    variables = {
        **{name: Word("", ",".join(map(str, gpus))) for name, gpus in _visible(model["gpus"], gpu_access).items()},
        # What puts a model to sleep answers in this mode only.
        "VLLM_SERVER_DEV_MODE": Word("", "1"),
        "VLLM_HOST_IP": Word("", "127.0.0.1"),
        "VLLM_CONFIGURE_LOGGING": Word("", "1"),
        "VLLM_LOGGING_CONFIG_PATH": Word("", "/logs/logging.json"),
        "HF_TOKEN_PATH": Word("", "/run/secrets/hf_token"),
    }
    variables.update(environment_words(model, env))
    return {
        "image": escape(model["image"] or image),
        "entrypoint": list(map(escape, model["entrypoint"])),
        "command": [word.in_compose(inline) for word in serve_words(model)],
        "environment": {name: word.in_compose(inline) for name, word in variables.items()},
        "modelscope": uses_modelscope({**_environment(env, "vllm_env"), **model["env"]}),
    }


def entrypoint_problem(model: typing.Mapping[str, typing.Any], image: str, own: typing.Sequence[str] | None) -> str:
    """Why a model's words can't stand behind what its image starts, and the remedy; empty where they can.

    C(own): the words of the image's entry point; None where it has none. What the inventory says stands above that.
    """
    words = list(own or ())
    if model["entrypoint"] or _serves(words):
        return ""
    ends = [end for end in range(2, len(words)) if _serves(words[:end])]
    base = words[0].rpartition("/")[2] if words else ""
    script = ""
    if ends:
        remedy = words[: ends[0]]
        script = f", with `{' '.join(words[ends[0] :])}` as its model and args"
    elif words and words[-1].rpartition("/")[2] == "vllm":
        remedy = [*words, "serve"]
    elif not words or API_SERVER in words or "-c" in words or base in _SHELLS:
        remedy = ["vllm", "serve"]
    else:
        remedy = [*words, "vllm", "serve"]
        script = f", or to [{', '.join(words)}] if that runs `vllm serve` with what it is given"
    starts = f"starts `{' '.join(words)}`" if words else "has no entry point"
    return (
        f"the image {image} {starts}, not `vllm serve`: set the model's entrypoint to [{', '.join(remedy)}]{script}, "
        "or correct `image` or vllm_image"
    )


def entrypoint_problems(
    models: typing.Iterable[typing.Mapping[str, typing.Any]], looked: typing.Iterable[typing.Any], image: str
) -> dict[str, str]:
    """The problems by the models' ids. Disabled models and images that are not on the host are passed over.

    C(looked): results of C(docker image inspect) with the format C({{json .Config.Entrypoint}}), an image each.
    C(image): that of models that name none.
    """
    own = {result["item"]: json.loads(result["stdout"]) for result in looked if result.get("rc") == 0}
    problems = {}
    for model in models:
        name = model["image"] or image
        if model["startup_mode"] != "disabled" and name in own:
            problems[model["id"]] = entrypoint_problem(model, name, own[name])
    return {name: problem for name, problem in problems.items() if problem}


def _serves(words: typing.Sequence[str]) -> bool:
    """Whether what follows these words is what `vllm serve` is given."""
    return (
        len(words) > 1
        and words[-1] == "serve"
        and words[-2].rpartition("/")[2] in ("vllm", "vllm.entrypoints.cli.main")
    )


def _visible(gpus: typing.Sequence[Gpu], gpu_access: str) -> dict[str, typing.Sequence[Gpu]]:
    """The variables by which the processes of a container see a model's GPUs alone."""
    if gpu_access in RENUMBERED_ACCESS:
        return {"CUDA_VISIBLE_DEVICES": range(len(gpus))}
    if gpu_access != "amd":
        return {"CUDA_VISIBLE_DEVICES": gpus}
    if isinstance(gpus[0], int):
        return {"HIP_VISIBLE_DEVICES": gpus}
    # ROCm's runtime takes UUIDs, HIP doesn't, and numbers what the runtime has left it from 0:
    # https://rocm.docs.amd.com/en/latest/conceptual/gpu-isolation.html
    return {"ROCR_VISIBLE_DEVICES": gpus, "HIP_VISIBLE_DEVICES": range(len(gpus))}


def api_key(model: typing.Mapping[str, typing.Any]) -> Word:
    """The key that clients of the model need; `dummy` where it wants none."""
    # In vLLM the option wins over the variable.
    key = model["args"].get("api_key")
    if key:
        first = key[0] if isinstance(key, (list, tuple)) else key
        # Under whatever name: the value is what counts.
        return next(word._replace(text="") for word in serve_words(model) if word.secret and word.value == first)
    word = environment_words(model).get("VLLM_API_KEY")
    return word if word and word.value else Word("", "dummy")


def stack_secrets(
    models: typing.Iterable[typing.Mapping[str, typing.Any]], env: typing.Any = None, others: typing.Any = None
) -> dict[str, str]:
    """The values of all secrets that compose files refer to, by name.

    C(env): of every model's server. C(others): environments of other services, by the prefix of their secrets' names.
    """
    words = [word for model in models for word in (*serve_words(model), *environment_words(model, env).values())]
    for prefix, environment in (others or {}).items():
        words += plain_environment_words(environment, prefix).values()
    return {word.secret: word.value for word in words if word.secret}


def _secret_name(model: typing.Mapping[str, typing.Any], key: str) -> str:
    return "MODEL_%d_%s" % (model["host_port"], key)


def _is_secret(name: str, value: typing.Any) -> bool:
    """Whether the value, or anything below it, is called like a secret. A switch is none, whatever it is called."""
    if isinstance(value, dict):
        return is_secret_name(name) or any(_is_secret(str(key), item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return any(_is_secret(name, item) for item in value)
    return not isinstance(value, bool) and value not in (None, "") and is_secret_name(name)


def yaml_text(value: typing.Any) -> str:
    """The value as YAML on one line, texts between double quotes, that is read back as that very value.

    Unlike JSON it can stand in every YAML file: some characters that JSON allows mean something else to YAML.
    """
    if isinstance(value, dict):
        return "{%s}" % ", ".join(yaml_text(str(key)) + ": " + yaml_text(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return "[%s]" % ", ".join(map(yaml_text, value))
    if not isinstance(value, str):
        return json.dumps(value)
    return '"%s"' % "".join(map(_quoted, value))


def _quoted(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    # Spaces of other kinds, line ends, the byte order mark: what can't be seen is escaped.
    if character.isprintable():
        return character
    number = ord(character)
    return "\\x%02x" % number if number < 0x100 else "\\u%04x" % number if number < 0x10000 else "\\U%08x" % number


def dotenv_text(value: typing.Any) -> str:
    """The value between quotes, as compose reads it back out of C(.env). Raises ValueError for what it can't hold."""
    text = str(value)
    if "\0" in text:
        raise ValueError("a secret of the stack contains a NUL character, which no environment variable can hold")
    return '"%s"' % "".join(_ESCAPES.get(character, character) for character in text)
