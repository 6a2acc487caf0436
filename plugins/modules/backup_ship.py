#!/usr/bin/python
# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_ship
short_description: Bring backups into the out-of-region store, or stage one on the node that restores it
version_added: 0.1.0
author:
  - The kmsops.fortanix_dsm contributors (@kmsops)
description:
  - Runs on the store. With O(state=published) it pulls every backup that the sources hold and the store does not, over
    SFTP with pinned host keys or from a local drop box, and publishes each when all of it has landed and was checked.
  - A backup is a file, a directory, several files or one directory a node. Nothing is assumed about names or formats.
    What is empty, still growing, cut off, a device or a link out of its tree is refused.
  - Data come first, then C(fsync), rename, and the manifest last. A run that was killed at any point is continued by
    the next one, which hashes again whatever has landed before it trusts it.
  - What is good is published even when something else is refused. All refusals then fail the task together.
  - While bytes move it says every ten seconds in the system log of the store how far it is (C(journalctl -t
    kmsops-backup-ship)).
  - With O(state=staged) it pushes one published backup to a node over SFTP. The node needs nothing but C(sshd). What is
    already there is read back and hashed, not believed.
  - Where there is not room for all, the newest come and the module fails with V(STORE_FULL). Those that are older stay
    at the source for good, since what comes last into a store counts as its newest. Where not even the newest has room
    all wait, and M(kmsops.fortanix_dsm.backup_prune) makes room for it.
options:
  state:
    description: V(published) pulls into the store. V(staged) pushes O(id) from the store to the host O(push).
    type: str
    choices: [published, staged]
    default: published
  cluster:
    description:
      - The cluster whose backups these are, from M(kmsops.fortanix_dsm.cluster_info). Needed with O(state=published).
    type: dict
    suboptions:
      fingerprint:
        description: SHA-256 (hex) of the public key of the Kubernetes CA. It decides whose store this is.
        type: str
        required: true
      uid:
        description: UID of the cluster.
        type: str
        default: ''
      version:
        description: DSM version of the cluster.
        type: str
        default: ''
      members:
        description: Nodes of the cluster. Their C(name), C(addresses) and C(host_id) are kept in the manifest.
        type: list
        elements: dict
        default: []
  cluster_id:
    description: The cluster in the store, with O(state=staged). Not needed where O(cluster) is given.
    type: str
  sources:
    description: Where DSM delivers its backups to. Needed with O(state=published).
    type: list
    elements: dict
    default: []
    suboptions:
      host:
        description: Name or address. Absent means a directory of the store itself (a drop box).
        type: str
      port:
        description: SSH port.
        type: int
        default: 22
      user:
        description: User who may read the backups there. It needs no right to write.
        type: str
      path:
        description:
          - Absolute path. C(*), C(?) and C([...]) are wildcards; hidden names match only a pattern with a dot.
          - Symbolic links are followed above the first wildcard only; one below it is refused unless it leads to what
            is matched anyway.
        type: str
        required: true
      layout:
        description:
          - V(single) takes each match, a file or a whole directory, as one backup.
          - V(per_node) takes all matches in one directory together as one backup, one part a node. Where there are
            files and directories, it is refused as V(STRAY_FILE), because only one kind can be what each node
            delivers; accepted, all are stored, and the directories are counted as the parts.
          - V(together) takes all matches as one backup.
        type: str
        choices: [single, per_node, together]
        default: single
      hashes:
        description:
          - SHA-256 in hex of files at the source by their absolute path, where somebody computed them there.
          - What lands must have them, else it is refused as V(SOURCE_HASH). Without them a byte that was damaged before
            it was encrypted for the way shows only where the format of the backup has checksums of its own.
        type: dict
        default: {}
      clock_skew:
        description:
          - By how many seconds the clock of that host is ahead of the store's, where somebody measured it. It counts
            where the host does not tell its clock, as with a key that may do nothing but SFTP.
          - Without it nobody knows there whether a delivery is younger than O(snapshot_started). It is shipped, and its
            manifest does not say when its snapshot started; with V(CLOCK_SKEW) in O(accept) that counts as attested.
        type: int
      key_file: &key_file
        description: Private key on the store (mode C(0600)). Absent means the agent that C(SSH_AUTH_SOCK) names.
        type: path
      passphrase: &passphrase
        description: Passphrase of an encrypted key.
        type: str
      host_key: &host_key
        description: The key that the host must show, as C(ssh-ed25519 AAAA...). Goes before C(known_hosts).
        type: str
      known_hosts: &known_hosts
        description: File on the store, in OpenSSH's format, that pins the host's key.
        type: path
  sealed_for:
    description:
      - The nodes for which the database held a sealed copy of the cluster master key when the snapshot started.
      - A backup is worth something only as a pair with such a node, so this goes into the manifest.
    type: list
    elements: dict
    default: []
    suboptions:
      node:
        description: Name of the node.
        type: str
        required: true
      platform_id:
        description: What can be read of its platform, the serial number.
        type: str
        default: ''
      version:
        description: DSM version that it ran when it joined.
        type: str
        default: ''
      joined_at:
        description: When it joined (UTC).
        type: str
      member:
        description: Whether it was a verified member when the snapshot started.
        type: bool
        default: false
  snapshot_started:
    description:
      - When the snapshot started that is to be shipped (UTC), from M(kmsops.fortanix_dsm.backup_run).
      - With it a delivery that is younger is waited for, and it is an error if none comes. Where nobody can tell
        whether what came is younger, it is shipped, its manifest does not say when its snapshot started, and a note
        says why.
    type: str
  snapshot_clock_skew:
    description:
      - By how many seconds the clock that told O(snapshot_started) is ahead of the store's, where somebody measured it.
      - Without it nobody knows which delivery is younger. What comes is shipped, and its manifest does not say when its
        snapshot started; with V(CLOCK_SKEW) in O(accept) that counts as attested.
    type: int
  there_before:
    description:
      - RV(at_sources) of a look in check mode before the snapshot was asked for. What lay there then is not the backup
        of O(snapshot_started), whatever the clocks say; nor is what has the same name now, unless the store has
        published what had it then. That may be an older delivery that was still being written. One that is written
        under another name and then renamed is not recognised.
      - Where nobody could look at a source, nobody knows what is younger there, as where its clock was not read.
      - Leave it out where a backup that was already running is waited for. Empty means that no source could be looked
        at.
    type: list
    elements: dict
    suboptions:
      place:
        description: As it was returned, empty for a directory of the store itself.
        type: str
        required: true
      path:
        description: As it was returned.
        type: str
        required: true
      backups:
        description: As it was returned.
        type: dict
        required: true
  ahead_of_time:
    description:
      - RV(ahead_of_time) of an earlier look in check mode. The times of these say nothing, also when they have come.
    type: list
    elements: str
    default: []
  identify_argv:
    description:
      - Command of the operator that looks at a backup and prints the fingerprint or the uid of its cluster, as a list
        of words. C({path}) stands for the single file, or the directory with all files.
      - Nothing public says how to tell whose a backup is [inferred], so without it only its source shows that.
      - It runs on the store before publication. Output that names neither is refused as V(FOREIGN).
    type: list
    elements: str
  select:
    description:
      - V(all) takes every backup at a source, V(newest) only the youngest of each.
      - What cannot be looked at, or holds no file, may be the youngest. With V(newest) it is refused, too, and the
        youngest of the others is taken.
    type: str
    choices: [all, newest]
    default: all
  quiet:
    description: How long nobody may have written to a backup before it counts as delivered, in seconds.
    type: float
    default: 60
  patience:
    description: How long to wait for a backup to be delivered or to become quiet, in seconds.
    type: float
    default: 300
  id:
    description: The backup to stage, V(newest) for the newest whose verification did not fail. With O(state=staged).
    type: str
  push:
    description: The host to stage to. Needed with O(state=staged).
    type: dict
    suboptions:
      host:
        description: Name or address.
        type: str
        required: true
      port:
        description: SSH port.
        type: int
        default: 22
      user:
        description: User there. It must be able to write to O(push.path).
        type: str
        required: true
      path:
        description: Directory there, made if absent. The backup becomes a directory in it, named by its id.
        type: str
        required: true
      key_file: *key_file
      passphrase: *passphrase
      host_key: *host_key
      known_hosts: *known_hosts
requirements:
  - Python 3.9 or newer on the store
  - paramiko 3.5 or newer on the store, where a source or a target is another host
extends_documentation_fragment:
  - kmsops.fortanix_dsm.accept
  - kmsops.fortanix_dsm.attributes
  - kmsops.fortanix_dsm.attributes.store_group
  - kmsops.fortanix_dsm.store
  - kmsops.fortanix_dsm.store.new
  - kmsops.fortanix_dsm.store.run
  - kmsops.fortanix_dsm.transfer
attributes:
  check_mode:
    support: full
    details: The sources are read, nothing is written. RV(backups) lists what would be pulled, without hashes.
  diff_mode:
    support: full
  idempotent:
    support: full
seealso:
  - module: kmsops.fortanix_dsm.backup_verify
  - module: kmsops.fortanix_dsm.backup_info
"""

EXAMPLES = r"""
- name: Ship what production delivered
  kmsops.fortanix_dsm.backup_ship:
    store: /srv/dsm-store
    cluster:
      fingerprint: "{{ info.cluster.fingerprint }}"
      uid: "{{ info.cluster.uid }}"
      version: "{{ info.cluster.version }}"
      members: "{{ info.cluster.nodes }}"
    sources:
      - host: 192.0.2.50
        user: dsmbackup
        path: /home/dsmbackup/backup/*
        key_file: /srv/dsm-store/.ssh/id_ed25519
        known_hosts: /srv/dsm-store/.ssh/known_hosts
    sealed_for:
      - node: dr1
        platform_id: "{{ dr1_serial }}"
        version: "{{ info.cluster.version }}"
        joined_at: "{{ join.joined_at }}"
        member: true
    snapshot_started: "{{ backup.snapshot_started }}"
    snapshot_clock_skew: "{{ member_clock_skew }}"
    there_before: "{{ look.at_sources }}" # before the backup was asked for
    run_id: "{{ run_id }}"

- name: Stage the newest backup on the DR node
  kmsops.fortanix_dsm.backup_ship:
    state: staged
    store: /srv/dsm-store
    cluster_id: 0123456789abcdef
    id: newest
    push:
      host: 192.0.2.111
      user: administrator
      path: /var/tmp/dsm-restore
      key_file: /srv/dsm-store/.ssh/id_ed25519
      known_hosts: /srv/dsm-store/.ssh/known_hosts
  register: staged
"""

RETURN = r"""
cluster_id:
  description: Name of the cluster in the store.
  returned: success
  type: str
  sample: 0123456789abcdef
backups:
  description:
    - One item for each backup at the sources, with O(state=published); every key of the manifest is in it.
    - After a failure the same list is in C(details.backups).
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: Id in the store. Its number decides what is newer.
      type: str
      sample: 00000007-20261122T005300Z
    published:
      description: Whether it is published now.
      type: bool
    already:
      description: Whether it was published before.
      type: bool
    bytes:
      description: Size of all files.
      type: int
    sha256:
      description: SHA-256 of a single file, or the digest of the C(sha256sum) lines of all files sorted by path.
      type: str
    files:
      description:
        - Path, size, mtime and SHA-256 of each file; C(source_path) is the absolute path that it has at the source.
      type: list
      elements: dict
    snapshot_started:
      description: When the snapshot started, null if that is not known.
      type: str
    sealed_for:
      description: As given.
      type: list
      elements: dict
    provenance:
      description: What shows that these bytes are of this cluster.
      type: str
      sample: by_source
    pairs:
      description: What it is worth to each node of RV(backups[].sealed_for), golden, presumed or impossible, and why.
      type: list
      elements: dict
staged:
  description:
    - The backup on the node, with O(state=staged). Usable as one of the candidates of M(kmsops.fortanix_dsm.restore).
  returned: state is staged
  type: dict
  contains:
    id:
      description: The backup.
      type: str
    path:
      description: The single file, or the directory with all files, on the node.
      type: str
    directory:
      description: The directory named by the id.
      type: str
    sha256:
      description: As in RV(backups).
      type: str
    files:
      description: Path below the data directory, size, mtime and SHA-256 of each file.
      type: list
      elements: dict
bytes:
  description: Bytes that were transferred.
  returned: success
  type: int
resent:
  description:
    - Bytes among them that came for nothing or again, because a connection was lost, or was so slow that another one
      helped, or because a range turned out to be damaged.
    - Of a run that was killed, what it had begun is counted, which is at least what it had received; of a worker that
      was killed, what it had told, which is all but its last tenth of a second.
  returned: success
  type: int
seconds:
  description: Time that the transfers took.
  returned: success
  type: float
workers:
  description: Most connections that were used in parallel.
  returned: success
  type: int
peak_rss:
  description: Peak memory of all processes of the transfer in bytes; what they share is counted once.
  returned: success
  type: int
accepted:
  description: Soft reasons that O(accept) let pass.
  returned: state is published
  type: list
  elements: dict
notes:
  description: What a person should know, for instance that the lease of a dead run was taken over.
  returned: state is published
  type: list
  elements: str
at_sources:
  description:
    - What lies at each source that could be looked at, also what is refused; for O(there_before). Empty without check
      mode.
    - After a failure the same list is in C(details.at_sources).
  returned: state is published
  type: list
  elements: dict
  contains:
    place:
      description: Which host it is, empty for a directory of the store itself.
      type: str
    path:
      description: Path of the source.
      type: str
    backups:
      description: The identity of each backup by its name.
      type: dict
ahead_of_time:
  description:
    - Identities of those of them whose time has not come yet, by the clock of the store and what is known of that of
      the source. After a failure the same list is in C(details.ahead_of_time).
  returned: state is published
  type: list
  elements: str
"""

import typing as t

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._module import (
    Outcome,
    Shell,
    accept_spec,
    run_module,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._runner import fill_template
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._store_module import (
    follow,
    login_spec,
    store_spec,
    transfer_spec,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._request import (
    ship_request,
    stage_request,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._ship import ship
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._stage import stage


def argument_spec() -> dict[str, t.Any]:
    """Options of the module."""
    cluster = {
        "fingerprint": {"type": "str", "required": True},
        "uid": {"type": "str", "default": ""},
        "version": {"type": "str", "default": ""},
        "members": {"type": "list", "elements": "dict", "default": []},
    }
    source = {
        "host": {"type": "str"},
        "user": {"type": "str"},
        "path": {"type": "str", "required": True},
        "layout": {"type": "str", "choices": ["single", "per_node", "together"], "default": "single"},
        "hashes": {"type": "dict", "default": {}},
        "clock_skew": {"type": "int"},
    }
    sealed = {
        "node": {"type": "str", "required": True},
        "platform_id": {"type": "str", "default": ""},
        "version": {"type": "str", "default": ""},
        "joined_at": {"type": "str"},
        "member": {"type": "bool", "default": False},
    }
    before = {
        "place": {"type": "str", "required": True},
        "path": {"type": "str", "required": True},
        "backups": {"type": "dict", "required": True},
    }
    push = {
        "host": {"type": "str", "required": True},
        "user": {"type": "str", "required": True},
        "path": {"type": "str", "required": True},
    }
    return {
        "state": {"type": "str", "choices": ["published", "staged"], "default": "published"},
        **store_spec("new", "run"),
        **transfer_spec(),
        "cluster": {"type": "dict", "options": cluster},
        "cluster_id": {"type": "str"},
        "sources": {"type": "list", "elements": "dict", "default": [], "options": {**login_spec(), **source}},
        "sealed_for": {"type": "list", "elements": "dict", "default": [], "options": sealed},
        "snapshot_started": {"type": "str"},
        "snapshot_clock_skew": {"type": "int"},
        "there_before": {"type": "list", "elements": "dict", "options": before},
        "ahead_of_time": {"type": "list", "elements": "str", "default": []},
        "identify_argv": {"type": "list", "elements": "str"},
        "select": {"type": "str", "choices": ["all", "newest"], "default": "all"},
        "quiet": {"type": "float", "default": 60},
        "patience": {"type": "float", "default": 300},
        "id": {"type": "str"},
        "push": {"type": "dict", "options": {**login_spec(), **push}},
        **accept_spec(),
    }


def body(shell: Shell) -> Outcome:
    """Ship or stage."""
    if shell.params["state"] == "staged":
        return _staged(shell)
    result = ship(ship_request(shell.params, _identify(shell), follow("backup_ship")), shell.check_mode)
    for note in result.notes:
        shell.warn(note)
    had = [item["id"] for item in result.backups if item["already"]]
    return Outcome(
        result.changed,
        before={"published": had},
        after={"published": [item["id"] for item in result.backups]},
        **result.returns(),
    )


def _identify(shell: Shell) -> t.Callable[[str], str] | None:
    """The operator's command that says whose a backup is."""
    argv = shell.params["identify_argv"]
    if not argv:
        return None
    fill_template(argv, {"path": "/"}, required=("path",), name="identify_argv")
    return lambda path: shell.runner.run(fill_template(argv, {"path": path}), timeout=3600, reading=True).stdout


def _staged(shell: Shell) -> Outcome:
    result = stage(stage_request(shell.params, follow("backup_ship")), shell.check_mode)
    directory = result.staged["directory"]
    return Outcome(
        result.changed,
        before={"staged": None if result.changed else directory},
        after={"staged": directory},
        cluster_id=result.staged["cluster_id"],
        staged=result.staged,
        bytes=result.report.bytes,
        resent=result.report.resent,
        seconds=result.seconds,
        workers=result.report.workers,
        peak_rss=result.report.peak_rss,
    )


def main() -> None:
    """Entry point."""
    run_module(
        argument_spec(),
        body,
        required_if=[("state", "published", ["cluster", "sources"]), ("state", "staged", ["id", "push"])],
    )


if __name__ == "__main__":
    main()
