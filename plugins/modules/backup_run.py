#!/usr/bin/python
# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_run
short_description: Start one backup now, or wait for the next scheduled one
version_added: 0.1.0
author:
  - The kmsops.fortanix_dsm contributors (@kmsops)
description:
  - Runs on a member. Tells when the snapshot of a backup started, and who was a member then. A backup can be opened by
    a DR node for certain only if its snapshot started while that node was a member [inferred].
  - How to start a backup by hand is not known in public. It is an argv template of the operator, run as a detached
    operation. It has to end after the snapshot has begun.
  - With O(mode=now), a scheduled backup that is still running is waited for first. Its snapshot is older, and once it
    has arrived nobody could tell the two apart.
  - A backup is a set of snapshots, one a node, and snapshots of different schemas do not fit together. So the versions
    of the database's schema are asked for (C(nodetool describecluster) [doc]). Where the nodes disagree, nothing is
    started until they agree. Where the schema has changed when the command ends, that backup does not count, and one
    more is started; with O(mode=cron) the module fails. Nodes that are down disagree with nobody.
  - What changes the schema after this module has ended is not seen. Keep upgrades and changes of keyspaces away until
    the backup has arrived.
  - What the command prints is not looked at. Whether a backup arrived is for M(kmsops.fortanix_dsm.backup_ship) to say.
options:
  mode:
    description:
      - V(now) runs O(argv).
      - V(cron) changes nothing and waits until the schedule fires. The snapshot starts some seconds after that, so keep
        every member until the backup has arrived.
    type: str
    choices: [now, cron]
    default: now
  argv:
    description: Command that starts a backup, as a list of words. C({kubeconfig}) and C({run_id}) may be used.
    type: list
    elements: str
  article:
    description: The vendor's article to name when O(argv) is missing.
    type: str
    default: Fortanix DSM Backup and Restore Using SCP (Password-Based or Passwordless), section on configuring backups
  schedule:
    description: With O(mode=cron), the schedule in UTC. Read from O(config) when absent.
    type: str
  scheduled:
    description:
      - Regular expression that the names of the scheduled backups' CronJobs and Jobs match. The product runs backups as
        Kubernetes cron jobs [doc], their names are not public [inferred].
    type: str
    default: backup
  config:
    description: The C(config.yaml) to read the schedule from.
    type: path
    default: /etc/dsm/config.yaml
  run_id:
    description:
      - Names the run. A second call of the same run attaches to a backup that the first one left being started.
      - Without it, such a backup is waited for, and another one is started.
    type: str
notes:
  - The soft reasons are V(BACKUP_IN_FLIGHT) (a scheduled backup does not end), V(SCHEMA_SPLIT) (after O(timeout), or
    when the schedule fires, the nodes still disagree about the schema) and V(SCHEMA_CHANGED) (the schema changed while
    the snapshots were being taken, those of the second backup too). A database that cannot be asked is no reason.
extends_documentation_fragment:
  - kmsops.fortanix_dsm.kubeconfig
  - kmsops.fortanix_dsm.accept
  - kmsops.fortanix_dsm.attributes
  - kmsops.fortanix_dsm.attributes.node_group
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
    details: Starting a backup changes no state that could be compared.
  idempotent:
    support: none
    details: Every call is about a new backup.
seealso:
  - module: kmsops.fortanix_dsm.backup_config
  - module: kmsops.fortanix_dsm.backup_ship
"""

EXAMPLES = r"""
- name: Take a backup while the DR node is a member
  kmsops.fortanix_dsm.backup_run:
    argv: "{{ dsm_backup_now_argv }}"
  register: backup_started

- name: Wait for the next scheduled one
  kmsops.fortanix_dsm.backup_run:
    mode: cron
    config: /etc/dsm/config.yaml
    timeout: 4000
"""

RETURN = r"""
snapshot_started:
  description: UTC time that the snapshot started at or after. V(null) in check mode with O(mode=now).
  returned: success
  type: str
  sample: "2026-11-22T00:10:00Z"
snapshot_started_before:
  description: UTC time that the snapshot had started by, as far as O(argv) keeps its promise. V(null) where not known.
  returned: success
  type: str
  sample: "2026-11-22T00:10:04Z"
trigger:
  description: What started the backup, V(now) or V(cron).
  returned: success
  type: str
  sample: now
waited_for:
  description: Scheduled backups that were running and had to end first. In check mode, those that are running.
  returned: success
  type: list
  elements: str
  sample: []
accepted:
  description: Soft reasons that were accepted.
  returned: success
  type: list
  elements: dict
  sample: []
attached:
  description: Whether an earlier call of the same run had started it already.
  returned: success
  type: bool
schema:
  description:
    - The version of the database's schema that all nodes had before and after. V(null) where it is not known, which is
      warned of, and where a disagreement or a change was accepted.
    - In check mode, the version that all nodes have now.
  returned: success
  type: str
  sample: 2207c2a9-f598-3971-986b-2926e09e239d
discarded:
  description: When those backups were started by this call that do not count, because the schema changed meanwhile.
  returned: success
  type: list
  elements: str
  sample: []
members:
  description: Nodes that were members and up both before and after, and no younger than the snapshot.
  returned: success
  type: list
  elements: dict
  sample: [{name: dc1-n1, addresses: [192.0.2.11], host_id: 5d3c3f0e-55a8-4a7e-9d4e-0d1f3c2b1a00}]
fingerprint:
  description: Fingerprint of the cluster.
  returned: success
  type: str
seconds:
  description: How long it took.
  returned: success
  type: float
"""

import time

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._backing_up import BackingUp
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.schema import kept_version
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._module import (
    Outcome,
    Shell,
    accept_spec,
    kubeconfig_spec,
    run_module,
)

ARTICLE = "Fortanix DSM Backup and Restore Using SCP (Password-Based or Passwordless), section on configuring backups"
ARGUMENT_SPEC = {
    **kubeconfig_spec(),
    **accept_spec(),
    "mode": {"type": "str", "choices": ["now", "cron"], "default": "now"},
    "argv": {"type": "list", "elements": "str"},
    "article": {"type": "str", "default": ARTICLE},
    "schedule": {"type": "str"},
    "scheduled": {"type": "str", "default": "backup"},
    "config": {"type": "path", "default": "/etc/dsm/config.yaml"},
    "run_id": {"type": "str"},
}


def body(shell: Shell) -> Outcome:
    """Read the members, start or wait, read the members again."""
    begun = time.monotonic()
    backup, after = BackingUp(shell).run()
    return Outcome(
        shell.params["mode"] == "now",
        snapshot_started=backup.started,
        snapshot_started_before=backup.started_by,
        trigger=shell.params["mode"],
        waited_for=backup.waited_for,
        accepted=[reason.as_dict() for reason in backup.accepted],
        attached=backup.attached,
        schema=kept_version(backup.schema_before, backup.schema_after),
        discarded=backup.discarded,
        members=backup.members(after),
        fingerprint=after.fingerprint,
        seconds=round(time.monotonic() - begun, 3),
    )


def main() -> None:
    run_module(ARGUMENT_SPEC, body)


if __name__ == "__main__":
    main()
