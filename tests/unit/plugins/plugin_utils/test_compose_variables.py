# SPDX-License-Identifier: MIT
"""The variables of compose files mean here what they mean to docker compose itself."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from ansible_collections.homegpt.vllm.plugins.plugin_utils.compose_variables import BadVariable, dotenv, interpolate

VALUES = {"S": "set", "E": "", "N": "7"}
# A, B, C and D have no value.
EXPRESSIONS = [
    ("$S ${S} $N$N", "set set 77"),
    ("$A${A}", ""),
    ("${A:-d} ${A-d} ${S:-d} ${S-d}", "d d set set"),
    ("${E:-d}|${E-d}", "d|"),
    ("${S:+x}${E:+y}${A:+z}", "x"),
    ("${S+x}${E+y}${A+z}", "xy"),
    ("${S:?m}${S?m}${E?m}", "setset"),
    ("${A:-${B:-${C:-${D:-deep}}}}", "deep"),
    ("${A:-${S}-${B:-x}}", "set-x"),
    ("${S:+${E:+x}y}", "y"),
    ("${A:-$S}", "set"),
    ("$$A $${A} $$$S $$$$", "$A ${A} $set $$"),
    ("${A:-$$S}", "$S"),
    ("a$ b$", "a$ b$"),
    ("$1 $- ~/$S", "$1 $- ~/set"),
    ('{"a": ${N}, "b": ${A:-x}}', '{"a": 7, "b": x}'),
    ('${S:-{"a": 1}}|${A:-{"a": {"b": 1}}}', 'set|{"a": {"b": 1}}'),
    # An empty pair of braces is no pair to compose: what follows belongs to the default.
    ("${A:-{}}", "{}"),
    ('${A:-{"a": {}}}|x}', '{"a": {}}}|x'),
    ('${S:-{"a": {}}}|x}', "set"),
    ("${A:-x{y}", "x{y"),
    ("${A:-a}b}", "ab}"),
    ("${A:-a:-b?c}", "a:-b?c"),
    ("${A:--x}${A:-:-}", "-x:-"),
    ("${A:- }|", " |"),
    ("${_x:-1}${a}", "1"),
    ("$S_x|$S-x", "|set-x"),
    ("{{ .X }} $S", "{{ .X }} set"),
    ("${A:-'q'}${A:-\"}\"}", "'q'\"\"}"),
    ("\\$S", "\\set"),
    ("${A:-é}ü", "éü"),
    ("${N:-0}:${N}", "7:7"),
]
BAD = [
    "${}",
    "${A",
    "${A/b/c}",
    "${A:=x}",
    "${1}",
    "${A }",
    "${ A}",
    "${A.B}",
    "${A:}",
    "${A:-${B}",
    "${A:-${}}",
    "x ${A!}",
]
REQUIRED = ["${A:?m}", "${A?m}", "${E:?m}", "${A:-${B:?m}}", "${A?}"]
ENVIRONMENTS = [
    ("A=b", "b"),
    ("A = b ", "b"),
    ("export A=b", "b"),
    ('A="b c"', "b c"),
    ("A='b $S'", "b $S"),
    ('A="b $S"', "b set"),
    ("A=b $S", "b set"),
    ("A=b # c", "b"),
    ("A=b#c", "b#c"),
    ('A="b" # c', "b"),
    ("#A=b\nA=c", "c"),
    ("A=", ""),
    ('A=""', ""),
    ('A="x\\ny"', "x\ny"),
    ('A="x\\$S"', "x$S"),
    ("A='it\\'s'", "it's"),
    ('A="two\nlines"', "two\nlines"),
    ("A: b", "b"),
    ("A=b\nA=${A}c", "bc"),
    ("B=1\nA=${B:-2}", "1"),
    ("A=${B:-2}", "2"),
    ("A=$B", ""),
    ("A=a=b", "a=b"),
    ("A=b\r\nB=c", "b"),
    ("A='{\"a\": 1}'", '{"a": 1}'),
    ('A={"a": 1}', '{"a": 1}'),
    ("S=file\nA=$S", "set"),
    ("A=# c", "# c"),
    ("B\nA=b", "b"),
    ("A=--max-model-len 4096", "--max-model-len 4096"),
    ('A="{\\"a\\": 1}"', '{"a": 1}'),
]


@pytest.mark.parametrize(("text", "means"), EXPRESSIONS)
def test_a_text(text: str, means: str) -> None:
    assert interpolate(text, VALUES.get, lambda name: "") == means


@pytest.mark.parametrize("text", BAD)
def test_no_variable(text: str) -> None:
    with pytest.raises(BadVariable):
        interpolate(text, VALUES.get, lambda name: "")


@pytest.mark.parametrize("text", REQUIRED)
def test_what_has_to_be_given_stands_for_itself(text: str) -> None:
    assert interpolate("<%s>" % text, VALUES.get, "[{}]".format) in ("<[A]>", "<[B]>", "<[E]>")


@pytest.mark.parametrize(("text", "means"), ENVIRONMENTS)
def test_an_env_file(text: str, means: str) -> None:
    assert dotenv(text, VALUES.get)["A"] == means


def compose(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Docker's own compose, which needs no engine to read a file."""
    cache = Path(os.environ.get("HOMEGPT_CACHE") or Path.home() / ".cache/homegpt.vllm")
    binary = next(iter(sorted(cache.glob("compose-*/compose/docker-compose"))), None)
    command = [str(binary)] if binary else ["docker", "compose"]
    if not binary and not (
        shutil.which("docker") and subprocess.run([*command, "version"], check=False).returncode == 0
    ):
        pytest.skip(
            "allowed: docker compose is not here: tools/engine.sh installs it for the suites that need an engine"
        )
    # Where docker looks for its plugins.
    kept = {name: os.environ[name] for name in ("HOME", "PATH", "DOCKER_CONFIG") if name in os.environ}
    environment = {**VALUES, **kept}
    command += [*arguments, "config", "--format", "json"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def written(folder: Path, texts: dict[str, str]) -> list[str]:
    """A compose file with these in an environment."""
    content = {"services": {"a": {"image": "x", "environment": texts}}}
    (folder / "compose.yml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return ["-f", "compose.yml"]


def read(result: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert result.returncode == 0, result.stderr
    environment = json.loads(result.stdout)["services"]["a"]["environment"]
    return {name: value.replace("$$", "$") for name, value in environment.items()}


def grown(draw: random.Random, depth: int = 0) -> str:
    """A random expression."""
    operator = draw.choice([":-", "-", ":+", "+", ""])
    name = draw.choice("ASENB")
    if not operator:
        return draw.choice(["$%s ", "${%s}"]) % name
    plain = ["x", "-", "?", ":", '{"k": 1}', "$$", " "]
    parts = (draw.choice(plain) if depth > 2 or draw.random() < 0.6 else grown(draw, depth + 1) for _part in range(3))
    return "${%s%s%s}" % (name, operator, "".join(parts))


def test_compose_says_the_same(tmp_path: Path) -> None:
    draw = random.Random(16)
    texts = [text for text, _means in EXPRESSIONS] + [grown(draw) for _index in range(300)]
    result = read(compose(tmp_path, *written(tmp_path, {"V%d" % index: text for index, text in enumerate(texts)})))
    for index, text in enumerate(texts):
        assert interpolate(text, VALUES.get, lambda name: "") == result["V%d" % index], text


@pytest.mark.parametrize(("texts", "says"), [(BAD, "invalid interpolation format"), (REQUIRED, "required variable")])
def test_compose_refuses_the_same(tmp_path: Path, texts: list[str], says: str) -> None:
    for text in texts:
        assert says in compose(tmp_path, *written(tmp_path, {"V": text})).stderr, text


def test_compose_reads_an_env_file_alike(tmp_path: Path) -> None:
    for text, means in ENVIRONMENTS:
        (tmp_path / "some.env").write_bytes(text.encode())
        arguments = ["--env-file", "some.env", *written(tmp_path, {"V": "${A}"})]
        assert read(compose(tmp_path, *arguments))["V"] == means, text
