# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The vendor's plan, step by step, with the product's playbooks; each step gives the evidence that it happened."""

from __future__ import annotations

import calendar
import json
import pathlib
import threading
import time
import typing as t
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import yaml

from rehearsal import secrets, wheelhouse
from rehearsal.commands import CHECKOUT, CommandFailed, Commands, results

PROVE = CHECKOUT / "lab" / "rehearsal" / "prove.yml"
STORE = CHECKOUT / "lab" / "rehearsal" / "store.yml"
DR_NODE = "dr1"
HEALTHY_NODES = 3
PURPOSE = "make rehearsal"
LAB_ALREADY_RUNNING = 3  # exit code of lab/lab up
HOSTS_ANSWER = ("forming", "ready")  # phases of the lab in which every host does


class NotProven(Exception):
    """A step ended without an error, and without what it was to show."""


@dataclass(frozen=True)
class Step:
    """One step. ``action`` returns its evidence."""

    name: str
    title: str
    action: t.Callable[[], t.Any]


class Plan:
    """The steps and what they learn from each other."""

    def __init__(self, commands: Commands, owner: pathlib.Path) -> None:
        self.commands = commands
        self.findings: dict[str, t.Any] = {}
        self.variables: dict[str, t.Any] = {}
        self.disaster_at = 0.0
        self.disaster_clock = 0.0
        self.production: dict[str, t.Any] = {}
        self._owner = owner
        self._searched: list[str] = []
        self._store: Future[bool] | None = None

    def steps(self) -> list[Step]:
        """In the order of the article."""
        return [
            Step("site", "Bring the site up: three data centres, one out-of-region site", self.bring_up),
            Step("load", "Fill production with accounts, keys and ciphertexts", self.load),
            Step("templates", "Check the operator's command templates", self.check_templates),
            Step("configure_backup", "Configure production's backups", self.configure_backup),
            Step("prepare_dr_node", "Let the DR node join, back up, remove it, reset it, set it aside", self.prepare),
            Step("ship_backups", "Take another backup and ship it out of region", self.ship),
            Step("verify_backups", "Read every shipped byte again", self.verify),
            Step("disaster", "Kill production, all of it", self.kill_production),
            Step("fail_over", "Bootstrap on the DR node and restore", self.fail_over),
            Step("expand_cluster", "Let two more nodes join", self.expand),
            Step("open_service", "Open the service under its real name", self.open_service),
            Step("prove", "Decrypt what production encrypted, through every node", self.prove),
            Step("secrets", "Look for secrets in everything that was written", self.look_for_secrets),
        ]

    # The steps

    def bring_up(self) -> t.Any:
        """A fresh lab. One that an earlier rehearsal left is replaced; anybody else's is not touched."""
        if self.lab_is_ours:
            self.commands.lab("down", log="lab-down-leftover")
        self._owner.parent.mkdir(parents=True, exist_ok=True)
        self._owner.write_text("This lab belongs to the rehearsal, which takes it down.\n", encoding="utf-8")
        self.variables["dsm_run_id"] = time.strftime("rehearsal-%Y%m%dT%H%M%SZ", time.gmtime())
        up_is_over = threading.Event()
        meanwhile = ThreadPoolExecutor(max_workers=1)
        self._store = meanwhile.submit(self._prepare_store, self._lab_state(), up_is_over)
        meanwhile.shutdown(wait=False)
        try:
            self.commands.lab("up", "--purpose", PURPOSE, log="lab-up")
        except CommandFailed as failure:
            if failure.rc == LAB_ALREADY_RUNNING:
                self.forget_lab()
            raise
        finally:
            up_is_over.set()
        self.variables["dsm_store_wheelhouse"] = str(wheelhouse.provide())
        return {"wheelhouse": self.variables["dsm_store_wheelhouse"], "run_id": self.variables["dsm_run_id"]}

    def store_is_prepared(self) -> bool:
        """Wait for the store's own software. False: there is none yet, and whoever needs it brings it."""
        return self._store is not None and self._store.result()

    def _prepare_store(self, earlier: dict[str, t.Any] | None, up_is_over: threading.Event) -> bool:
        """The store's own software, as soon as its host answers: production is still being formed then."""
        while not self.hosts_answer(earlier):
            if up_is_over.wait(0.2):
                return False  # the site failed, as its own step says
        variables = {**self.variables, "dsm_store_wheelhouse": str(wheelhouse.provide())}
        self.commands.playbook(str(STORE), variables, log="prepare-store", silent=True)
        return True

    def load(self) -> t.Any:
        """Accounts, groups, apps, keys, and ciphertexts whose plaintext is known."""
        return {"loaded": self.commands.lab("load", log="lab-load").strip().splitlines()[-1:]}

    def check_templates(self) -> t.Any:
        """Binaries and placeholders, without running anything."""
        self._play("check_templates")
        return {"checked": True}

    def configure_backup(self) -> t.Any:
        """`backup:` in config.yaml, applied."""
        evidence = self._play("configure_backup")
        return {"changed": [one["changed"] for one in results(evidence, "backup_config")]}

    def prepare(self) -> t.Any:
        """Join, golden backup, remove, reset, set aside."""
        self.store_is_prepared()
        evidence = self._play("prepare_dr_node", dsm_confirm=DR_NODE)
        joined = _last(results(evidence, "cluster_join"), "joined_at")
        shipped = _last(results(evidence, "backup_ship"), "backups")
        reset = _last(results(evidence, "cluster_reset"), "state")
        seen = _last(results(evidence, "cluster_info"), "cluster")
        self.production = {"fingerprint": seen["cluster"]["fingerprint"], "version": seen["cluster"]["version"]}
        self.findings["production_before"] = self.production
        return {
            "joined_at": joined["joined_at"],
            "golden_backups": [one["id"] for one in shipped["backups"]],
            "after_reset": reset["state"],
            "production": self.production,
        }

    def ship(self) -> t.Any:
        """One more backup, taken after the removal, as every scheduled one will be."""
        evidence = self._play("ship_backups", dsm_backup_now=True)
        shipped = _last(results(evidence, "backup_ship"), "backups")
        return {"backups": [one["id"] for one in shipped["backups"]], "bytes": shipped.get("bytes")}

    def verify(self) -> t.Any:
        """The store proves its bits."""
        verdicts = _last(results(self._play("verify_backups"), "backup_verify"), "verdicts")["verdicts"]
        return {"verdicts": verdicts}

    def kill_production(self) -> t.Any:
        """Power off, without a word, every member and the host that backups were delivered to."""
        self._look_for_secrets_at_production()
        hosts = [*self._hosts("dsm_nodes"), *self._hosts("dsm_backup_sources")]
        self.disaster_at, self.disaster_clock = time.time(), time.monotonic()
        for host in hosts:
            self.commands.lab("power", "cut", host, log=f"power-cut-{host}")
        return {"power_cut": hosts, "at": self.disaster_at}

    def fail_over(self) -> t.Any:
        """Create, restore, prove the canary."""
        evidence = self._play("fail_over", dsm_confirm=DR_NODE)
        restored = _last(results(evidence, "restore"), "restored_id")
        canary = _last(results(evidence, "canary"), "proofs")
        point = self.disaster_at - _moment(canary["written_at"])
        self.findings["recovery_point_seconds"] = round(point, 1)
        return {"restored": restored["restored_id"], "canary": _canary(DR_NODE, canary)}

    def expand(self) -> t.Any:
        """Two spare nodes join: three nodes survive the loss of one."""
        evidence = self._play("expand_cluster")
        joined = [one["joined_at"] for one in results(evidence, "cluster_join") if one.get("state") == "member"]
        return {"joined_at": joined}

    def open_service(self) -> t.Any:
        """The gate of the service: production is dead, the name leads here, the canary answers through it."""
        evidence = self._play("fail_over", dsm_confirm=DR_NODE, dsm_open_service=True)
        return {"through_the_name": _canary("the service name", _last(results(evidence, "canary"), "proofs"))}

    def prove(self) -> t.Any:
        """Every canary and every known ciphertext, through every node; and who is in the cluster now."""
        evidence = self.commands.playbook(str(PROVE), self.variables, log="prove")
        cluster = _last(results(evidence, "cluster_info"), "cluster")["cluster"]
        health = {
            one["name"]: one["state"] for one in _last(results(evidence, "health_info"), "endpoints")["endpoints"]
        }
        canaries = [
            {**_canary(entry["host"], entry["result"]), "proved": all(entry["result"]["proofs"].values())}
            for entry in evidence
            if entry.get("action") == "kmsops.fortanix_dsm.canary" and entry["kind"] == "ok"
        ]
        nodes = [
            {
                "name": node["name"],
                "ready": node["ready"],
                "datacenter": node["datacenter"],
                "health": health.get(node["name"]),
            }
            for node in cluster["nodes"]
        ]
        known = json.loads(self.commands.lab("load", "--prove", *health, log="decrypt"))
        self.findings["cluster_after"] = {"fingerprint": cluster["fingerprint"], "nodes": nodes}
        self.findings["canaries"] = canaries
        self.findings["known_ciphertexts"] = {"known": known["known"], "decrypted": known["decrypted"]}
        self.findings["recovery_time_seconds"] = round(time.monotonic() - self.disaster_clock, 1)
        healthy = [node for node in nodes if node["ready"] and node["health"] == "full"]
        if len(healthy) < HEALTHY_NODES:
            raise NotProven(f"{len(healthy)} healthy node(s) afterwards instead of {HEALTHY_NODES}: {nodes}")
        if len(canaries) < HEALTHY_NODES or not all(canary["proved"] for canary in canaries):
            raise NotProven(f"not every canary is proved through every node: {canaries}")
        if not known["known"] or known["decrypted"] != known["known"]:
            raise NotProven(f"{known['decrypted']} of {known['known']} known ciphertexts could be decrypted")
        return {"nodes": nodes, "canaries": canaries, "known_ciphertexts": known}

    def look_for_secrets(self) -> t.Any:
        """No password, API key or token in a report, log, record or process list."""
        texts = secrets.planted(self.commands.secrets)
        if not texts:
            raise NotProven("the lab planted no secret, so nothing could have been found")
        files, found = secrets.in_files(self.commands.logs.parent, texts)
        hosts = [*self._hosts("dsm_dr_nodes"), *self._hosts("dsm_spare_nodes"), *self._hosts("dsm_store")]
        found += secrets.on_hosts(hosts, texts)
        if found:
            raise NotProven(f"secrets stand in {', '.join(found)}")
        return {"secrets": len(texts), "files": files, "hosts": [*self._searched, *hosts], "found": found}

    def _look_for_secrets_at_production(self) -> None:
        """The same on the hosts that are about to lose their power."""
        self._searched = [*self._hosts("dsm_nodes"), *self._hosts("dsm_backup_sources")]
        found = secrets.on_hosts(self._searched, secrets.planted(self.commands.secrets))
        if found:
            raise NotProven(f"secrets stand in {', '.join(found)}")

    # Helpers

    @property
    def lab_is_ours(self) -> bool:
        """Whether a rehearsal brought the lab up (this one, or one that died), and no other has taken its place."""
        if not self._owner.exists():
            return False
        state = self._lab_state()
        return state is None or _is_of_a_rehearsal(state)

    def hosts_answer(self, earlier: dict[str, t.Any] | None) -> bool:
        """Whether the lab that is coming up now, not an ``earlier`` one, has come so far."""
        state = self._lab_state()
        if state is None or not _is_of_a_rehearsal(state) or state.get("phase") not in HOSTS_ANSWER:
            return False
        return earlier is None or state.get("owner_pid") != earlier.get("owner_pid")

    def _lab_state(self) -> dict[str, t.Any] | None:
        """What the lab says of itself; None where there is none, or one that was left half-made."""
        try:
            state = json.loads((self.commands.secrets.parent / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return state if isinstance(state, dict) else None

    def forget_lab(self) -> None:
        """The lab is down, or it never was ours."""
        self._owner.unlink(missing_ok=True)

    def _play(self, name: str, **variables: t.Any) -> list[dict[str, t.Any]]:
        return self.commands.playbook(f"kmsops.fortanix_dsm.{name}", {**self.variables, **variables}, log=name)

    def _hosts(self, group: str) -> list[str]:
        with open(CHECKOUT / "build" / "lab" / "inventory.yml", encoding="utf-8") as stream:
            return sorted(yaml.safe_load(stream)["all"]["children"][group]["hosts"])


def _is_of_a_rehearsal(state: dict[str, t.Any]) -> bool:
    return bool(state.get("purpose") == PURPOSE and state.get("checkout") == str(CHECKOUT))


def _last(found: list[dict[str, t.Any]], key: str) -> dict[str, t.Any]:
    """The last result that has the key filled."""
    filled = [one for one in found if one.get(key)]
    if not filled:
        raise NotProven(f"no result of this step carries {key}")
    return filled[-1]


def _canary(where: str, result: dict[str, t.Any]) -> dict[str, t.Any]:
    return {
        "through": where,
        "sequence": result["sequence"],
        "written_at": result["written_at"],
        "proofs": result["proofs"],
    }


def _moment(text: str) -> float:
    """An ISO time in UTC as seconds since the epoch."""
    return calendar.timegm(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S"))
