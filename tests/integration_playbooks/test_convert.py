# SPDX-License-Identifier: MIT
"""convert.yml makes inventories that site.yml takes, tells no secrets, and writes over nothing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration_playbooks.conftest import Inventory
from tests.playbooklib import Ansible, Host, Run, launched
from tests.serverlib import ROOT

DATA = Path(__file__).parent / "data"
SECRET = "hf_verysecretverysecret"
HOMEGPT = ("-e", "homegpt_config=config.yaml", "-e", "homegpt_compose=compose-vllm-*.yml", "-e", "dest=out/models.yml")
SWAP = ("-e", "llama_swap_config=llama-swap.yaml", "-e", "dest=out.yml")


class Converter:
    """Somebody who stands in a folder with the files, and has no inventory."""

    def __init__(self, ansible: Ansible, folder: Path) -> None:
        self.ansible = ansible
        self.folder = folder

    def __call__(self, *arguments: str) -> Run:
        """Run the playbook by its name."""
        # The inventory that is given last would win; none is what people have.
        self.ansible.inventory = self.folder / "none"
        collections = {"ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".build"), "ANSIBLE_CONFIG": None}
        env: dict[str, str | None] = {**collections, "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false"}
        return self.ansible.play("homegpt.vllm.convert", *arguments, cwd=self.folder, env=env)

    def edit(self, name: str, old: str, new: str) -> None:
        """Change one of the files."""
        path = self.folder / name
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")

    def read(self, name: str) -> Any:
        """Read a file that was written, Ansible's tag for texts that are no templates taken away."""
        return yaml.safe_load((self.folder / name).read_text(encoding="utf-8").replace("!unsafe ", ""))


@pytest.fixture
def convert(inventory: Inventory, tmp_path: Path) -> Converter:
    folder = tmp_path / "files"
    shutil.copytree(DATA / "homegpt", folder)
    shutil.copy(DATA / "llama-swap.yaml", folder)
    return Converter(inventory([launched("unused")]), folder)


def notes(run: Run) -> list[str]:
    (shown,) = [result for result in run.results("ok") if isinstance(result.get("msg"), list)]
    return list(shown["msg"])


@pytest.mark.versions
def test_homegpt(convert: Converter) -> None:
    predicted = convert(*HOMEGPT, "--check", "--diff")
    assert not (convert.folder / "out").exists()
    run = convert(*HOMEGPT, "--diff")
    assert run.changed("localhost") == predicted.changed("localhost") == 2
    assert "+  - id: vision" in run.diff
    written = convert.folder / "out/models.yml"
    assert oct(written.stat().st_mode & 0o777) == "0o644"
    models = convert.read("out/models.yml")["vllm_models"]
    assert [entry["model"] for entry in models] == ["org/vision", "org/coder", "COMPOSE-FILE-MISSING/thinker"]
    told = notes(run)
    assert any("no compose file has the container vllm-thinker" in note for note in told)
    # They stand in the file too.
    comments = " ".join(re.sub(r"^# *-? *", "", line) for line in written.read_text().splitlines() if line[:1] == "#")
    assert all(note in comments for note in told)
    again = convert(*HOMEGPT, "--diff")
    assert again.changed("localhost") == 0
    assert again.diff == []


@pytest.mark.versions
def test_llama_swap(convert: Converter) -> None:
    assert convert(*SWAP).changed("localhost") == 1
    vision, coder = convert.read("out.yml")["vllm_models"]
    assert (vision["sleep_level"], coder["sleep_level"]) == (1, 2)
    assert vision["args"]["chat_template"] == "{{ messages }}"


def test_an_absolute_path_and_a_list_of_files(convert: Converter, tmp_path: Path) -> None:
    files = {"homegpt_compose": [str(convert.folder / "compose-vllm-coder.yml"), "compose-vllm-vision.yml"]}
    config = convert.folder / "config.yaml"
    run = convert("-e", f"homegpt_config={config}", "-e", json.dumps(files), "-e", f"dest={tmp_path}/abs.yml")
    assert run.changed("localhost") == 1
    assert (tmp_path / "abs.yml").read_text().count("- id:") == 3


@pytest.mark.versions
def test_compose_files_alone_and_their_values(convert: Converter, tmp_path: Path) -> None:
    """Nothing of homeGPT's but a compose file, as people have it; the values are where compose looks for them."""
    (convert.folder / "compose.yaml").write_text(
        "services:\n  vllm-chat:\n    image: ${IMAGE:-vllm/vllm-openai:v0.32.0}\n    ports: ['${PORT:-8123}:8000']\n"
        "    entrypoint: [bash, -lc, 'exec vllm serve \"$$@\"', --]\n"
        "    command: ['${MODEL}', '--max-model-len', '${LENGTH:-${SHORT:-9}}', '--api-key', '${KEY}']\n"
    )
    arguments = ("-e", "homegpt_compose=compose.yaml", "-e", "dest=out.yml")
    run = convert(*arguments, "--check")
    assert any("convert_variables: MODEL" in note for note in notes(run))
    (convert.folder / "some.env").write_text(f"MODEL=org/chat # the one\nSHORT='4096'\nKEY={SECRET}\n")
    run = convert(*arguments, "-e", "convert_env=some.env", "-e", '{"convert_variables": {"PORT": 8200}}', "-vvv")
    assert run.changed("localhost") == 1
    assert SECRET not in run.output
    (chat,) = convert.read("out.yml")["vllm_models"]
    assert (chat["id"], chat["model"], chat["host_port"]) == ("chat", "org/chat", 8200)
    assert chat["args"] == {"max_model_len": 4096, "api_key": SECRET}
    assert not any("MODEL" in note for note in notes(run))


def test_another_file_is_not_written_over(convert: Converter) -> None:
    target = convert.folder / "out.yml"
    target.write_text("mine: true\n")
    for mode in ([], ["--check"]):
        message = convert(*SWAP, *mode).failure()
        assert "out.yml is there already and says something else" in message
        assert "-e force=true" in message
    assert target.read_text() == "mine: true\n"
    assert convert(*SWAP, "-e", "force=true", "--check").changed("localhost") == 1
    assert target.read_text() == "mine: true\n"
    assert convert(*SWAP, "-e", "force=true").changed("localhost") == 1
    assert convert.read("out.yml")["vllm_models"]
    target.chmod(0o640)
    assert convert(*SWAP).changed("localhost") == 0


def test_secrets_are_in_the_file_alone(convert: Converter) -> None:
    convert.edit("compose-vllm-vision.yml", "${HF_TOKEN}", SECRET)
    convert.edit("compose-vllm-coder.yml", "--enable-sleep-mode", f"--enable-sleep-mode --api-key {SECRET}2")
    run = convert(*HOMEGPT, "--diff", "-vvv")
    assert run.changed("localhost") == 2
    assert SECRET not in run.output
    assert any("ansible-vault" in note for note in notes(run))
    written = convert.folder / "out/models.yml"
    assert oct(written.stat().st_mode & 0o777) == "0o600"
    assert convert.read("out/models.yml")["vllm_hf_token"] == SECRET
    # What was there may be secret too.
    for file in ("compose-vllm-vision.yml", "compose-vllm-coder.yml"):
        shutil.copy(DATA / "homegpt" / file, convert.folder)
    again = convert(*HOMEGPT, "--diff", "-e", "force=true")
    assert again.changed("localhost") == 1
    assert SECRET not in again.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no files given: set the file to convert and the file to write"),
        (["-e", "homegpt_config=config.yaml"], "no files given: set the file to convert and the file to write"),
        ([*SWAP, *HOMEGPT], "no files given: set the file to convert"),
        (["-e", "llama_swap_config=gone.yaml", "-e", "dest=x"], "/gone.yaml is not there, or is no file"),
        ([*HOMEGPT, "-e", "homegpt_compose=compose-vllm-coder.yml,gone*.yml"], "there is no file"),
        (["-e", "homegpt_compose=compose-vllm-coder.yml"], "no files given: set the file to convert"),
        ([*SWAP, "-e", "convert_env=gone.env"], "/gone.env is not there, or is no file"),
        (["-e", "llama_swap_config=config.yaml", "-e", "dest=x"], "give the file as homegpt_config"),
        (["-e", "llama_swap_config=broken.yaml", "-e", "dest=x"], "broken.yaml, line 1, column 10 is not valid YAML"),
        ([*SWAP, "-e", "llama_swap_servers=boxes"], "must be containers or processes, is boxes"),
        ([*SWAP, "-e", "dest=folder"], "/folder is there already"),
    ],
)
def test_what_can_not_be_converted(convert: Converter, arguments: list[str], says: str) -> None:
    (convert.folder / "broken.yaml").write_text("models: [\n")
    (convert.folder / "folder").mkdir()
    before = sorted(convert.folder.rglob("*"))
    assert says in convert(*arguments).failure()
    assert sorted(convert.folder.rglob("*")) == before


def test_all_mistakes_at_once_with_their_places(convert: Converter) -> None:
    convert.edit("config.yaml", "host_port: 8002", "host_port: 8001")
    convert.edit("config.yaml", "startup_mode: sleep", "startup_mode: dozing")
    convert.edit("config.yaml", "max_retries: 450", "max_retries: never")
    message = convert(*HOMEGPT).failure()
    for mistake in (
        "config.yaml: models[1] (coder): host_port 8001 is taken by vision",
        "config.yaml: models[1] (coder): startup_mode must be one of active, sleep, disabled, is dozing",
        "config.yaml: switching: max_retries must be a whole number",
    ):
        assert mistake in message
    assert not (convert.folder / "out").exists()


@pytest.mark.versions
@pytest.mark.parametrize("fits", [True, False])
def test_site_says_whether_the_result_fits(
    convert: Converter, inventory: Inventory, tmp_path: Path, fits: bool
) -> None:
    """With processes, which need no engine; tests/e2e has the same for containers."""
    if not fits:
        convert.edit("llama-swap.yaml", "CUDA_VISIBLE_DEVICES=0,1", "CUDA_VISIBLE_DEVICES=0,7")
    assert convert(*SWAP, "-e", "llama_swap_servers=processes").changed("localhost") == 1
    variables = convert.read("out.yml")
    assert variables["vllm_models"][0]["start_command"][:3] == ["vllm", "serve", "org/vision"]
    host = Host(tmp_path, variables["vllm_models"], variables["vllm_switching"])
    more = {"open_webui_enabled": False, "compose_stack_restore": False, "vllm_docker_host": False}
    gpus = {"STANDIN_GPU_DIR": str(host.gpus), "STANDIN_GPU_TOTAL_GB": "96"}
    # The very file.
    arguments = ("--check", "-e", f"@{convert.folder}/out.yml", "-e", json.dumps(more))
    run = inventory(host).play("site", *arguments, env=gpus)
    assert not host.stack.exists()
    if fits:
        assert run.changed() > 0
    else:
        assert "org-coder: gpus names GPU 7, but the host has 0 and 1: correct its gpus" in run.failure()
