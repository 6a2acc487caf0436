# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Proofs about what runs on the hosts: the database's quorum, the API server's tokens, and what can be opened where."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from labctl import disks, faults, hosts, inventory, network, paths, production, site
from labctl.errors import LabError
from labctl.podman import in_container, podman
from labctl.process import await_condition, each
from labctl.production import KUBE
from labctl.proofs import Proof, call, demand, topology
from labctl.topology import PREFIX, VERSIONS, Host

_PROBE = Path(__file__).with_name("quorum_probe.py")
_ARCHIVE = "/var/tmp/selftest-backup.tar.gz"


# ---- the database


def _cql(host: Host, *argv: str) -> dict[str, str]:
    done = in_container(
        host.container, ["python3", "-", host.address, *argv], stdin=_PROBE.read_text(encoding="utf-8"), timeout=180
    )
    return dict(json.loads(done.stdout))


def _refused(answers: dict[str, str]) -> set[str]:
    return {what for what, answer in answers.items() if answer.startswith("refused")}


def quorum_is_the_databases_own() -> str:
    here = topology()
    alone, other = here.members[0], here.members[1]
    sites = {host.site.name for host in here.members}
    counts = {name: sum(host.site.name == name for host in here.members) for name in sorted(sites)}
    _cql(alone, "prepare", json.dumps(counts))
    demand(not _refused(_cql(alone, "probe", "before")), "something was refused while all was well")
    for place in here.sites:
        if place != alone.site:
            network.cut(alone.site, place)
    try:
        cut_off, rest = _cql(alone, "probe", "minority"), _cql(other, "probe", "majority")
    finally:
        for place in here.sites:
            network.heal(alone.site, place)
    wide = {"read QUORUM", "write QUORUM", "read ALL", "write ALL"}
    demand(_refused(cut_off) == wide, f"{alone.name}, cut off, answered {cut_off}")
    demand(_refused(rest) == {"read ALL", "write ALL"}, f"{other.name}, with the majority, answered {rest}")
    await_condition("healing", lambda: not _refused(_cql(alone, "probe", "after")), timeout=90, interval=1)
    _cql(alone, "drop")
    return f"{alone.site.name} cut off: QUORUM and ALL refused there, LOCAL_QUORUM served; the others keep QUORUM"


# ---- the API server


def tokens_really_expire() -> str:
    here = topology()
    first = here.members[0]
    seconds = 15
    begin = time.monotonic()
    made = in_container(first.container, [*KUBE, "kubeadm", "token", "create", "--ttl", f"{seconds}s"])
    token = made.stdout.strip()

    def answer(bearer: str) -> str:
        argv = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", "/etc/kubernetes/pki/ca.crt"]
        argv += ["-H", "@-", f"https://{first.address}:6443/api"]
        return in_container(first.container, argv, stdin=f"Authorization: Bearer {bearer}\n").stdout

    # The API server hears of a new token from its own watch, after a cut not at once.
    await_condition("the fresh token to be known", lambda: answer(token) == "200", timeout=seconds, interval=0.2)
    never = answer("abcdef.0123456789abcdef")
    demand(never == "401", f"a token that never was was answered {never}")
    await_condition("the token's end", lambda: answer(token) == "401", timeout=60, interval=0.5)
    took = time.monotonic() - begin
    demand(took >= seconds - 1, f"the token ended after {took:.1f} s already")
    join = ["sdkms-cluster", "join", f"--peer={first.address}", f"--token={token}"]
    joined = in_container(here.by_role("spare")[0].container, join, check=False, timeout=120, secrets=[token])
    demand(joined.returncode != 0, "a join with the expired token was accepted")
    in_container(here.by_role("spare")[0].container, ["sdkms-cluster", "reset", "--delete-data"], timeout=120)
    return f"HTTP 200 while valid, 401 after {took:.0f} s (ttl {seconds} s), 401 for one that never was; join refused"


# ---- clients that go on


def writing_goes_on_through_a_cut() -> str:
    """`lab load --keep-writing` notes what fails while the first member is cut off, and what succeeds elsewhere."""
    here = topology()
    alone = here.members[0]
    loaded = call("load", timeout=300)
    demand(loaded.returncode == 0, f"lab load failed: {loaded.stderr}")
    notes = paths.STATE / "load-writes.jsonl"
    notes.unlink(missing_ok=True)

    def seen() -> list[dict[str, Any]]:
        lines = notes.read_text(encoding="utf-8").splitlines(keepends=True) if notes.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def come(past: int, node: str | None, good: bool) -> bool:
        return any((node or one["node"]) == one["node"] and (one["status"] == 200) == good for one in seen()[past:])

    argv = [str(site.COMMAND), "load", "--keep-writing", "--interval", "0.3"]
    writer = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        await_condition("a first write", lambda: come(0, alone.name, True), timeout=30)
        others = [place for place in here.sites if place != alone.site]
        for place in others:
            network.cut(alone.site, place)
        try:
            past = len(seen())
            await_condition("a failed write", lambda: come(past, alone.name, False), timeout=60)
            past = len(seen())
            await_condition("a write elsewhere", lambda: come(past, here.members[1].name, True), timeout=60)
        finally:
            for place in others:
                network.heal(alone.site, place)
        past = len(seen())
        await_condition("writes as before", lambda: come(past, alone.name, True), timeout=90)
    finally:
        writer.terminate()
        said, _ = writer.communicate(timeout=30)
    written = [one["sequence"] for one in seen() if one["status"] == 200]
    demand(writer.returncode == 0 and f"{len(written)} writes" in said, f"ended with {writer.returncode}: {said}")
    demand(written == sorted(set(written)), f"the sequence is not in order: {written}")
    failed = len(seen()) - len(written)
    return f"{len(written)} writes, {failed} failures noted while {alone.site.name} was cut off, then it went on"


# ---- what can be opened where


class _Backups:
    """Two backups of production: one taken before the DR node ever joined, one while it was a member."""

    def __init__(self) -> None:
        self._made: tuple[Path, Path] | None = None
        self._failure: LabError | None = None

    def get(self) -> tuple[Path, Path]:
        if self._failure is not None:
            raise self._failure
        if self._made is None:
            try:
                self._made = self._make()
            except LabError as error:
                self._failure = error
                raise
        return self._made

    def _make(self) -> tuple[Path, Path]:
        here = topology()
        first, node = here.members[0], here.by_role("dr")[0]
        loaded = call("load", timeout=300)
        demand(loaded.returncode == 0, f"lab load failed: {loaded.stderr}")
        _configure_backup(first, here.landing)
        before = _backup(first, here.landing)
        production.join(first, node)
        production.await_health([node], "plain", timeout=60)
        member = _backup(first, here.landing)
        in_container(first.container, ["sdkms-cluster", "remove", "--node", node.name], timeout=300)
        in_container(node.container, ["sdkms-cluster", "reset", "--delete-data"], timeout=120)
        network.isolate(node, True)
        return before, member


_backups = _Backups()


def _configure_backup(first: Host, landing: Host) -> None:
    password = json.loads((paths.STATE / "secrets.yml").read_text(encoding="utf-8"))["dsm_scp_password"]
    section = f"""
backup:
  cron_schedule: "17 3 * * *"
  backup_mode: snapshot
  scp:
    server_ip: {landing.address}
    authmode: password
    username: {inventory.LANDING_USER}
    password: "{password}"
    path: {inventory.LANDING_PATH}
"""
    in_container(first.container, ["tee", "-a", inventory.CONFIG_PATH], stdin=section)
    production.tool(first, "apply-config", "--config", inventory.CONFIG_PATH)


def _backup(first: Host, landing: Host) -> Path:
    """Makes production back itself up, and returns the archive as it arrived on the landing host, whole."""
    place = disks.mount_point(landing)
    known = {path.name for path in place.iterdir()}
    production.tool(first, "backup-now", timeout=120)

    def arrived() -> Path | None:
        for path in place.iterdir():
            if path.name not in known and path.suffix == ".gz":
                whole = subprocess.run(["gzip", "-t", str(path)], capture_output=True, check=False).returncode == 0
                return path if whole else None
        return None

    return Path(await_condition("a new backup on the landing host", arrived, timeout=120, interval=0.5))


def _opens(archive: Path, node: Host) -> bool:
    """Restores a backup into a fresh cluster on a set-aside node, says whether it opened there, and resets the node."""
    faults.set_fault([node], production.BORN_LABELLED, {"datacenter": node.site.name})
    create = ["sdkms-cluster", "create", f"--self={node.address}/{PREFIX}", "--config", inventory.CONFIG_PATH]
    in_container(node.container, create, timeout=180)
    try:
        podman("cp", str(archive), f"{node.container}:{_ARCHIVE}")
        restore = [f"{inventory.TOOLS}/restore-all", "--archive", _ARCHIVE]
        done = in_container(node.container, restore, check=False, timeout=300)
        code = production.health(node, "plain")
        demand((done.returncode == 0) == (code == 204), f"restore ended with {done.returncode}, health is {code}")
        demand(code == 204 or (code or 0) >= 500, f"health is {code}: {done.stderr}")
        if code == 204:
            proved = call("load", "--prove", node.name, timeout=120)
            demand(proved.returncode == 0, f"nothing could be proved: {proved.stderr}")
            found = json.loads(proved.stdout)
            demand(found["known"] == found["decrypted"] > 0, f"it opened, but production's data is not right: {found}")
        return code == 204
    finally:
        in_container(node.container, ["sdkms-cluster", "reset", "--delete-data"], timeout=120)
        faults.clear([node], production.BORN_LABELLED)


def newer_than_join_opens() -> str:
    _, member = _backups.get()
    demand(_opens(member, topology().by_role("dr")[0]), "a backup taken while the node was a member did not open")
    return f"{member.name} opened, and everything known was decrypted and verified there"


def older_than_join_stays_sealed() -> str:
    before, _ = _backups.get()
    demand(not _opens(before, topology().by_role("dr")[0]), "a backup older than the join was opened")
    return f"{before.name} was restored and stays sealed"


def another_version_stays_sealed() -> str:
    _, member = _backups.get()
    here = topology()
    node = here.by_role("dr")[0]
    hosts.write_node(node, here.profile, 0, VERSIONS[1])
    try:
        demand(not _opens(member, node), f"version {VERSIONS[1]} opened what {here.version} had sealed")
    finally:
        hosts.write_node(node, here.profile, 0, here.version)
    return f"{VERSIONS[1]} cannot open what was sealed for {here.version}"


def another_platform_stays_sealed() -> str:
    _, member = _backups.get()
    here = topology()
    stranger, node = here.by_role("spare")[0], here.by_role("dr")[0]
    hosts.epoch_reset(node)
    opened: dict[str, bool] = {}
    each([stranger, node], lambda host: opened.update({host.name: _opens(member, host)}))
    demand(not opened[stranger.name], "a node that never joined opened the backup")
    demand(not opened[node.name], "the node opened the backup after its platform had changed")
    return "neither a node that never joined nor the same node after an epoch reset opens it"


WITH_PRODUCTION = (
    Proof("quorum", "what happens under a cut is the database's own doing", quorum_is_the_databases_own),
    Proof("keep-writing", "clients write through a cut, and what failed is noted", writing_goes_on_through_a_cut),
    Proof("token", "a join token's end is the API server's own doing", tokens_really_expire),
    Proof("opens", "a backup taken while the node was a member opens there", newer_than_join_opens),
    Proof("older-than-join", "a backup older than the join does not", older_than_join_stays_sealed),
    Proof("other-version", "nor does any on another version", another_version_stays_sealed),
    Proof("other-platform", "nor on another platform", another_platform_stays_sealed),
)
