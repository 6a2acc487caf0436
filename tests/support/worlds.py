# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small world for every module: files in a temporary directory, commands that answer and have effects, an API.

A world is made so that its module has something to do. What it watches is all that the module could touch.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import json
import os
import shutil
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from dsm_api import HOST, VERSION, Site, make_certificates
from fake_node import CREATED, commands, kubeconfig, nodes_json, nodetool_status, pods_json, witness
from many_backups import CLUSTER, FINGERPRINT, Filler
from module_run import Answer, FakeOperations, FakeRunner, run

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils import _creating, _isolation, _joining, _module, _node
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import spki
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.membership import Probe
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._parts import put
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._store import ClusterStore
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._verify import VerifyRequest, verify

PRODUCTION = hashlib.sha256(b"production").hexdigest()
MEMBERS = {"dc1-n1": "192.0.2.11", "dc2-n1": "198.51.100.11", "dc3-n1": "203.0.113.31"}
DR = {"dr1": "203.0.113.11"}
SEALED = {"node": "dr1", "platform_id": "SN-1", "version": VERSION, "joined_at": "2026-11-21T00:00:00Z"}


class World:
    """Base: ``params`` makes the module act, ``refused`` changes them so that it refuses."""

    module = ""
    here = "dr1"
    refused: dict[str, Any] = {}

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.state = root / "state"
        self.state.mkdir()
        self.operations = FakeOperations(effect=self.effect)
        self.answers: dict[tuple[str, ...], Any] = {}
        self.acted: list[list[str]] = []
        self.params: dict[str, Any] = {}
        self._redirect(monkeypatch)
        self.make()

    def make(self) -> None:
        """Sets the scene."""

    def effect(self, name: str, argv: list[str]) -> None:
        """What a detached command does to this world."""

    def close(self) -> None:
        """Ends what :meth:`make` started."""

    def call(self, check: bool = False, **options: Any) -> Answer:
        """Runs the module; an option ``None`` is left out."""
        params = {key: value for key, value in {**self.params, **options}.items() if value is not None}
        runner = FakeRunner()
        runner.answers = self.answers  # shared, so that an effect may change what is answered
        answer = run(self.module, params, check=check, runner=runner, operations=self.operations)
        self.acted.extend(action["argv"] for action in runner.actions)
        return answer

    def observe(self) -> Any:
        """Everything that could be touched: files with modes, commands that act, detached operations."""
        files = {
            str(path.relative_to(self.root)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
            for path in sorted(self.root.rglob("*"))
            if not path.name.endswith(".lock")
        }
        return files, list(self.acted), list(self.operations.started)

    def _redirect(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """No path outside of the temporary directory, no name or connection of the machine that tests run on."""
        marker = str(self.state / "trial.json")
        monkeypatch.setattr(_node, "TRIAL_MARKER", marker)
        monkeypatch.setattr(_node, "OPENED_MARKER", str(self.state / "opened.json"))
        monkeypatch.setattr(_node.read_marker, "__defaults__", (marker,))
        monkeypatch.setattr(_node.write_marker, "__defaults__", (marker,))
        monkeypatch.setattr(_creating, "RUNS", str(self.state / "runs"))
        monkeypatch.setattr(_module.socket, "gethostname", lambda: self.here)
        for user in (_isolation, _joining):
            monkeypatch.setattr(user, "try_connection", self._connection)
        monkeypatch.setattr(_isolation, "resolve", lambda name: [])

    def _connection(self, address: str, port: int, timeout: float = 3.0) -> Probe:
        """Only members of production and of loopback answer in these worlds, and production not to a DR host."""
        reached = address == "127.0.0.1" or (self.module == "cluster_join" and address in MEMBERS.values())
        return Probe(address, port, "open" if reached else "silent")

    def certificates(self) -> str:
        """Makes a CA in this world and returns its PEM."""
        directory = self.root / "ca"
        directory.mkdir(exist_ok=True)
        make_certificates(directory)
        return (directory / "ca.crt").read_text()

    def testimony(self, *witnesses: tuple[str, dict[str, Any]]) -> dict[str, Any]:
        """What an action plugin would have gathered."""
        folded = {"production_fingerprint": PRODUCTION, "members": [{"name": name} for name in MEMBERS]}
        return {"now": "", "nonce": "n", "witnesses": dict(witnesses), "ledger": {"folded": folded}}


class BackupConfig(World):
    """A node with a config.yaml and a command that takes it up."""

    module = "backup_config"
    password = "Tr0ub4dor-and-3"
    scp = {"server_ip": "192.0.2.50", "username": "dsm", "password": password, "path": "/home/dsm/backup"}
    backup = {"cron_schedule": "10 * * * *", "backup_mode": "snapshot", "scp": scp}
    rest = "cluster:\n  name: acme  # keep\n"
    refused = {"backup": {"cron_schedule": "never"}}

    def make(self) -> None:
        self.path = self.root / "config.yaml"
        self.path.write_text(self.rest)
        self.path.chmod(0o600)
        self.taken_up: list[str] = []
        self.params = {
            "path": str(self.path),
            "state_dir": str(self.state),
            "backup": self.backup,
            "apply_argv": ["apply-config", "--config", "{config}"],
        }

    def effect(self, name: str, argv: list[str]) -> None:
        self.taken_up.append(Path(argv[2]).read_text())


class BackupRun(World):
    """A member of a healthy cluster that a DR node has joined."""

    module = "backup_run"
    here = "dc1-n1"
    nodes = {"dc1-n1": "192.0.2.11", "dc2-n1": "198.51.100.11", "dr1": "203.0.113.11"}
    refused = {"argv": None}

    def make(self) -> None:
        self.answers = commands(self.here, self.nodes)
        self.operations.now = "2026-11-22T00:10:00Z"
        self.params = {"kubeconfig": kubeconfig(self.root / "admin.conf", self.certificates()), "argv": ["backup-now"]}


class Restore(World):
    """A DR host with its own fresh single-node cluster, a staged backup, and a service that can be asked."""

    module = "restore"
    refused = {"host_role": "production"}
    steps = [
        {"name": "stop backend", "argv": ["stop-backend"]},
        {"name": "load", "argv": ["load-database", "--from", "{archive}", "--in={directory}"]},
        {"name": "start backend", "argv": ["start-backend"]},
    ]

    def make(self) -> None:
        (self.root / "ca").mkdir()
        self.site = Site(self.root / "ca").open()
        pem = Path(self.site.ca_path).read_text()
        self.nodes = dict(DR)
        self.serial = "SN-1"
        self.kubeconfig = kubeconfig(self.root / "admin.conf", pem)
        self.fingerprint = spki.fingerprint(pem)
        self.marker: dict[str, Any] | None = {
            "schema": 1, "run_id": "run-1", "host": "dr1", "fingerprint": self.fingerprint,
        }  # fmt: skip
        self.backup = self.root / "backup.tar.gz"
        self.backup.write_bytes(b"rows" * 1000)
        folded = {"production_fingerprint": PRODUCTION, "members": []}
        self.ledger: dict[str, Any] | None = {"folded": folded, "cluster_id": PRODUCTION[:16]}
        self.witnesses = {"dc1-n1": witness("dc1-n1", PRODUCTION, list(MEMBERS))}
        self.params = {
            "steps": self.steps,
            "confirm": "dr1",
            "host_role": "dr",
            "expected_addresses": ["203.0.113.11"],
            "expected_serial": "SN-1",
            "run_id": "run-1",
            "kubeconfig": self.kubeconfig,
            "isolation": {"production_endpoints": [{"address": "192.0.2.11", "port": 443}]},
            "api_address": "127.0.0.1",
            "api_port": self.site.port,
            "api_host": HOST,
            "ca_path": self.site.ca_path,
            "data_path": str(self.root),
            "health_timeout": 0.3,
            "state_dir": str(self.state),
        }
        self.set_scene()

    def set_scene(self) -> None:
        """Puts what the attributes say where the module looks for it."""
        if self.marker is not None:
            (self.state / "trial.json").write_text(json.dumps(self.marker))
        self.answers = commands("dr1", self.nodes, self.serial)
        self.params["testimony"] = {"now": "", "nonce": "n", "witnesses": self.witnesses, "ledger": self.ledger}
        self.params["candidates"] = [self.candidate()]

    def call(self, check: bool = False, **options: Any) -> Answer:
        self.set_scene()
        return super().call(check, **options)

    def candidate(self, **changes: Any) -> dict[str, Any]:
        found = {
            "id": "b1",
            "path": str(self.backup),
            "sha256": hashlib.sha256(self.backup.read_bytes()).hexdigest() if self.backup.is_file() else "",
            "version": VERSION,
            "snapshot_started": "2026-11-22T00:00:00Z",
            "sealed_for": [SEALED],
            "verified": True,
        }
        return {**found, **changes}

    @property
    def journal(self) -> dict[str, Any]:
        return dict(json.loads((self.state / "restore.json").read_text()))

    def write_journal(self, **changes: Any) -> None:
        names = [step["name"] for step in self.steps]
        entry = {"candidate": "b1", "fingerprint": self.fingerprint, "steps": names, "done": 0, "state": "running"}
        (self.state / "restore.json").write_text(json.dumps({**entry, "step": None, **changes}))

    @property
    def ran(self) -> list[str]:
        return [name for name, _argv in self.operations.started]

    def close(self) -> None:
        self.site.close()


class HealthInfo(World):
    """One healthy endpoint."""

    module = "health_info"
    refused = {"ca_path": "/nonexistent.pem"}

    def make(self) -> None:
        (self.root / "ca").mkdir()
        self.site = Site(self.root / "ca").open().with_app()
        self.params = {
            "endpoints": [dict(self.site.endpoint(), name="n1")],
            "ca_path": self.site.ca_path,
            "api_key": self.site.api_key,
        }

    def observe(self) -> Any:
        """Rows too, but for the audit log and sessions, which every log-in writes."""
        rows = {key: row for key, row in self.site.store.rows.items() if key[0] == "security_objects"}
        return super().observe(), rows

    def close(self) -> None:
        self.site.close()


class CanaryPresent(HealthInfo):
    """An app that may make keys."""

    module = "canary"
    refused = {"reference_time": "yesterday"}
    state_option = "present"

    def make(self) -> None:
        super().make()
        self.params = {
            "endpoint": self.site.endpoint(),
            "ca_path": self.site.ca_path,
            "api_key": self.site.api_key,
            "state": self.state_option,
        }


class CanaryWritten(CanaryPresent):
    state_option = "written"


class ClusterInfo(World):
    """A member of a healthy cluster."""

    module = "cluster_info"
    here = "dc1-n1"
    refused = {"ca_path": "/nonexistent.pem"}

    def make(self) -> None:
        self.nodes = dict(MEMBERS)
        self.datacenter: str | None = None
        (self.root / "etc").mkdir()
        pem = self.certificates()
        self.fingerprint = spki.fingerprint(pem)
        self.answers = commands(self.here, self.nodes)
        for name, text in (("nodes", self._nodes), ("pods", lambda _argv: pods_json(self.nodes))):
            self.answers[("kubectl", "get", name)] = text
        for number in range(4):
            pod = ("kubectl", "exec", "-n", "default", f"cassandra-{number}", "--", "nodetool", "status")
            self.answers[pod] = lambda _argv: nodetool_status(self.nodes)
        self.params = {
            "kubeconfig": kubeconfig(self.root / "etc" / "admin.conf", pem),
            "state_paths": [str(self.root / "etc")],
        }

    def _nodes(self, _argv: list[str]) -> str:
        return nodes_json(self.nodes, self.datacenter)


class ClusterWaitFor(ClusterInfo):
    """Waits for what is there already."""

    module = "cluster_wait_for"
    refused = {"condition": "api_up"}

    def make(self) -> None:
        super().make()
        del self.params["state_paths"]
        self.params.update(condition="member_ready", node="dc2-n1", timeout=1)


class DatacenterLabel(ClusterInfo):
    """Three nodes without labels, whose database is in the data centre that they will be labelled with."""

    module = "datacenter_label"
    refused = {"labels": {"nobody": "dc1"}}

    def make(self) -> None:
        super().make()
        del self.params["state_paths"]
        self.params["labels"] = dict.fromkeys(MEMBERS, "dc1")
        self.params["accept"] = ["RELABEL_DATA", "FIRST_LABELS", "DATA_PRESENT"]
        self.answers[("kubectl", "label", "node")] = self._label

    def _label(self, argv: list[str]) -> str:
        self.datacenter = argv[4].split("=")[1]
        return f"node/{argv[3]} labeled\n"


class JoinToken(World):
    """A control plane that lists no token yet."""

    module = "join_token"
    here = "dc1-n1"
    token = "fc853c.6fd193ba34870ddf"
    refused: dict[str, Any] = {"state": "absent", "token": token}

    def make(self) -> None:
        self.tokens: list[dict[str, Any]] = []
        self.answers = {
            ("kubeadm", "token", "list"): lambda _argv: "\n".join(json.dumps(one) for one in self.tokens),
            ("kubeadm", "token", "create"): self._create,
            ("kubeadm", "token", "delete"): self._delete,
        }
        self.params = {"kubeconfig": "/etc/kubernetes/admin.conf", "run_id": "run-1"}

    def call(self, check: bool = False, **options: Any) -> Answer:
        if options.get("state") == "absent" and not self.tokens:
            self.add(description="somebody else's")
        return super().call(check, **options)

    def add(self, **changes: Any) -> None:
        soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=5)
        found = {"kind": "BootstrapToken", "token": self.token, "usages": ["authentication", "signing"]}
        self.tokens.append({**found, "expires": soon.strftime("%Y-%m-%dT%H:%M:%SZ"), **changes})

    def _create(self, argv: list[str]) -> str:
        self.add(description=argv[argv.index("--description") + 1])
        return self.token + "\n"

    def _delete(self, argv: list[str]) -> str:
        self.tokens = [one for one in self.tokens if not one["token"].startswith(argv[3])]
        return "bootstrap token deleted\n"


class JoinTokenAbsent(JoinToken):
    """A token of this run, to be deleted."""

    refused = {"token": "aaaaaa.6fd193ba34870ddf"}

    def make(self) -> None:
        super().make()
        self.add(description="kmsops.fortanix_dsm run=run-1")
        self.add(description="somebody else's", token="aaaaaa.6fd193ba34870ddf")
        self.params["state"] = "absent"


class ClusterJoin(ClusterInfo):
    """A clean DR host beside a cluster that it may join."""

    module = "cluster_join"
    here = "dr1"
    refused = {"token": "FC853C.6fd193ba34870ddfGO"}

    def make(self) -> None:
        super().make()
        self.answers.update(commands("dr1", DR))
        self.answers[("kubectl", "get", "nodes")] = self._nodes
        self.answers[("kubectl", "get", "pods")] = lambda _argv: pods_json(self.nodes)
        pod = ("kubectl", "exec", "-n", "default", "cassandra-0", "--", "nodetool", "status")
        self.answers[pod] = lambda _argv: nodetool_status(self.nodes)
        self.conf = Path(self.params["kubeconfig"]).read_text()
        Path(self.params["kubeconfig"]).unlink()
        self.params.update(peer="192.0.2.11", token=JoinToken.token, own_version=VERSION, cluster_version=VERSION)
        self.params["timeout"] = 5

    def effect(self, name: str, argv: list[str]) -> None:
        self.nodes["dr1"] = "203.0.113.11"
        Path(self.params["kubeconfig"]).write_text(self.conf)


class ClusterRemove(ClusterInfo):
    """A DR node that has been a member and may leave."""

    module = "cluster_remove"
    refused = {"node": "dc1-n1"}

    def make(self) -> None:
        super().make()
        self.nodes.update(DR)
        del self.params["state_paths"]
        self.params.update(
            node="dr1",
            confirm="dc1-n1",
            expected_addresses=["192.0.2.11"],
            testimony=self.testimony(("dc1-n1", witness("dc1-n1", self.fingerprint, list(self.nodes)))),
            timeout=5,
        )

    def effect(self, name: str, argv: list[str]) -> None:
        del self.nodes["dr1"]


class ClusterReset(ClusterInfo):
    """The end of a drill: a trial cluster on a DR host."""

    module = "cluster_reset"
    here = "dr1"
    refused = {"because": "removed"}

    def make(self) -> None:
        super().make()
        self.nodes = dict(DR)
        self.answers.update({key: value for key, value in commands("dr1", DR).items() if key[0] != "kubectl"})
        marker = {"schema": 1, "run_id": "run-1", "host": "dr1", "fingerprint": self.fingerprint}
        (self.state / "trial.json").write_text(json.dumps(dict(marker, production_fingerprint=PRODUCTION)))
        self.params.update(
            because="own_trial",
            confirm="dr1",
            host_role="dr",
            expected_addresses=["203.0.113.11"],
            testimony=self.testimony(("dc1-n1", witness("dc1-n1", PRODUCTION, list(MEMBERS)))),
        )

    def effect(self, name: str, argv: list[str]) -> None:
        Path(self.params["kubeconfig"]).unlink(missing_ok=True)


class ClusterCreate(ClusterInfo):
    """A clean and isolated DR host with the escrowed configuration."""

    module = "cluster_create"
    here = "dr1"
    refused = {"isolation": {"production_endpoints": [{"address": "127.0.0.1"}]}}

    def make(self) -> None:
        super().make()
        self.nodes = dict(DR)
        self.answers.update({key: value for key, value in commands("dr1", DR).items() if key[0] != "kubectl"})
        self.conf = Path(self.params["kubeconfig"]).read_text()
        Path(self.params["kubeconfig"]).unlink()
        config = self.root / "config.yaml"
        config.write_text("cluster:\n  name: acme\n" + 'backup:\n  cron_schedule: "10 * * * *"\n')
        self.params.update(
            self_address="203.0.113.11/24",
            config=str(config),
            confirm="dr1",
            host_role="dr",
            expected_addresses=["203.0.113.11"],
            isolation={"production_endpoints": [{"address": "192.0.2.11"}]},
            run_id="run-1",
            testimony=self.testimony(("dc1-n1", witness("dc1-n1", PRODUCTION, list(MEMBERS)))),
            timeout=5,
        )

    def effect(self, name: str, argv: list[str]) -> None:
        Path(self.params["kubeconfig"]).write_text(self.conf)


class BackupShip(World):
    """A drop box with one delivery, and an empty store."""

    module = "backup_ship"
    here = "store"
    refused = {"store": "/nonexistent/store"}

    def make(self) -> None:
        self.store = self.root / "store"
        self.store.mkdir(mode=0o700)
        drop = self.root / "drop"
        drop.mkdir()
        archive = drop / "sdkms_backup.tar.gz"
        with tarfile.open(archive, "w:gz") as packed:
            entry = tarfile.TarInfo("n1/rows.db")
            entry.size = 4000
            packed.addfile(entry, io.BytesIO(b"rows" * 1000))
        long_ago = time.time() - 600
        os.utime(archive, (long_ago, long_ago))
        self.params = {
            "store": str(self.store),
            "cluster": {"fingerprint": PRODUCTION, "members": [{"name": "dc1-n1"}], "version": VERSION},
            "sources": [{"path": f"{drop}/*"}],
            "sealed_for": [dict(SEALED, member=True)],
            "run_id": "run-1",
            "quiet": 1,
            "patience": 0,
        }


class _WithBackup(World):
    """A store that holds one backup."""

    here = "store"

    def make(self) -> None:
        shipping = BackupShip.__new__(BackupShip)
        shipping.__dict__.update(self.__dict__)
        BackupShip.make(shipping)
        shipped = BackupShip.call(shipping).result
        if not shipped.get("changed"):
            raise RuntimeError(str(shipped))
        self.acted.clear()
        self.store = shipping.store
        self.params = {"store": str(self.store)}


class BackupInfo(_WithBackup):
    module = "backup_info"
    refused = {"store": "/nonexistent/store"}


class BackupVerify(_WithBackup):
    module = "backup_verify"
    refused = {"ids": ["no-such-backup"]}


class BackupPrune(World):
    """A store with more backups than are wanted, of which one failed, and an unfinished transfer."""

    module = "backup_prune"
    here = "store"
    refused = {"keep": 0}

    def make(self) -> None:
        self.store = self.root / "store"
        filler = Filler(self.store, 5)
        for verdict in ("ok", "failed", "ok", "ok", "ok"):
            filler.publish(verdict, sealed=())
        filler.close()
        unfinished = filler.path / "incoming" / "00000009-20260101T000000Z"
        unfinished.mkdir(parents=True)
        (unfinished / "journal.jsonl").write_text("")
        os.utime(unfinished / "journal.jsonl", (1, 1))
        self.params = {"store": str(self.store), "keep": 2, "max_copies": 3, "run_id": "run-1"}


class BackupReplicate(World):
    """Two disks: on one a store with backups and a bundle, on the other an older copy of it with a bad backup."""

    module = "backup_replicate"
    here = "store2"
    refused: dict[str, Any] = {"other": {"path": "/nonexistent/store"}}

    def make(self) -> None:
        first, second = self.root / "disk1", self.root / "disk2"
        filler = Filler(first, 5)
        filler.publish(sealed=())
        damaged = filler.publish(sealed=())
        filler.close()
        shutil.copytree(first, second)
        filler.publish(sealed=())
        filler.close()
        (second / CLUSTER / "backups" / damaged / "data" / "backup.bin").write_bytes(b"no more")
        verify(ClusterStore.require(str(second)), VerifyRequest(ids=[damaged]))
        bundle = self.root / "config.yaml.cms"
        bundle.write_bytes(b"-----BEGIN CMS-----\nMIIB\n-----END CMS-----\n")
        put(ClusterStore.require(str(first)), "config", str(bundle), FINGERPRINT, "", True)
        self.params = {"store": str(second), "other": {"path": str(first), "name": "disk1"}, "run_id": "run-1"}


class BackupPart(_WithBackup):
    module = "backup_part"
    refused = {"src": "/dev/null"}

    def make(self) -> None:
        super().make()
        bundle = self.root / "config.yaml.cms"
        bundle.write_bytes(b"-----BEGIN CMS-----\nMIIB\n-----END CMS-----\n")
        self.params.update(part="config", src=str(bundle), run_id="run-1")


class BackupPin(_WithBackup):
    module = "backup_pin"
    refused = {"id": "no-such-backup"}

    def make(self) -> None:
        super().make()
        (backup,) = (self.store / PRODUCTION[:16] / "backups").iterdir()
        self.params.update(id=backup.name, who="j.doe", why="before the upgrade")


class SourceClean(World):
    """A landing host with three deliveries, all of them in the store."""

    module = "source_clean"
    here = "landing"
    refused = {"older_than": 5}

    def make(self) -> None:
        drop = self.root / "drop"
        drop.mkdir()
        backups = []
        for number in (1, 2, 3):
            path = drop / f"backup_{number}"
            path.write_bytes(b"rows" * number)
            os.utime(path, (1000.0, 1000.0))
            sha256 = hashlib.sha256(b"rows" * number).hexdigest()
            file = {"path": path.name, "size": 4 * number, "mtime": 1000, "sha256": sha256}
            source = {"host": "192.0.2.50", "path": str(path), "layout": "single"}
            found = {"id": f"b{number}", "sequence": number, "published": True, "verified": True}
            backups.append({**found, "source": source, "files": [file]})
        self.params = {"backups": backups, "host": "192.0.2.50", "root": str(drop), "older_than": 86400}


class SourceHash(World):
    """A landing host with one delivery."""

    module = "source_hash"
    here = "landing"
    refused = {"files": [{"path": "relative", "size": 1, "mtime": 1}]}

    def make(self) -> None:
        path = self.root / "backup_1"
        path.write_bytes(b"rows")
        os.utime(path, (1000.0, 1000.0))
        self.params = {"files": [{"path": str(path), "size": 4, "mtime": 1000}]}


class LedgerRead(_WithBackup):
    module = "ledger"
    refused = {"state": "verified", "cluster_id": "0" * 16}


class LedgerAppended(_WithBackup):
    module = "ledger"
    refused = {"kind": "restored", "data": {}}

    def make(self) -> None:
        super().make()
        self.params.update(
            state="appended",
            kind="joined",
            subject="dr1",
            data={"joined_at": CREATED, "version": VERSION, "platform_id": "SN-1"},
            run_id="run-1",
        )


WORLDS: list[type[World]] = [
    BackupConfig, BackupInfo, BackupPart, BackupPin, BackupPrune, BackupReplicate, BackupRun, BackupShip, BackupVerify,
    CanaryPresent, CanaryWritten, ClusterCreate, ClusterInfo, ClusterJoin, ClusterRemove, ClusterReset, ClusterWaitFor,
    DatacenterLabel, HealthInfo, JoinToken, JoinTokenAbsent, LedgerAppended, LedgerRead, Restore, SourceClean,
    SourceHash,
]  # fmt: skip
