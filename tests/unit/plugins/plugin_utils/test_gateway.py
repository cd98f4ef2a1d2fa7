# SPDX-License-Identifier: MIT
"""The gateway's variables: what is written of them, and what is refused, without a key in any message."""

from __future__ import annotations

import datetime
import hashlib
from typing import Any

import pytest
from ansible_collections.homegpt.vllm.plugins.plugin_utils import gateway
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

KEY = "sk-0123456789abcdef"
RIGHT = {"model_manager_enabled": True}


def pair(passphrase: bytes = b"") -> tuple[str, str]:
    """A certificate and its key, as PEM texts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gpu1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase)
    text = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    return certificate.decode(), text.decode()


def test_settings_have_their_defaults() -> None:
    assert gateway.settings(None) == {
        "manager_host": "127.0.0.1",
        "manager_port": 9001,
        "max_wait_seconds": 300,
        "max_waiting": 5000,
        "max_waiting_per_model": 1000,
        "max_waiting_per_key": 200,
        "max_body_bytes": 67108864,
        "max_spool_bytes": 8589934592,
        "allowed_hosts": [],
        "status_chunks": "auto",
        "link_grace_seconds": 5,
    }
    assert gateway.settings(None, 9001, ["gpu1", "gpu1", "gpu1.example.com"])["allowed_hosts"] == [
        "gpu1",
        "gpu1.example.com",
    ]
    own = gateway.settings({"max_wait_seconds": 7.5, "status_chunks": False}, 9002)
    # YAML reads a bare off as false.
    assert (own["max_wait_seconds"], own["status_chunks"], own["manager_port"]) == (7.5, "off", 9002)


def test_keys_are_written_by_their_digests() -> None:
    given = [
        {"name": "alice", "key": KEY},
        {"name": "bob", "key": KEY[::-1], "models": ["a", "b"], "max_in_flight": 2, "requests_per_minute": 60},
    ]
    made = gateway.keys(given, "of-the-webui")
    assert made == [
        {"name": "alice", "sha256": hashlib.sha256(KEY.encode()).hexdigest(), "models": ["*"]},
        {
            "name": "bob",
            "sha256": hashlib.sha256(KEY[::-1].encode()).hexdigest(),
            "models": ["a", "b"],
            "requests_per_minute": 60,
            "max_in_flight": 2,
        },
        {"name": "open-webui", "sha256": hashlib.sha256(b"of-the-webui").hexdigest(), "models": ["*"]},
    ]


@pytest.mark.parametrize("none", [None, []])
def test_without_a_key_nobody_is_asked_for_one(none: Any) -> None:
    assert gateway.keys(none, "of-the-webui") == []


WRONG_KEYS: list[tuple[Any, str]] = [
    (KEY, "model_gateway_api_keys must be a list"),
    ([KEY], r"\[0\] must be a dictionary"),
    ([{"name": "a", "key": KEY, "model": ["a"]}], r"\[0\]\.model is unknown; the fields are name, key, models, "),
    ([{"key": KEY}], r"\[0\]\.name must be letters"),
    ([{"name": "a b", "key": KEY}], r"\[0\]\.name must be letters"),
    ([{"name": "open-webui", "key": KEY}], r"\[0\]\.name .*not open-webui"),
    ([{"name": "a", "key": KEY}, {"name": "a", "key": KEY[::-1]}], r"\[1\]\.name is that of another key"),
    ([{"name": "a"}], r"\[0\]\.key must have at least 16 characters"),
    ([{"name": "a", "key": "short"}], r"\[0\]\.key must have at least 16 characters.*openssl rand -hex 32"),
    ([{"name": "a", "key": KEY + " "}], r"\[0\]\.key must have"),
    ([{"name": "a", "key": KEY + "\n"}], r"\[0\]\.key must have"),
    ([{"name": "a", "key": KEY}, {"name": "b", "key": KEY}], r"\[1\]\.key is that of another"),
    ([{"name": "a", "key": KEY, "models": "a"}], r"\[0\]\.models must be a list of ids"),
    ([{"name": "a", "key": KEY, "models": []}], r"\[0\]\.models must be a list of ids"),
    ([{"name": "a", "key": KEY, "max_in_flight": 0}], r"\[0\]\.max_in_flight must be a whole number of at least 1"),
    ([{"name": "a", "key": KEY, "max_waiting": True}], r"\[0\]\.max_waiting must be a whole number"),
]


@pytest.mark.parametrize(("given", "told"), WRONG_KEYS)
def test_wrong_keys_are_refused_and_not_shown(given: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told) as raised:
        gateway.keys(given)
    assert not {KEY, KEY[::-1], "short"} & set(str(raised.value).replace("'", " ").split())
    assert str(raised.value) in list(gateway.mistakes({**RIGHT, "model_gateway_api_keys": given}))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("x", "model_gateway_settings must be a dictionary"),
        ({"max_wait_secs": 1}, "max_wait_secs is unknown; did you mean max_wait_seconds?"),
        ({"x": 1}, "x is unknown; the keys are max_wait_seconds, "),
        ({"max_waiting": 1.5}, "max_waiting must be a whole number of at least 1, is 1.5"),
        ({"max_waiting": True}, "max_waiting must be a whole number"),
        ({"link_grace_seconds": 0}, "link_grace_seconds must be a number of at least 1, is 0"),
        ({"max_spool_bytes": 1000000}, "max_spool_bytes must be at least max_body_bytes, 67108864, is 1000000"),
        ({"max_body_bytes": 10**12 - 1}, "max_spool_bytes must be at least max_body_bytes, 999999999999, is"),
        ({"status_chunks": "on"}, "status_chunks must be one of auto, webui, comments, off, is 'on'"),
    ],
)
def test_wrong_settings_are_refused(given: Any, told: str) -> None:
    (mistake,) = gateway.mistakes({**RIGHT, "model_gateway_settings": given})
    assert told in mistake
    with pytest.raises(ValueError, match="model_gateway_settings"):
        gateway.settings(given)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, ""),
        ({"model_manager_enabled": False}, "model_gateway_enabled needs the model manager"),
        ({"model_gateway_allowed_hosts": ["gpu1.example.com", "gpu1"]}, ""),
        ({"model_gateway_allowed_hosts": "gpu1"}, "model_gateway_allowed_hosts must be a list of names"),
        ({"model_gateway_allowed_hosts": [1]}, "model_gateway_allowed_hosts must be a list of names"),
        (
            {"model_gateway_allowed_hosts": ["gpu1:8000", "x"]},
            "model_gateway_allowed_hosts must be names alone, not gpu1:8000: leave out http://",
        ),
        ({"model_gateway_listen": "gpu1"}, "model_gateway_listen must be an IP address, is 'gpu1'"),
        ({"model_gateway_listen": "0.0.0.0"}, "model_gateway_listen 0.0.0.0 lets everybody on the network use"),
        ({"model_gateway_listen": "::"}, "model_gateway_without_keys: true if that is what you want"),
        ({"model_gateway_listen": "0.0.0.0", "model_gateway_without_keys": True}, ""),
        ({"model_gateway_listen": "0.0.0.0", "model_gateway_api_keys": [{"name": "a", "key": KEY}]}, ""),
        ({"model_gateway_listen": "::1"}, ""),
        ({"model_gateway_workers": 0}, "model_gateway_workers must be auto or a number of processes, is '0'"),
        ({"model_gateway_workers": 4}, ""),
    ],
)
def test_other_mistakes(values: dict[str, Any], told: str) -> None:
    found = list(gateway.mistakes({**RIGHT, **values}))
    assert len(found) == bool(told)
    assert told in "".join(found)


def test_a_model_that_no_host_has() -> None:
    values = {"model_gateway_api_keys": [{"name": "a", "key": KEY, "models": ["*", "qwen", "qwne", "x"]}]}
    assert list(gateway.unknown_models(values, {"qwen", "gpt"})) == [
        "model_gateway_api_keys[0].models: there is no model qwne; did you mean qwen?",
        "model_gateway_api_keys[0].models: there is no model x; the models are: gpt, qwen",
    ]


def test_a_certificate_and_its_key() -> None:
    certificate, key = pair()
    assert list(gateway.certificate_mistakes("", "")) == []
    assert list(gateway.certificate_mistakes(certificate, key)) == []
    # With that of its issuer behind it.
    assert list(gateway.certificate_mistakes(certificate + pair()[0], key)) == []


def test_a_certificate_that_nginx_could_not_use() -> None:
    certificate, key = pair()
    cases = [
        (certificate, "", "model_gateway_tls_key is not set, but model_gateway_tls_certificate is"),
        ("", key, "model_gateway_tls_certificate is not set, but model_gateway_tls_key is"),
        ("/etc/ssl/gpu1.crt", key, "model_gateway_tls_certificate is no PEM certificate"),
        (certificate, "/etc/ssl/gpu1.key", "model_gateway_tls_key is no PEM key"),
        (certificate, pair(b"secret")[1], "model_gateway_tls_key is no PEM key, or has a passphrase"),
        (certificate, pair()[1], "model_gateway_tls_key does not belong to the first certificate"),
    ]
    for given, its_key, told in cases:
        (mistake,) = gateway.certificate_mistakes(given, its_key)
        assert told in mistake
        assert "PRIVATE KEY" not in mistake
