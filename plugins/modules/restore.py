#!/usr/bin/python
# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: restore
short_description: Restore a backup onto the cluster of a DR node
version_added: 0.1.0
author:
  - The kmsops.fortanix_dsm contributors (@kmsops)
description:
  - Takes the first of the candidates that nothing speaks against, and runs the operator's steps for it, one after the
    other, each as a detached operation.
  - The vendor's restore commands are not public, so there is no default that runs. What is enforced here is what comes
    before and after them.
  - "Before: the host is the confirmed one and declared for recovery; its cluster is a single node, created by
    M(kmsops.fortanix_dsm.cluster_create), and not production's [seed]; it is isolated; the staged bytes are those that
    the store verified; there is three times their size free [inferred]."
  - "After: the service answers its health question with C(204) [seed] within O(health_timeout)."
  - A cluster that one of the candidates was restored to already is left alone (C(changed=false)).
  - A journal on the node remembers each step. A run that was killed is continued where its steps can be accounted for.
    Else the restore is half done, and the node has to be reset and created again.
options:
  candidates:
    description: Backups staged on this host, best first.
    type: list
    elements: dict
    required: true
    suboptions:
      id:
        description: Id of the backup in the store.
        type: str
        required: true
      path:
        description: Where it is staged, a file or a directory.
        type: path
        required: true
      sha256:
        description: The hash that the store verified, of the file, or of the tree for a directory.
        type: str
        required: true
      version:
        description: DSM release that it was made by. O(expected_version) when absent.
        type: str
      snapshot_started:
        description: UTC time at which its snapshot started.
        type: str
      sealed_for:
        description: The nodes that the master key in it is sealed for, as in its manifest.
        type: list
        elements: dict
        default: []
      verified:
        description: Whether the store verified it.
        type: bool
        default: false
      cluster_id:
        description: Cluster that it belongs to.
        type: str
  steps:
    description:
      - The commands that restore, in their order. Each word may hold C({archive}) (the staged path), C({directory})
        (the staged directory, or the one that the file is in), C({backup_id}), C({config}), C({kubeconfig}) and
        C({run_id}). Any other placeholder is refused. At least one step must use the backup.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the step.
        type: str
        required: true
      argv:
        description: The command as a list of words. There is no shell.
        type: list
        elements: str
        required: true
  expected_version:
    description: DSM release that this host must run, when a candidate does not say.
    type: str
  config:
    description: The C(config.yaml) on this host, for steps that need it.
    type: path
    default: /etc/dsm/config.yaml
  data_path:
    description: A path on the file system that holds the database, for the question of free space.
    type: path
    default: /var
  free_factor:
    description: How many times the size of the backup has to be free there.
    type: float
    default: 3
  health_timeout:
    description: How long to wait for the service after the last step, in seconds.
    type: float
    default: 600
  timeout:
    description: How long to wait for one step, in seconds. It goes on by itself, and a second run attaches to it.
    type: float
    default: 7200
  state_dir:
    description: Where this collection keeps its records on the node.
    type: path
    default: /var/lib/kmsops
extends_documentation_fragment:
  - kmsops.fortanix_dsm.kubeconfig
  - kmsops.fortanix_dsm.confirmed
  - kmsops.fortanix_dsm.accept
  - kmsops.fortanix_dsm.isolation
  - kmsops.fortanix_dsm.node.own_api
  - kmsops.fortanix_dsm.attributes
  - kmsops.fortanix_dsm.attributes.node_group
attributes:
  check_mode:
    support: full
    details: Every question is asked, the staged bytes are read, and nothing is run.
  diff_mode:
    support: full
  idempotent:
    support: full
notes:
  - Soft reasons are V(UNVERIFIED), V(OLDER_THAN_JOIN), V(JOIN_UNKNOWN), V(VERSION), V(PLATFORM), V(FOREIGN_BACKUP)
    and V(LEDGER_MISSING). Each yields to O(accept), because trying a doubtful backup on an empty, isolated node does no
    harm.
seealso:
  - module: kmsops.fortanix_dsm.cluster_create
  - module: kmsops.fortanix_dsm.canary
  - name: Introduction to Fortanix DSM Backup and Restore
    description: The vendor's disaster recovery plan.
    link: https://support.fortanix.com/docs/introduction-to-fortanix-dsm-backup-and-restore
"""

EXAMPLES = r"""
- name: Restore the newest backup that can be restored
  kmsops.fortanix_dsm.restore:
    confirm: dr1
    host_role: dr
    candidates:
      - id: 20261122T001000Z
        path: /var/tmp/dsm-restore/backup.tar.gz
        sha256: "{{ backup.sha256 }}"
        version: "{{ backup.version }}"
        snapshot_started: "{{ backup.snapshot_started }}"
        sealed_for: "{{ backup.sealed_for }}"
        verified: true
    steps: "{{ dsm_restore_steps }}"
    isolation:
      service_name: dsm.example.com
      service_address: 198.51.100.1
      production_endpoints:
        - address: 192.0.2.11
          port: 443
    api_address: 203.0.113.11
    api_host: dsm.example.com
    ca_path: /etc/ssl/certs/dsm-ca.pem
"""

RETURN = r"""
restored_id:
  description: Id of the backup that is restored (or would be, in check mode).
  returned: success
  type: str
  sample: 20261122T001000Z
state:
  description: V(restored), or V(planned) in check mode.
  returned: success
  type: str
  sample: restored
journal:
  description: The journal on the node.
  returned: success
  type: str
  sample: /var/lib/kmsops/restore.json
seconds:
  description: From the first step to the answering service.
  returned: success
  type: float
  sample: 41.5
accepted:
  description: Soft reasons that were accepted.
  returned: success
  type: list
  elements: dict
passed_over:
  description: Candidates before the chosen one, and why.
  returned: success
  type: list
  elements: dict
  sample: []
version:
  description: The release that the restored service says it is. V(null) in check mode.
  returned: success
  type: str
  sample: 5.4.2031
before:
  description: Which backup was restored here before. V(null) in it means none.
  returned: success
  type: dict
  sample: {restored: null}
after:
  description: As RV(before), at the end (predicted in check mode).
  returned: success
  type: dict
  sample: {restored: 20261122T001000Z}
"""

import os
import time

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._api import Api, Endpoint
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._cluster import (
    ClusterReader,
    api_spec,
    ask_version,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import restore_plan, testimony
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.reasons import Reason
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import Refused, refuse_unless_accepted
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._isolation import isolation_spec, probe_isolation
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._module import (
    HostIdentity,
    Outcome,
    Shell,
    accept_spec,
    confirmed_spec,
    identity_reasons,
    kubeconfig_spec,
    run_module,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._node import local_fingerprint, read_marker
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._restore import (
    Journal,
    await_service,
    carry_out,
    choose,
    filled_steps,
    template_reasons,
)

ARGUMENT_SPEC = {
    **kubeconfig_spec(7200.0),
    **confirmed_spec(),
    **accept_spec(),
    **isolation_spec(),
    **api_spec(),
    "candidates": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "id": {"type": "str", "required": True},
            "path": {"type": "path", "required": True},
            "sha256": {"type": "str", "required": True},
            "version": {"type": "str"},
            "snapshot_started": {"type": "str"},
            "sealed_for": {"type": "list", "elements": "dict", "default": []},
            "verified": {"type": "bool", "default": False},
            "cluster_id": {"type": "str"},
        },
    },
    "steps": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "argv": {"type": "list", "elements": "str", "required": True},
        },
    },
    "expected_version": {"type": "str"},
    "config": {"type": "path", "default": "/etc/dsm/config.yaml"},
    "data_path": {"type": "path", "default": "/var"},
    "free_factor": {"type": "float", "default": 3.0},
    "health_timeout": {"type": "float", "default": 600.0},
    "state_dir": {"type": "path", "default": "/var/lib/kmsops"},
}


def body(shell: Shell) -> Outcome:
    """No-op where it is done, refusal with every reason where it may not be, else the steps and the proof of life."""
    params = shell.params
    me = shell.host_identity()
    reasons = identity_reasons(me, params["confirm"], params["expected_addresses"], params["expected_serial"])
    candidates = [restore_plan.candidate_of(option) for option in params["candidates"]]
    fingerprint = local_fingerprint(params["kubeconfig"])
    journal = Journal(params["state_dir"])
    entry = journal.of(fingerprint)
    ids = [candidate.id for candidate in candidates]
    if not reasons and entry is not None and entry["state"] == restore_plan.RESTORED and entry["candidate"] in ids:
        return _outcome(journal, entry["candidate"], entry["candidate"], seconds=0.0, version=entry.get("version"))
    addresses = [params["api_address"], *params["expected_addresses"], *me.addresses, "127.0.0.1"]
    endpoint = Endpoint(next(filter(None, addresses)).split("/")[0], params["api_port"], params["api_host"])
    api = Api(endpoint, params["ca_path"], ca_pem=params["ca_pem"])
    host = _host(shell, me, fingerprint, api)
    reasons += restore_plan.journal_reasons(entry, ids, [step["name"] for step in params["steps"]])
    reasons += restore_plan.host_reasons(host, testimony.read(params["testimony"]))
    reasons += probe_isolation(params["isolation"], me.every_address)
    reasons += template_reasons(params, candidates)
    accepted = refuse_unless_accepted(reasons, params["accept"], f"Nothing was restored onto {me.name}.")
    if entry is None:
        chosen, doubts, passed_over = choose(candidates, host, params)
    else:
        chosen, doubts, passed_over = candidates[ids.index(entry["candidate"])], [], []
    if chosen is None:
        raise Refused(
            f"None of the candidates ({len(candidates)}) may be restored onto {me.name}.",
            "NO_CANDIDATE",
            reasons=_reasons_of(passed_over)
            or [Reason("NO_CANDIDATE", "none was given.", "Stage one from the store.")],
            passed_over=passed_over,
        )
    steps = filled_steps(params, chosen)
    extra = {"accepted": [reason.as_dict() for reason in [*accepted, *doubts]], "passed_over": passed_over}
    if shell.check_mode:
        return _outcome(journal, None, chosen.id, state="planned", **extra)
    shell.require_confirmed_host(params["confirm"], params["expected_addresses"], params["expected_serial"])
    started = time.monotonic()
    if entry is None:
        journal.begin(chosen, fingerprint, params["run_id"] or "", [name for name, _argv in steps])
    carry_out(steps, journal, shell.operations, params["timeout"])
    await_service(api, params["health_timeout"])
    version = ask_version(api)[0]
    journal.note(state=restore_plan.RESTORED, version=version)
    return _outcome(journal, None, chosen.id, seconds=round(time.monotonic() - started, 3), version=version, **extra)


def _host(shell: Shell, me: HostIdentity, fingerprint: str | None, api: Api) -> restore_plan.Host:
    nodes: tuple = ()
    mine = {me.name, *me.addresses}
    if fingerprint is not None:
        found = ClusterReader(shell.runner, shell.params["kubeconfig"]).nodes()
        nodes = tuple(node.name if mine.isdisjoint({node.name, *node.addresses}) else me.name for node in found)
    role = shell.params["host_role"]
    marker = read_marker(os.path.join(shell.params["state_dir"], "trial.json"))
    return restore_plan.Host(me.name, role, me.serial, ask_version(api)[0], fingerprint, nodes, marker)


def _reasons_of(passed_over: list) -> list:
    return [Reason(**reason) for entry in passed_over for reason in entry["reasons"]]


def _outcome(journal: Journal, before: str | None, after: str, state: str = "restored", **returns) -> Outcome:
    defaults = {"accepted": [], "passed_over": [], "seconds": 0.0, "version": None}
    return Outcome(
        before != after,
        {"restored": before},
        {"restored": after},
        restored_id=after,
        state=state,
        journal=journal.path,
        **{**defaults, **returns},
    )


def main() -> None:
    run_module(ARGUMENT_SPEC, body)


if __name__ == "__main__":
    main()
