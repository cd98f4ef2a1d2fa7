# SPDX-License-Identifier: MIT
"""Who reaches the models on the engines that Debian ships, with the role's rules and without: `make firewall`, as root.

Real hosts with systemd and the engines 20.10 (Debian 12) and 26.1 (Debian 13), and a neighbour on their network segment
that is not the one of the test that `site` ends with. The cases of an engine build on each other, in order.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.firewall.box import HERE, NEIGHBOUR, Box, until
from tests.playbooklib import Ansible, Run
from tests.serverlib import ROOT

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make hosts of namespaces: sudo make firewall"),
]
ENGINES = {"bookworm": "20.10.", "trixie": "26.1."}
MODELS = [{"id": "a", "model": "org/a", "host_port": 8001, "weights_gb": 0.01, "entrypoint": ["/serve"]}]
# Serves what a model's server does, and the web interface, as far as is asked here.
IMAGE = r"""
set -e
mkdir -p /srv/image/bin /srv/image/www/v1 /srv/image/tmp
cp /bin/busybox /srv/image/bin
for name in sh httpd wget; do ln -sf busybox /srv/image/bin/$name; done
for path in is_sleeping metrics v1/models health; do echo '{"is_sleeping": false}' >/srv/image/www/$path; done
printf '#!/bin/sh\nhttpd -p 8080 -h /www\nexec httpd -f -p 8000 -h /www\n' >/srv/image/serve
chmod 0755 /srv/image/serve
tar -C /srv/image -c . | docker import --change 'ENTRYPOINT ["/serve"]' - tiny:local
"""
UNIT = "homegpt-firewall.service"
FILES = ("/etc/homegpt-firewall.nft", f"/etc/systemd/system/{UNIT}")
LOOPBACK = "127.0.0.1:8001"
ABSENT = ("-e", "docker_host_firewall=absent")
PLAY = 500.0


@pytest.fixture(scope="module", params=ENGINES)
def box(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A host with the engine, the image and compose, on which nothing was provisioned."""
    with Box(tmp_path_factory.mktemp(request.param), request.param, MODELS) as made:
        made.install_compose()
        made.run("sh", text=IMAGE)
        yield made


@pytest.fixture(scope="module")
def site(box: Box, ansible_playbook: str) -> Callable[..., Run]:
    """Play a playbook on the host; unless told otherwise, what `site` does about the firewall."""

    def play(*arguments: str, playbook: str = "tests/firewall/play.yml") -> Run:
        folder = box.folder.parent / "ansible"
        folder.mkdir(exist_ok=True)
        return Ansible(ansible_playbook, folder, [box]).play(playbook, *arguments, timeout=PLAY)

    return play


def closed(box: Box) -> bool:
    """Whether the neighbour reaches neither the model's port nor its container; Open WebUI has to be reached."""
    assert box.run("busybox", "wget", "-q", "-O-", f"http://{LOOPBACK}/is_sleeping")
    assert box.answers(f"{HERE}:3000")
    seen = {box.answers(LOOPBACK, path) for path in ("is_sleeping", "metrics", "v1/models")}
    seen.add(box.answers(f"{box.address('vllm-a')}:8000"))
    assert len(seen) == 1, seen
    return seen == {False}


def restarted(box: Box, how: str) -> None:
    """Restart the engine, and have its containers run."""
    box.run("sh", "-c", how)
    box.run("docker", "compose", "--project-directory", "/opt/homegpt", "up", "--detach")
    model = ["curl", "--silent", "--fail", f"http://{LOOPBACK}/is_sleeping"]
    until(lambda: box.answers(f"{HERE}:3000") and box.succeeds(*model), lambda: box.run("docker", "ps", "--all"))


def started(box: Box) -> str:
    """Return when the containers started."""
    return box.run("docker", "inspect", "--format", "{{.Name}} {{.State.StartedAt}}", "vllm-a", "open-webui")


def loaded(box: Box) -> bool:
    """Whether the kernel has the rules."""
    return "table ip homegpt_vllm" in box.run("nft", "list", "tables")


def there(box: Box) -> bool:
    """Whether there are all of the firewall's files and its table; neither may be there alone."""
    seen = {box.succeeds("test", "-e", path) for path in FILES}
    seen.add(loaded(box))
    assert len(seen) == 1, seen
    return seen == {True}


def test_without_the_rules_neighbours_reach_all(box: Box, site: Callable[..., Run]) -> None:
    assert box.run("docker", "version", "--format", "{{.Server.Version}}").startswith(ENGINES[box.suite])
    first = site(*ABSENT, playbook="site")
    assert first.changed() > 0
    assert "not tested from a neighbour: a: nothing listens on these ports" in first.output
    box.run("docker", "compose", "--project-directory", "/opt/homegpt", "up", "--detach")
    until(lambda: box.answers(f"{HERE}:3000"), lambda: box.run("docker", "ps", "--all"))
    assert not closed(box)
    assert not there(box)
    # The test at the end of `site` sees the same from its own neighbour, and says what to do.
    failure = site(*ABSENT, playbook="site").failure()
    inside = f"a: {box.address('vllm-a')}:8000 answers neighbours of this host"
    assert f"a: {LOOPBACK} answers neighbours of this host (/is_sleeping 200, /metrics 200, /v1/models 200)" in failure
    assert inside in failure
    assert "Set docker_host_firewall to auto or present" in failure
    # It is gone, and so is what it left out.
    assert "hgn" not in box.run("ls", "/sys/class/net")
    assert site(*ABSENT, "-e", "docker_host_check_neighbours=false").changed() == 0


def test_check_mode_tells_what_would_be_done_and_does_nothing(box: Box, site: Callable[..., Run]) -> None:
    run = site("--check", "--diff")
    assert run.changed() > 0
    assert any("127.0.0.0/8 drop" in line for line in run.diff), run.output
    assert any("Before=docker.service" in line for line in run.diff), run.output
    assert not there(box)
    assert not closed(box)


def test_site_closes_them_and_touches_nothing_else(box: Box, site: Callable[..., Run]) -> None:
    before = started(box)
    box.run("docker", "run", "--detach", "--name", "other", "--publish", "127.0.0.1:8101:8000", "tiny:local")
    assert box.answers("127.0.0.1:8101")
    rules = box.run("sh", "-c", "iptables-save | grep -v '^[#:]'")
    run = site()
    assert run.changed() > 0
    assert "not tried" not in run.output
    assert there(box)
    assert closed(box)
    assert started(box) == before
    assert box.run("sh", "-c", "iptables-save | grep -v '^[#:]'") == rules
    # So are the engine's other containers, as by engine 28.
    assert not box.answers("127.0.0.1:8101")
    assert not box.answers(f"{box.address('other')}:8000")
    # Containers reach each other by name, the host itself, and what is outside.
    inside = ["docker", "exec", "open-webui", "wget", "-q", "-O-"]
    assert box.run(*inside, "http://vllm-a:8000/is_sleeping")
    assert box.run("curl", "--silent", "--fail", f"http://{box.address('vllm-a')}:8000/is_sleeping")
    assert box.near
    spaces = ["nsenter", "--target", str(box.near.pid), "--net", "--", sys.executable, "-m", "http.server"]
    with subprocess.Popen([*spaces, "--bind", NEIGHBOUR, "8500"], stderr=subprocess.DEVNULL) as web:
        try:
            until(lambda: box.succeeds(*inside, f"http://{NEIGHBOUR}:8500"), lambda: "the neighbour is not reached", 20)
        finally:
            web.kill()


def test_a_second_run_changes_nothing(site: Callable[..., Run]) -> None:
    assert site(playbook="site").changed() == 0
    assert site("--check", "--diff").changed() == 0


def test_it_holds_for_networks_that_come_later(box: Box) -> None:
    box.run("docker", "network", "create", "later")
    box.run(
        "docker", "run", "--detach", "--name", "late", "--network", "later", "-p", "127.0.0.1:8102:8000", "tiny:local"
    )
    assert box.run(
        "curl", "--silent", "--fail", "--retry-connrefused", "--retry", "3", "http://127.0.0.1:8102/is_sleeping"
    )
    assert not box.answers("127.0.0.1:8102")
    assert not box.answers(f"{box.address('late')}:8000")
    # The stack's own, made anew with another name and other addresses.
    up = ["docker", "compose", "--project-directory", "/opt/homegpt"]
    bridges = box.run("sh", "-c", "ls -d /sys/class/net/br-*")
    box.run(*up, "down")
    box.run(*up, "up", "--detach")
    assert box.run("sh", "-c", "ls -d /sys/class/net/br-*") != bridges
    until(lambda: box.answers(f"{HERE}:3000"), lambda: box.run("docker", "ps", "--all"))
    assert closed(box)
    box.run("docker", "rm", "--force", "late")
    box.run("docker", "network", "rm", "later")


def test_what_is_meant_to_be_reached_is_left_open(box: Box, site: Callable[..., Run]) -> None:
    masked = "com.docker.network.bridge.enable_ip_masquerade=false"
    box.run("docker", "network", "create", "--opt", masked, "--subnet", "10.77.0.0/24", "routed")
    box.run("docker", "run", "--detach", "--name", "routed", "--network", "routed", "-p", "8103:8000", "tiny:local")
    # A bridge that is none of the engine's, with a guest behind it.
    box.run(
        "sh", "-ec", "ip link add br-lan type bridge; ip address add 10.78.0.1/24 dev br-lan; ip link set br-lan up"
    )
    guest = ["ip", "netns", "exec", "guest"]
    box.run(
        "sh",
        "-ec",
        "ip netns add guest; ip link add tap0 type veth peer name eth0 netns guest; ip link set tap0 master br-lan up",
    )
    box.run(
        *guest,
        "sh",
        "-ec",
        "ip address add 10.78.0.2/24 dev eth0; ip link set eth0 up; ip route add default via 10.78.0.1",
    )
    box.run(*guest, "busybox", "httpd", "-p", "8000", "-h", "/srv/image/www")
    # Forwarded packets are dropped by Docker unless they are let through.
    box.run("iptables", "-I", "FORWARD", "-o", "br-lan", "-j", "ACCEPT")
    box.run("iptables", "-I", "FORWARD", "-i", "br-lan", "-j", "ACCEPT")
    assert not box.answers("10.77.0.2:8000")
    assert not box.answers("10.78.0.2:8000")
    assert site("--check").changed() > 0
    assert site().changed() > 0
    assert box.answers("10.77.0.2:8000")
    assert box.answers("10.78.0.2:8000")
    assert closed(box)
    assert site().changed() == 0
    box.run(
        "sh", "-ec", "ip netns delete guest; ip link delete br-lan; docker rm --force routed; docker network rm routed"
    )
    assert site().changed() > 0


def test_it_is_there_again_after_a_restart_of_the_engine_and_a_flush(box: Box, site: Callable[..., Run]) -> None:
    assert box.run("systemd-analyze", "verify", FILES[1]) == ""
    # systemd starts Docker's service three times a minute and not more often.
    restart = "systemctl reset-failed docker; systemctl restart docker"
    for how in (restart, f"nft flush ruleset; {restart}"):
        restarted(box, how)
        assert closed(box), how
    # Debian's own service empties all tables at a start and at a reload, the engine's too. The first start.
    restarted(box, f"systemctl start nftables; {restart}")
    assert loaded(box)
    for how in ("reload", "restart"):
        box.run("systemctl", how, "nftables")
        until(lambda: loaded(box), lambda: box.run("journalctl", "--unit", UNIT))
    box.run("systemctl", "stop", "nftables")
    assert not loaded(box)
    box.run("systemctl", "start", "nftables")
    until(lambda: loaded(box), lambda: box.run("journalctl", "--unit", UNIT))
    box.run("systemctl", "stop", "nftables")
    restarted(box, restart)
    assert closed(box)
    # What somebody has taken out of the kernel is told by check mode, and `site` puts it back.
    handle = box.run("sh", "-c", "nft --handle list table ip homegpt_vllm | sed -n 's/.*127.*# handle //p'")
    box.run("nft", "delete", "rule", "ip", "homegpt_vllm", "neighbours", "handle", handle)
    assert site("--check").changed() > 0
    assert site().changed() > 0
    assert closed(box)
    assert site().changed() == 0


def test_it_is_loaded_before_the_engine_at_a_boot(box: Box, site: Callable[..., Run]) -> None:
    box.run("docker", "update", "--restart", "always", "vllm-a")
    box.halt()
    box.boot()
    until(lambda: box.run("docker", "ps", "--quiet", check=False) != "", lambda: box.run("docker", "ps", "--all"))
    box.run("docker", "compose", "--project-directory", "/opt/homegpt", "up", "--detach")
    until(lambda: box.answers(f"{HERE}:3000"), lambda: box.run("docker", "ps", "--all"))
    assert closed(box)
    shown = [
        box.run("systemctl", "show", "--value", "--property", f"{what}TimestampMonotonic", unit)
        for unit, what in ((UNIT, "ActiveEnter"), ("docker.service", "InactiveExit"))
    ]
    assert 0 < int(shown[0]) <= int(shown[1])
    assert site().changed() == 0


def test_a_firewall_that_is_there_keeps_working(box: Box) -> None:
    box.run("sed", "-i", "s/^IPV6=.*/IPV6=no/", "/etc/default/ufw")
    server = "busybox httpd -p 8600 -h /srv/image/www"
    box.run("sh", "-c", server)
    assert box.answers(f"{HERE}:8600")
    box.run("ufw", "--force", "enable")
    assert not box.answers(f"{HERE}:8600")
    assert closed(box)
    box.run("ufw", "allow", "8600/tcp")
    assert box.answers(f"{HERE}:8600")
    box.run("systemctl", "restart", UNIT)
    assert "8600/tcp" in box.run("ufw", "status")
    assert box.answers(f"{HERE}:8600")
    box.run("ufw", "--force", "disable")
    assert closed(box)


def test_what_can_not_be_tried_is_told(box: Box) -> None:
    script = (ROOT / "roles/docker_host/files/neighbour.py").read_text(encoding="utf-8")
    told = ["python3", "-", '[{"id": "a", "port": 8001, "container": "vllm-a"}]']
    cases: dict[str, list[str]] = {
        "requires root (ansible_become)": [
            "setpriv",
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            *told,
        ],
        "can't create a network namespace": [
            "setpriv",
            "--bounding-set",
            "-sys_admin",
            "--inh-caps",
            "-sys_admin",
            *told,
        ],
        "Operation not permitted": ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", *told],
    }
    for reason, words in cases.items():
        said = box.run(*words, text=script)
        assert '"not_tried": ["a: ' in said and reason in said, said
        assert '"closed": 0' in said and '"open": []' in said
    assert '"closed": 2' in box.run(*told, text=script)
    assert "hgn" not in box.run("ls", "/sys/class/net")


def test_an_engine_that_sees_to_it_itself_needs_none(box: Box, site: Callable[..., Run]) -> None:
    # Only its number is another one: so what `site` ends with fails, as it should.
    box.write(
        "/usr/local/bin/docker", '#!/bin/sh\n/usr/bin/docker "$@" | sed -E "s/^(20\\.10|26\\.1)\\./28.0./"\n', "0755"
    )
    run = site("--check")
    assert run.changed() > 0
    assert there(box)
    assert f"{LOOPBACK} answers neighbours" in site().failure()
    assert not there(box)
    assert site("-e", "docker_host_check_neighbours=false").changed() == 0
    box.run("rm", "/usr/local/bin/docker")
    assert site().changed() > 0
    assert there(box)


def test_teardown_removes_it_with_the_last_who_relies_on_it(box: Box, site: Callable[..., Run]) -> None:
    kept = site(playbook="teardown")
    assert kept.changed() > 0
    assert "other containers are published on loopback: other." in kept.output
    assert there(box)
    assert not box.answers("127.0.0.1:8101")
    box.run("docker", "rm", "--force", "other")
    assert site("--check", playbook="teardown").changed() > 0
    assert there(box)
    assert site(playbook="teardown").changed() > 0
    assert not there(box)
    assert UNIT not in box.run("systemctl", "list-unit-files", "--no-pager")
    assert site(playbook="teardown").changed() == 0
    box.run("docker", "run", "--detach", "--name", "other", "--publish", "127.0.0.1:8101:8000", "tiny:local")
    until(lambda: box.answers("127.0.0.1:8101"), lambda: "the rules are still there", 20)


def test_a_host_that_can_not_have_the_rules_is_refused(box: Box, site: Callable[..., Run]) -> None:
    box.run("mv", "/usr/sbin/nft", "/usr/sbin/nft.away")
    assert "install nftables" in site("--check").output
    box.run("sh", "-c", "cp /etc/os-release /srv; rm /etc/os-release; echo ID=fedora >/etc/os-release")
    failure = site().failure()
    assert "isn't Debian (12 or later) or Ubuntu (22.04 or later), so this role can't install nftables" in failure
    box.run("sh", "-c", "cp /srv/os-release /etc/os-release; mv /usr/sbin/nft.away /usr/sbin/nft")
    # A kernel without what it takes.
    box.write("/usr/local/sbin/nft", "#!/bin/sh\necho Operation not supported >&2\nexit 1\n", "0755")
    refused = site()
    assert refused.status == 2
    assert "The firewall rules against neighbours of this host can't be loaded: failed to validate" in refused.output
    assert "Operation not supported. Update the Docker engine to 28" in refused.output
    box.run("rm", "/usr/local/sbin/nft")
    assert not there(box)


def test_without_systemd_the_rules_are_loaded_and_that_is_told(box: Box, site: Callable[..., Run]) -> None:
    box.run("mount", "-t", "tmpfs", "tmpfs", "/run/systemd")
    first = site()
    assert first.changed() > 0
    assert "the firewall rules are not loaded at boot" in first.output
    assert not box.answers("127.0.0.1:8101")
    assert not box.succeeds("test", "-e", FILES[1])
    assert site().changed() == 0
    assert site(*ABSENT).changed() > 0
    assert not there(box)
    assert box.answers("127.0.0.1:8101")
    box.run("umount", "/run/systemd")
