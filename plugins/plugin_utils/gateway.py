# -*- coding: utf-8 -*-
# Copyright (c) HomeGPT
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The variables of the gateway: what is wrong with them, and what its files say. Runs on the controller. Pure."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import ipaddress
import re
import typing

Values = typing.Mapping[str, typing.Any]

PORT = 8000
# Where the model manager listens for the gateway.
LINK_PORT = 9001
# The name of the key that is made on the host for Open WebUI.
WEBUI = "open-webui"
STATUS_CHUNKS = ("auto", "webui", "comments", "off")
# What a key of a client may have beside its own text, and the least value of a number.
_LIMITS = {"max_waiting": 1, "requests_per_minute": 1, "max_in_flight": 1}
_KEY_FIELDS = ("name", "key", "models", *_LIMITS)


class Setting(typing.NamedTuple):
    """A key of model_gateway_settings. C(least): None for one that is no number."""

    default: typing.Any
    least: float | None
    meaning: str


SETTINGS = {
    "max_wait_seconds": Setting(300, 1, "How long a request waits for its model. Then it is answered with 504."),
    "max_waiting": Setting(5000, 1, "How many requests may wait. More are answered with 429."),
    "max_waiting_per_model": Setting(1000, 1, "How many of them may wait for one model."),
    "max_waiting_per_key": Setting(
        200, 1, "How many of them may come with one API key that sets no number of its own."
    ),
    "max_body_bytes": Setting(67108864, 1, "The longest body of a request. A longer one is answered with 413."),
    "max_spool_bytes": Setting(
        8589934592,
        1,
        "How many bytes of requests longer than 64 kB may lie in `gateway/spool` at once, of those that wait and those "
        "that are answered. More are answered with 429 before they are read. At least `max_body_bytes`.",
    ),
    "status_chunks": Setting(
        "auto",
        None,
        "What a streaming request is sent while it waits: `webui`, the status that Open WebUI shows; `comments`, "
        "comments of server-sent events; `off`, nothing; `auto`: by the client.",
    ),
    "link_grace_seconds": Setting(
        5,
        1,
        "How long a request waits while the model manager can't be reached, also after a start of the gateway. Then it "
        "is answered with 503.",
    ),
}


def settings(
    given: typing.Any, link_port: int = LINK_PORT, allowed_hosts: typing.Iterable[str] = ()
) -> dict[str, typing.Any]:
    """What C(settings.json) says. Raises ValueError with the mistakes of C(given), model_gateway_settings."""
    wrong = list(_wrong_settings(given))
    if wrong:
        raise ValueError("; ".join(wrong))
    own = {key: _off(value) for key, value in (given or {}).items()}
    return {
        "manager_host": "127.0.0.1",
        "manager_port": int(link_port),
        "allowed_hosts": list(dict.fromkeys(allowed_hosts)),
        **{key: own.get(key, setting.default) for key, setting in SETTINGS.items()},
    }


def keys(given: typing.Any, webui_key: str = "") -> list[dict[str, typing.Any]]:
    """What C(keys.json) says: each key with the SHA-256 of its text. Raises ValueError for what mistakes() tells.

    C(webui_key): the key that was made on the host for Open WebUI. Where no key is given nobody is asked for one.
    """
    wrong = list(_wrong_keys(given))
    if wrong:
        raise ValueError("; ".join(wrong))
    entries = [*(given or []), {"name": WEBUI, "key": webui_key}] if given else []
    return [
        {
            "name": entry["name"],
            "sha256": hashlib.sha256(entry["key"].encode()).hexdigest(),
            "models": entry.get("models") or ["*"],
            **{limit: int(entry[limit]) for limit in _LIMITS if entry.get(limit) is not None},
        }
        for entry in entries
    ]


def mistakes(values: Values) -> typing.Iterator[str]:
    """What is wrong with the gateway's variables of a host that has one."""
    if not is_true(values.get("model_manager_enabled")):
        yield (
            "model_gateway_enabled needs the model manager, which switches for it: set model_manager_enabled: true, "
            "or model_gateway_enabled: false"
        )
    yield from _wrong_settings(values.get("model_gateway_settings"))
    yield from _wrong_keys(values.get("model_gateway_api_keys"))
    listen = values.get("model_gateway_listen", "127.0.0.1")
    try:
        address = ipaddress.ip_address(str(listen))
    except ValueError:
        yield f"model_gateway_listen must be an IP address, is {listen!r}: use 127.0.0.1, or 0.0.0.0 for all networks"
    else:
        if not (
            address.is_loopback
            or values.get("model_gateway_api_keys")
            or is_true(values.get("model_gateway_without_keys"))
        ):
            yield (
                f"model_gateway_listen {listen} lets everybody on the network use the models: set "
                "model_gateway_api_keys, or model_gateway_without_keys: true if that is what you want"
            )
    yield from _wrong_hosts(values.get("model_gateway_allowed_hosts"))
    workers = str(values.get("model_gateway_workers", "auto"))
    if not re.match(r"(auto|[1-9][0-9]{0,2})\Z", workers):
        yield f"model_gateway_workers must be auto or a number of processes, is {workers!r}: correct or remove it"
    yield from certificate_mistakes(values.get("model_gateway_tls_certificate"), values.get("model_gateway_tls_key"))


def unknown_models(values: Values, known: typing.Collection[str]) -> typing.Iterator[str]:
    """The models that keys name and no host has."""
    given = values.get("model_gateway_api_keys")
    for number, entry in enumerate(given if isinstance(given, list) else []):
        named = entry.get("models") if isinstance(entry, dict) else None
        for model in named if isinstance(named, list) else []:
            if isinstance(model, str) and model != "*" and model not in known:
                near = difflib.get_close_matches(model, sorted(known), n=1)
                hint = f"did you mean {near[0]}?" if near else f"the models are: {', '.join(sorted(known))}"
                yield f"model_gateway_api_keys[{number}].models: there is no model {model}; {hint}"


def certificate_mistakes(certificate: typing.Any, key: typing.Any) -> typing.Iterator[str]:
    """Why nginx could not use the certificate and its key, both PEM texts."""
    if not certificate and not key:
        return
    if not certificate or not key:
        missing, other = ("key", "certificate") if certificate else ("certificate", "key")
        yield f"model_gateway_tls_{missing} is not set, but model_gateway_tls_{other} is: set both, or none"
        return
    # Ansible needs it itself. Not above: it is slow to import, and few hosts have a certificate.
    x509 = importlib.import_module("cryptography.x509")
    serialization = importlib.import_module("cryptography.hazmat.primitives.serialization")

    def public(one: typing.Any) -> bytes:
        text: bytes = one.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return text

    try:
        first = public(x509.load_pem_x509_certificate(str(certificate).encode()))
    except ValueError:
        yield (
            "model_gateway_tls_certificate is no PEM certificate: give its text, such as "
            "\"{{ lookup('ansible.builtin.file', '/full/path/gateway.crt') }}\", the host's own certificate first"
        )
        return
    try:
        second = public(serialization.load_pem_private_key(str(key).encode(), None))
    except (ValueError, TypeError):
        yield "model_gateway_tls_key is no PEM key, or has a passphrase: give its text without one, from a vault"
        return
    if first != second:
        yield (
            "model_gateway_tls_key does not belong to the first certificate of model_gateway_tls_certificate: correct "
            "one of the two"
        )


def _wrong_settings(given: typing.Any) -> typing.Iterator[str]:
    if given is not None and not isinstance(given, dict):
        yield "model_gateway_settings must be a dictionary: write it as {max_wait_seconds: 300}"
        return
    wrong = list(_wrong_values(given or {}))
    yield from wrong
    own = {key: setting.default for key, setting in SETTINGS.items()} | (given or {})
    if not wrong and own["max_spool_bytes"] < own["max_body_bytes"]:
        yield (
            f"model_gateway_settings.max_spool_bytes must be at least max_body_bytes, {own['max_body_bytes']}, is "
            f"{own['max_spool_bytes']}: no request of that length would ever be taken"
        )


def _wrong_values(given: Values) -> typing.Iterator[str]:
    for key, value in given.items():
        setting = SETTINGS.get(key)
        if setting is None:
            near = difflib.get_close_matches(str(key), SETTINGS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(SETTINGS)}"
            yield f"model_gateway_settings.{key} is unknown; {hint}"
        elif setting.least is None:
            if _off(value) not in STATUS_CHUNKS:
                yield f"model_gateway_settings.{key} must be one of {', '.join(STATUS_CHUNKS)}, is {value!r}"
        else:
            whole = not key.endswith("_seconds")
            right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
            if not right or not setting.least <= value < 1e12:
                number = "a whole number" if whole else "a number"
                yield f"model_gateway_settings.{key} must be {number} of at least {setting.least:g}, is {value!r}"


def _wrong_hosts(given: typing.Any) -> typing.Iterator[str]:
    name = "model_gateway_allowed_hosts"
    if given is not None and not (isinstance(given, list) and all(isinstance(one, str) and one for one in given)):
        yield f"{name} must be a list of names: write it as [gpu1.example.com]"
        return
    odd = [one for one in given or [] if re.search(r"[/:\s]", one)]
    if odd:  # what no request could match; addresses are allowed anyway
        yield f"{name} must be names alone, not {', '.join(odd)}: leave out http://, the port and addresses"


def _wrong_keys(given: typing.Any) -> typing.Iterator[str]:
    """Without the texts of the keys."""
    name = "model_gateway_api_keys"
    if given is not None and not isinstance(given, list):
        yield f"{name} must be a list: write it as [{{name: NAME, key: KEY}}]"
        return
    names: set[str] = set()
    texts: set[str] = set()
    for number, entry in enumerate(given or []):
        where = f"{name}[{number}]"
        if not isinstance(entry, dict):
            yield f"{where} must be a dictionary: write it as {{name: NAME, key: KEY}}"
            continue
        for field in entry:
            if field not in _KEY_FIELDS:
                yield f"{where}.{field} is unknown; the fields are {', '.join(_KEY_FIELDS)}"
        own = entry.get("name")
        if not (isinstance(own, str) and re.match(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}\Z", own)) or own == WEBUI:
            yield (
                f"{where}.name must be letters, digits, dots, dashes, underscores and @, at most 64, and not {WEBUI}: "
                "logs and metrics show it"
            )
        elif own in names:
            yield f"{where}.name is that of another key: give each its own"
        names.add(str(own))
        text = entry.get("key")
        if not (isinstance(text, str) and re.match(r"[!-~]{16,}\Z", text)):
            yield (
                f"{where}.key must have at least 16 characters, no space, and only ASCII: make one with "
                "`openssl rand -hex 32`"
            )
        elif text in texts:
            yield f"{where}.key is that of another: give each name its own"
        texts.add(str(text))
        models = entry.get("models")
        if models is not None and not (
            isinstance(models, list) and models and all(isinstance(model, str) and model for model in models)
        ):
            yield f"{where}.models must be a list of ids of models, or ['*']: correct or remove it"
        for limit, least in _LIMITS.items():
            value = entry.get(limit)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                yield f"{where}.{limit} must be a whole number of at least {least}: correct or remove it"


def _off(value: typing.Any) -> typing.Any:
    """YAML reads a bare off as false."""
    return "off" if value is False else value


def is_true(value: typing.Any) -> bool:
    """Whether the value of a variable means yes."""
    return str(value).lower() in ("true", "yes", "on", "1", "y", "t")
