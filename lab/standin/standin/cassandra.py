# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The database side of a member: the real Cassandra, configured small.

``python3 -m standin.cassandra run`` is what the unit starts; the jars, JVM options and nodetool are in /opt/cassandra.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from standin import node

HOME = Path("/opt/cassandra")
KEYSPACE = "dsm"
CONF = node.CASSANDRA_DIR / "conf"
MEMBERS = node.STATE_DIR / "members.json"
DEFAULT_DATACENTER = "datacenter1"
IGNORE_DC = "-Dcassandra.ignore_dc=true"


def daemon_command(base: Path, extra: list[str]) -> list[str]:
    """Return the command line of the database process with its data under ``base``."""
    conf = base / "conf"
    return [
        "java",
        f"@{HOME}/daemon.args",
        "-Xms192m",
        "-Xmx192m",
        "-XX:+ExitOnOutOfMemoryError",
        f"-Dcassandra.config=file://{conf}/cassandra.yaml",
        f"-Dcassandra-rackdc.properties=file://{conf}/cassandra-rackdc.properties",
        f"-Dlogback.configurationFile=file:{conf}/logback.xml",
        f"-Dcassandra.logdir={base}/log",
        f"-Dcassandra.storagedir={base}/data",
        "-Dcassandra.jmx.local.port=7199",
        # A node that bootstrapped into its data centre is rebuilt once more when the number of copies grows.
        "-Dcassandra.reset_bootstrap_progress=true",
        *extra,
        "org.apache.cassandra.service.CassandraDaemon",
    ]


def render(
    base: Path, *, cluster_name: str, address: str, datacenter: str, seeds: list[str], bootstrap: bool
) -> dict[str, str]:
    """Return Cassandra's configuration files, by name, for a process with its data under ``base``."""
    settings = {
        "cluster_name": cluster_name,
        "num_tokens": 4,
        "partitioner": "org.apache.cassandra.dht.Murmur3Partitioner",
        "data_file_directories": [f"{base}/data"],
        "commitlog_directory": f"{base}/commitlog",
        "saved_caches_directory": f"{base}/saved",
        "hints_directory": f"{base}/hints",
        "cdc_raw_directory": f"{base}/cdc",
        "commitlog_sync": "periodic",
        "commitlog_sync_period": "1s",
        "commitlog_segment_size": "4MiB",
        "commitlog_total_space": "64MiB",
        "commitlog_disk_access_mode": "legacy",
        "disk_failure_policy": "stop",
        "commit_failure_policy": "stop",
        "disk_access_mode": "standard",
        "listen_address": address,
        "rpc_address": address,
        "start_native_transport": True,
        "native_transport_port": 9042,
        "native_transport_max_threads": 8,
        "storage_port": 7000,
        "endpoint_snitch": "GossipingPropertyFileSnitch",
        "dynamic_snitch": False,
        "seed_provider": [
            {
                "class_name": "org.apache.cassandra.locator.SimpleSeedProvider",
                "parameters": [{"seeds": ",".join(seeds)}],
            }
        ],
        "auto_bootstrap": bootstrap,
        "concurrent_reads": 4,
        "concurrent_writes": 4,
        "concurrent_counter_writes": 2,
        "concurrent_materialized_view_writes": 2,
        "memtable_heap_space": "16MiB",
        "memtable_offheap_space": "16MiB",
        "memtable_allocation_type": "heap_buffers",
        "memtable_flush_writers": 1,
        "key_cache_size": "2MiB",
        "counter_cache_size": "0MiB",
        "row_cache_size": "0MiB",
        "index_summary_capacity": "4MiB",
        "file_cache_enabled": False,
        "networking_cache_size": "16MiB",
        "column_index_cache_size": "2KiB",
        "auto_snapshot": False,
        "authenticator": "AllowAllAuthenticator",
        "authorizer": "AllowAllAuthorizer",
        "hinted_handoff_enabled": True,
        "read_request_timeout": "5000ms",
        "write_request_timeout": "2000ms",
        "request_timeout": "10000ms",
        "phi_convict_threshold": 8,
        "trickle_fsync": False,
    }
    logback = (
        '<configuration><appender name="F" class="ch.qos.logback.core.FileAppender">'
        f"<file>{base}/log/system.log</file>"
        "<encoder><pattern>%-5level %date{ISO8601} %logger{0} - %msg%n</pattern></encoder>"
        '</appender><root level="INFO"><appender-ref ref="F"/></root></configuration>\n'
    )
    return {
        "cassandra.yaml": json.dumps(settings, indent=1) + "\n",
        "cassandra-rackdc.properties": f"dc={datacenter}\nrack=rack1\n",
        "logback.xml": logback,
    }


def write_configuration(base: Path, files: dict[str, str]) -> None:
    """Make the directories and configuration files of a database process."""
    for name in ("data", "commitlog", "saved", "hints", "cdc", "log", "conf"):
        (base / name).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        node.write_file(base / "conf" / name, text.encode(), 0o644)


def known_members() -> list[dict[str, str]]:
    """Return name and address of every member as this host last saw them."""
    try:
        members = json.loads(MEMBERS.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return []
    return [dict(member) for member in members]


def remember_members(members: list[dict[str, str]]) -> None:
    """Keep name and address of every member for the next start."""
    data = json.dumps(sorted(members, key=lambda member: member["name"])).encode()
    if not MEMBERS.exists() or MEMBERS.read_bytes() != data:
        node.write_file(MEMBERS, data)


def seeds_for(address: str, members: list[dict[str, str]], joined: bool) -> list[str]:
    """Return the seeds: all members; a host that has yet to join is no seed itself, or it would not bootstrap."""
    others = sorted(member["address"] for member in members if member["address"] != address)
    return [address, *others] if joined or not others else others


def run() -> None:
    """Write the configuration and become the database process."""
    cfg = node.load()
    state = node.read_state()
    if not state.get("datacenter") or not state.get("fingerprint"):
        raise node.StandinError("stand-in: this host has neither created nor joined a cluster; no database to start")
    from standin import kube

    if node.is_member() and kube.removed_meanwhile(cfg, known_members()):
        print("stand-in: this host was removed from the cluster while it was away; its database stays down", flush=True)
        return
    seeds = seeds_for(cfg.address, known_members(), bool(state.get("database_joined")))
    files = render(
        node.CASSANDRA_DIR,
        cluster_name=kube.cluster_name(),
        address=cfg.address,
        datacenter=state["datacenter"],
        seeds=seeds,
        bootstrap=bool(state.get("bootstrap", True)),
    )
    write_configuration(node.CASSANDRA_DIR, files)
    command = daemon_command(node.CASSANDRA_DIR, str(state.get("jvm_extra_opts", "")).split())
    os.execvp(command[0], command)


def nodetool(*arguments: str, timeout: float = 600.0) -> str:
    """Run the real nodetool on this host; raises StandinError with its last words when it fails."""
    done = subprocess.run(
        [str(HOME / "nodetool"), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise node.StandinError(f"stand-in: nodetool {arguments[0]} failed: {' '.join(words[:3])}")
    return done.stdout


def rebuild(attempts: int = 6) -> None:
    """Stream this host's share of the data from the other members.

    Repeated while it fails: a ring that another host enters at the same moment is not yet known in full
    (``NullPointerException``, seen with two joins at once).
    """
    for attempt in range(attempts):
        try:
            nodetool("rebuild", "--keyspace", KEYSPACE)
        except node.StandinError:
            if attempt == attempts - 1:
                raise
            time.sleep(1.0)
        else:
            return


def serves(address: str) -> bool:
    """Tell whether the database at an address accepts clients."""
    return node.port_open(address, 9042)


def wait_serving(cfg: node.NodeConfig, timeout: float) -> None:
    """Wait until this host's database accepts clients; raises StandinError early when its unit gave up."""
    deadline = time.monotonic() + timeout
    look = time.monotonic() + 2.0
    while not serves(cfg.address):
        now = time.monotonic()
        if now >= deadline:
            raise node.StandinError(f"stand-in: the database did not come up within {timeout:.0f} s: {last_words()}")
        if now >= look:
            look = now + 2.0
            if node.systemctl("is-failed", "--quiet", "standin-cassandra", check=False).returncode == 0:
                raise node.StandinError(f"stand-in: the database does not start: {last_words()}")
        time.sleep(0.1)


def last_words() -> str:
    """Return the last error in the database's log, for a message."""
    try:
        lines = (node.CASSANDRA_DIR / "log/system.log").read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return "it wrote no log"
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["its log is empty"])[-1][:400]


def processes(proc: Path = Path("/proc")) -> list[int]:
    """Return the process ids of database processes on this host, whoever started them."""
    found = []
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"org.apache.cassandra.service.CassandraDaemon" in command:
            found.append(int(entry.name))
    return found


def wait_gone(timeout: float = 60.0) -> None:
    """Wait until no database process is left: one started too early dies on the old one's JMX port."""
    node.wait_until(lambda: not processes(), timeout, "the end of the database process")


def replication_for(ring: list[tuple[str, str]], counted: set[str]) -> dict[str, int]:
    """Return the copies per data centre: one for each (address, data centre) of the ring whose address counts."""
    copies: dict[str, int] = {}
    for address, datacenter in ring:
        if address in counted:
            copies[datacenter] = copies.get(datacenter, 0) + 1
    return copies


def jvm_extra_opts(stateful_set: dict[str, Any] | None) -> str:
    """Return the value of ``JVM_EXTRA_OPTS`` in the StatefulSet ``cassandra``, empty when it is not set."""
    if not stateful_set:
        return ""
    for container in stateful_set["spec"]["template"]["spec"]["containers"]:
        for variable in container.get("env", ()):
            if variable.get("name") == "JVM_EXTRA_OPTS":
                return str(variable.get("value", ""))
    return ""


def main(arguments: list[str]) -> int:
    """``python3 -m standin.cassandra run``."""
    if arguments == ["run"]:
        run()
        return 0
    print("usage: standin.cassandra run", file=sys.stderr)
    return 2


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except node.StandinError as failure:
        sys.exit(str(failure))
