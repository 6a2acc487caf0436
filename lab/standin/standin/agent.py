# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kubelet and the vendor's cron do on a member.

Every 10 s: renew the Node's lease, post Node and Pod status, remember who the members are (for the next boot), take up
the cluster's ``config.yaml``. Every minute: fire the backups that are due; the CronJob object decides which member
does. A host whose Node object is gone was removed while it was away: it stops everything and stays out.
"""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
import time
from typing import Any

from standin import backup, cassandra, cron, kube, membership, node

HEARTBEAT_S = 10.0
PROBE_S = 5.0
PROBE_UNREADY_S = 1.0
CONFIG = node.STATE_DIR / "config.yaml"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
CRONJOBS = "/apis/batch/v1/namespaces/default/cronjobs"
JOBS = {"backup": "sdkms-backup", "auditBackup": "sdkms-audit-backup"}


# -- cron -------------------------------------------------------------------------------------------------------------
def schedules(config_text: str) -> dict[str, str]:
    """Return the schedules of ``backup`` and ``auditBackup`` in a ``config.yaml``; none when they are not there."""
    document = backup.parse_config(config_text)
    return {section: str(document[section]["cron_schedule"]) for section in JOBS if document.get(section)}


# -- the agent --------------------------------------------------------------------------------------------------------
class Agent:
    """One member's agent."""

    def __init__(self, cfg: node.NodeConfig) -> None:
        self.cfg = cfg
        self.since = node.utc_now()
        self.posted: dict[str, bool] = {}
        self.minute = _this_minute()
        self.children: list[subprocess.Popen[bytes]] = []

    def cluster(self) -> kube.Cluster:
        """Return the cluster through this host's apiserver or, while that one is down, through another member's."""
        for address in [self.cfg.address, *(member["address"] for member in cassandra.known_members())]:
            if kube.apiserver_ready(address):
                return kube.at(address)
        raise OSError("no apiserver answers")

    def probes(self) -> dict[str, bool]:
        """Return which pods of this host are ready."""
        state = node.read_state()
        pods = {f"sdkms-{self.cfg.name}": self._backend_healthy()}
        if "ordinal" in state:
            pods[f"cassandra-{state['ordinal']}"] = cassandra.serves(self.cfg.address)
        return pods

    def _backend_healthy(self) -> bool:
        try:
            answer = kube.Http(self.cfg.address, 443, ca=None, timeout=3.0).open("GET", "/sys/v1/health")
        except (kube.ApiError, OSError):
            return False
        answer.close()
        return answer.status < 300

    def heartbeat(self, cluster: kube.Cluster) -> None:
        """Renew the lease, post the Node's status, remember the members and the configuration."""
        own = cluster.get(f"/api/v1/nodes/{self.cfg.name}")
        if own is None:
            if node.is_member():
                print(f"stand-in agent: {self.cfg.name} is no node of this cluster any more; leaving", flush=True)
                membership.leave_cluster()
            return
        spec = {"holderIdentity": self.cfg.name, "leaseDurationSeconds": 40, "renewTime": kube.micro_now()}
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self.cfg.name, "namespace": "kube-node-lease"},
            "spec": spec,
        }
        if not cluster.create(LEASES, lease):
            cluster.merge(f"{LEASES}/{self.cfg.name}", {"spec": spec})
        cluster.merge(f"/api/v1/nodes/{self.cfg.name}/status", {"status": kube.node_status(self.cfg, True, self.since)})
        text = cluster.read_config()
        if text is not None and (not CONFIG.exists() or CONFIG.read_text(encoding="utf-8") != text):
            sync_cron_jobs(cluster, text)
            node.write_file(CONFIG, text.encode("utf-8"))

    def follow_stateful_set(self, cluster: kube.Cluster) -> None:
        """Restart the database under the labelled data centre once the StatefulSet's environment says ``ignore_dc``."""
        options = cassandra.jvm_extra_opts(cluster.get(kube.STATEFUL_SET_PATH))
        state = node.read_state()
        datacenter = state.get("datacenter")
        if cassandra.IGNORE_DC in options.split():
            datacenter = cluster.datacenters().get(self.cfg.name) or datacenter
        if not node.is_member() or options == state.get("jvm_extra_opts", ""):
            return
        print(f"stand-in agent: database restarts with {options!r} in {datacenter}", flush=True)
        with cluster.lock("database", self.cfg.name):
            node.write_state({"jvm_extra_opts": options, "datacenter": datacenter})
            node.systemctl("restart", "standin-cassandra")
            cassandra.wait_serving(self.cfg, 120)
            set_replication(cluster, self.cfg)

    def post_pods(self, cluster: kube.Cluster, probes: dict[str, bool]) -> None:
        """Post the status of the pods of this host."""
        for pod in cluster.pods():
            name = pod["metadata"]["name"]
            if pod["spec"].get("nodeName") != self.cfg.name or name not in probes:
                continue
            status = kube.pod_status(self.cfg, pod, probes[name], 0)
            cluster.merge(f"{kube.POD_PATH}/{name}/status", {"status": status})

    def cron(self, cluster: kube.Cluster) -> None:
        """Fire the backups of every minute that passed since the last look."""
        now = _this_minute()
        minutes = [now - dt.timedelta(minutes=back) for back in range(int((now - self.minute).total_seconds() // 60))]
        self.minute = now
        due = schedules(CONFIG.read_text(encoding="utf-8")) if minutes and CONFIG.exists() else {}
        for section, schedule in due.items():
            for minute in minutes:
                if cron.parse(schedule).fires(minute) and claim(cluster, section, schedule, minute):
                    command = [sys.executable, "-m", "standin.agent", "backup", section]
                    self.children.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))

    def run(self) -> None:
        """Run until stopped."""
        beat = float("-inf")
        while True:
            probes = self.probes()
            due = time.monotonic() - beat >= HEARTBEAT_S
            if due or probes != self.posted:
                beat = time.monotonic() if due else beat
                self.report(probes, due)
            self.children = [child for child in self.children if child.poll() is None]
            time.sleep(PROBE_S if all(probes.values()) else PROBE_UNREADY_S)

    def report(self, probes: dict[str, bool], heartbeat: bool) -> None:
        """Tell the cluster about this host; what fails is said and tried again at the next beat."""
        try:
            cluster = self.cluster()
            if heartbeat:
                self.heartbeat(cluster)
            self.post_pods(cluster, probes)
            self.posted = probes
            if heartbeat:
                self.cron(cluster)
                self.follow_stateful_set(cluster)
                remember(cluster)
        except (kube.ApiError, OSError, node.StandinError, ValueError) as error:
            print(f"stand-in agent: {error}", file=sys.stderr, flush=True)


def _this_minute() -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc).replace(second=0, microsecond=0)


def claim(cluster: kube.Cluster, section: str, schedule: str, minute: dt.datetime) -> bool:
    """Decide which member fires a backup: the one that first writes this minute into the CronJob's status."""
    name = JOBS[section]
    stamp = minute.strftime("%Y-%m-%dT%H:%M:%SZ")
    found = cluster.get(f"{CRONJOBS}/{name}")
    if found is None:
        cluster.create(CRONJOBS, cron_job(name, schedule))
        found = cluster.get(f"{CRONJOBS}/{name}")
    if found is None or (found.get("status") or {}).get("lastScheduleTime", "") >= stamp:
        return False
    job = f"{name}-{int(minute.timestamp()) // 60}"  # as the CronJob controller names it
    active = [{"apiVersion": "batch/v1", "kind": "Job", "namespace": "default", "name": job}]
    found["status"] = {**(found.get("status") or {}), "lastScheduleTime": stamp, "active": active}
    try:
        cluster.http.request("PUT", f"{CRONJOBS}/{name}/status", found)
    except kube.ApiError as error:
        if error.status == 409:
            return False
        raise
    return True


def run_scheduled(cfg: node.NodeConfig, section: str) -> None:
    """Take the backup that this member claimed; while it runs, the CronJob says so."""
    try:
        backup.run_scheduled(cfg, section)
    finally:
        kube.at(cfg.address).merge(f"{CRONJOBS}/{JOBS[section]}/status", {"status": {"active": None}})


def cron_job(name: str, schedule: str) -> dict[str, Any]:
    """Return the CronJob object that shows the schedule and holds the time of the last firing."""
    container = {"name": "backup", "image": "stand-in/sdkms-backup"}
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "schedule": schedule,
            "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [container]}}}},
        },
    }


def sync_cron_jobs(cluster: kube.Cluster, config_text: str) -> None:
    """Let the CronJob objects say what a ``config.yaml`` says."""
    wanted = schedules(config_text)
    for section, name in JOBS.items():
        if section not in wanted:
            cluster.delete(f"{CRONJOBS}/{name}")
        elif not cluster.create(CRONJOBS, cron_job(name, wanted[section])):
            cluster.merge(f"{CRONJOBS}/{name}", {"spec": {"schedule": wanted[section]}})


def remember(cluster: kube.Cluster) -> None:
    """Write down who the members are, for a boot at which nobody can be asked."""
    members = []
    for item in cluster.nodes():
        addresses = item.get("status", {}).get("addresses", ())
        address = next((entry["address"] for entry in addresses if entry["type"] == "InternalIP"), None)
        if address:
            members.append({"name": item["metadata"]["name"], "address": address})
    cassandra.remember_members(members)
    cfg = node.load()
    endpoints = [kube.etcd_url(member["address"]) for member in members if member["name"] != cfg.name]
    kube.remember_etcd_endpoints(kube.Etcd([kube.etcd_url(cfg.address), *endpoints], timeout=4.0).members())


def set_replication(
    cluster: kube.Cluster, cfg: node.NodeConfig, leaving: str = "", joining: str = ""
) -> dict[str, int]:
    """Set the copies per data centre to the number of database members there; returns them.

    A member counts from the moment its data is there (an annotation of its pod says so), ``joining`` from now on,
    ``leaving`` no longer.
    """
    from standin import db

    counted: set[str] = set()
    for pod in cluster.pods("app=cassandra"):
        name = pod["spec"].get("nodeName")
        held = "stand-in/holds-data" in (pod["metadata"].get("annotations") or {})
        if name != leaving and (held or name == joining):
            item = cluster.get(f"/api/v1/nodes/{name}")
            addresses = (item or {}).get("status", {}).get("addresses", ())
            counted.update(entry["address"] for entry in addresses if entry["type"] == "InternalIP")
    store = db.connect(cfg.address, 15.0)
    try:
        if joining:
            # A database that has just started may not know the schema and all of the ring yet; going on now would
            # leave the other members' copies out.
            node.wait_until(
                lambda: bool(store.replication()) and counted <= {member.address for member in store.ring()},
                90,
                "this database's knowledge of the schema and of every member",
                0.2,
            )
        copies = cassandra.replication_for([(member.address, member.datacenter) for member in store.ring()], counted)
        if store.replication() and copies and store.replication() != copies:
            store.set_replication(copies)
    finally:
        store.close()
    return copies


def main(arguments: list[str]) -> int:
    """``python3 -m standin.agent run | backup SECTION``."""
    if arguments == ["run"]:
        Agent(node.load()).run()
    if arguments[:1] == ["backup"] and len(arguments) == 2:
        run_scheduled(node.load(), arguments[1])
        return 0
    print("usage: standin.agent run | backup SECTION", file=sys.stderr)
    return 2


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except node.StandinError as failure:
        sys.exit(str(failure))
