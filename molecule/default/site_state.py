# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything on a host that only a change can change; run there with `python3 - before|after cluster|host`.

Files count by content, mode, owner and time of change. Left out is what changes by itself: the databases of the running
members (Kubernetes writes its leases, Cassandra its commit log), logs, and what Ansible, kubectl and nodetool keep in a
home for themselves while they read. What the databases say is asked for instead, on the host that is told `cluster`:
nodes and their labels, tokens, configuration, and the ring.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys

ROOTS = ("/etc", "/home", "/opt/kmsops", "/root", "/srv", "/usr/local", "/var/lib", "/var/log/standin-commands.log")
BY_THEMSELVES = ("/var/lib/cassandra", "/var/lib/etcd", "/var/lib/systemd", "/etc/mtab")
OF_READERS = (".ansible", ".cassandra", ".kube")
NOTE = "/run/kmsops-site-state.json"
KUBECTL = ["kubectl", "--kubeconfig=/etc/kubernetes/admin.conf", "get", "--all-namespaces", "--output=json"]


def file_states():
    for root in ROOTS:
        yield from one(root)
        for directory, names, files in os.walk(root):
            places = [os.path.join(directory, name) for name in names]
            names[:] = [os.path.basename(place) for place in places if not by_itself(place)]
            for name in [*names, *files]:
                yield from one(os.path.join(directory, name))


def by_itself(path):
    return path in BY_THEMSELVES or os.path.basename(path) in OF_READERS


def one(path):
    try:
        found = os.lstat(path)
        content = ""
        if stat.S_ISREG(found.st_mode):
            with open(path, "rb") as handle:
                content = hashlib.sha256(handle.read()).hexdigest()
        elif stat.S_ISLNK(found.st_mode):
            content = os.readlink(path)
    except FileNotFoundError:
        return
    changed = found.st_mtime_ns if stat.S_ISREG(found.st_mode) else ""
    yield path, f"{found.st_mode:o} {found.st_uid}:{found.st_gid} {changed} {content}"


def said(argv):
    return subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True).stdout.decode()


def cluster_states():
    for item in json.loads(said([*KUBECTL, "nodes,secrets,configmaps,statefulsets"]))["items"]:
        known = item["metadata"]
        name = f"{item['kind']} {known.get('namespace', '')}/{known['name']}"
        shown = {"uid": known["uid"], "labels": known.get("labels"), "spec": item.get("spec"), "data": item.get("data")}
        yield name, hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()
    for line in said(["nodetool", "status"]).splitlines():
        words = line.split()
        if words and words[0] in ("UN", "UJ", "UL", "UM", "DN", "DL"):
            yield f"ring {words[1]}", f"{words[0]} {words[-2]} {words[-1]}"


def units():
    argv = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "--type=service,timer,path", "standin-*"]
    for line in said(argv).splitlines():
        words = line.split()
        yield f"unit {words[0]}", " ".join(words[1:4])
    for line in said(["systemctl", "list-unit-files", "--no-legend"]).splitlines():
        yield f"unit file {line.split()[0]}", line.split()[1]


def main():
    state = dict([*file_states(), *units()])
    if sys.argv[2] == "cluster":
        state.update(cluster_states())
    if sys.argv[1] == "before":
        with open(NOTE, "w", encoding="utf-8") as handle:
            json.dump(state, handle)
        print(f"{len(state)} things noted")
        return 0
    with open(NOTE, encoding="utf-8") as handle:
        before = json.load(handle)
    changed = sorted(name for name in {*before, *state} if before.get(name) != state.get(name))
    for name in changed:
        print(f"{name}\n  before: {before.get(name)}\n  after:  {state.get(name)}")
    print(f"{len(changed)} of {len(before)} things changed")
    return 1 if changed else 0


sys.exit(main())
