#!/usr/bin/python
# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_config
short_description: Configure the scheduled backups of a DSM cluster
version_added: 0.1.0
author:
  - The kmsops.fortanix_dsm contributors (@kmsops)
description:
  - Edits the blocks C(backup) and C(auditBackup) of C(config.yaml) [doc] and leaves every other byte of the file as it
    is, comments included.
  - Keys of a block that no option names stay as they are, because the vendor knows more of them than anybody outside.
  - What a changed block takes effect by is not known in public. It is an argv template of the operator, run as a
    detached operation. A template that is missing is an error before anything is written.
  - The file is replaced whole with mode C(0600), and the one before is kept beside it with C(.previous) added.
options:
  path:
    description: The C(config.yaml) that the cluster was created with.
    type: path
    required: true
  backup:
    description: The block C(backup). Not touched when absent.
    type: dict
    suboptions: &block
      state:
        description: Whether the block is there.
        type: str
        choices: [present, absent]
        default: present
      cron_schedule:
        description: When to make a backup, five fields, in B(UTC) [doc].
        type: str
      backup_mode:
        description: The vendor's word for how, for instance V(snapshot) [doc].
        type: str
      exclude_auditlog:
        description: Leave the audit log out [doc], since DSM 3.27. Then it is kept by O(audit_backup) alone.
        type: bool
      scp:
        description: Destination by SCP [doc].
        type: dict
        suboptions:
          server_ip:
            description: Host to deliver to.
            type: str
          authmode:
            description: V(password), or the vendor's word for keys [doc], since DSM 4.6.
            type: str
          username:
            description: User there.
            type: str
          password:
            description: Password of that user. The vendor keeps it in clear in the file [doc]; prefer keys.
            type: str
          path:
            description: Directory there.
            type: str
      settings:
        description: Any other keys, merged into the block, for destinations whose keys only the vendor's articles name.
        type: dict
      secret_settings:
        description: As O(backup.settings), for values that nobody may see.
        type: dict
      remove:
        description: Keys to remove from the block before anything is put in.
        type: list
        elements: str
        default: []
  audit_backup:
    description: The block C(auditBackup), since DSM 3.27 [doc]. Not touched when absent. Options as for O(backup).
    type: dict
    suboptions: *block
  dsm_version:
    description: The release that the cluster runs. With it, settings that are too new for it are refused.
    type: str
  apply:
    description: Whether to apply a change to the cluster. V(false) for a file that a cluster is yet to be created with.
    type: bool
    default: true
  apply_argv:
    description: Command that applies the file, as a list of words. C({config}) stands for O(path).
    type: list
    elements: str
  article:
    description: The vendor's article to name when O(apply_argv) is missing.
    type: str
    default: Fortanix DSM Backup and Restore Using SCP (Password-Based or Passwordless), section on configuring backups
  timeout:
    description: How long to wait for the command, in seconds. It goes on by itself, and a second run attaches to it.
    type: float
    default: 600
  state_dir:
    description: Where this collection keeps its records on the node.
    type: path
    default: /var/lib/kmsops
extends_documentation_fragment:
  - kmsops.fortanix_dsm.accept
  - kmsops.fortanix_dsm.attributes
  - kmsops.fortanix_dsm.attributes.node_group
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details: Secrets are replaced by a word that says whether they change.
  idempotent:
    support: full
seealso:
  - name: Backup for Audit Log
    description: The vendor's article that shows both blocks.
    link: https://support.fortanix.com/docs/fortanix-dsm-backup-for-audit-log
"""

EXAMPLES = r"""
- name: Back up every hour, and the audit log once a day
  kmsops.fortanix_dsm.backup_config:
    path: /etc/dsm/config.yaml
    backup:
      cron_schedule: "10 * * * *"
      backup_mode: snapshot
      exclude_auditlog: true
      scp:
        server_ip: 192.0.2.50
        authmode: password
        username: dsmbackup
        password: "{{ dsm_backup_password }}"
        path: /home/dsmbackup/backup
    audit_backup:
      cron_schedule: "30 2 * * *"
      backup_mode: snapshot
      scp:
        server_ip: 192.0.2.50
        authmode: password
        username: dsmbackup
        password: "{{ dsm_backup_password }}"
        path: /home/dsmbackup/audit
    apply_argv: "{{ dsm_apply_config_argv }}"
"""

RETURN = r"""
config:
  description: The file.
  returned: success
  type: str
  sample: /etc/dsm/config.yaml
previous:
  description: Where the file as it was before the last change is kept. V(null) when there is none.
  returned: success
  type: str
  sample: /etc/dsm/config.yaml.previous
applied:
  description: Whether this run applied the file to the cluster (or would, in check mode).
  returned: success
  type: bool
accepted:
  description: Soft reasons that were accepted.
  returned: success
  type: list
  elements: dict
before:
  description: Both blocks, the mode of the file and whether the file was applied, without secrets.
  returned: success
  type: dict
after:
  description: As RV(before), at the end (predicted in check mode).
  returned: success
  type: dict
"""

import os
import stat

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._config_file import ConfigFile
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import backup_plan, config_text
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import (
    CommandFailed,
    DsmError,
    Refused,
    reasons_of,
    refuse_unless_accepted,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._module import Outcome, Shell, accept_spec, run_module
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._runner import fill_template

BLOCK = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "cron_schedule": {"type": "str"},
    "backup_mode": {"type": "str"},
    "exclude_auditlog": {"type": "bool"},
    "scp": {
        "type": "dict",
        "options": {
            "server_ip": {"type": "str"},
            "authmode": {"type": "str"},
            "username": {"type": "str"},
            "password": {"type": "str", "no_log": True},
            "path": {"type": "str"},
        },
    },
    "settings": {"type": "dict"},
    "secret_settings": {"type": "dict", "no_log": True},
    "remove": {"type": "list", "elements": "str", "default": []},
}
ARTICLE = "Fortanix DSM Backup and Restore Using SCP (Password-Based or Passwordless), section on configuring backups"
ARGUMENT_SPEC = dict(
    accept_spec(),
    path={"type": "path", "required": True},
    backup={"type": "dict", "options": BLOCK},
    audit_backup={"type": "dict", "options": BLOCK},
    dsm_version={"type": "str"},
    apply={"type": "bool", "default": True},
    apply_argv={"type": "list", "elements": "str"},
    article={"type": "str", "default": ARTICLE},
    timeout={"type": "float", "default": 600},
    state_dir={"type": "path", "default": "/var/lib/kmsops"},
)
OPERATION = "apply-config"


def body(shell: Shell) -> Outcome:
    """Read, decide, write whole, apply. The intent to apply is on disk before the file is, so a kill loses nothing."""
    params = shell.params
    config = ConfigFile(params["path"], params["state_dir"])
    old = config.read()
    now, wanted, new = _plan(old, params)
    exposed = any(map(backup_plan.secrets, now.values())) and bool(config.mode & (stat.S_IRWXG | stat.S_IRWXO))
    pending = params["apply"] and bool(config.pending_since())
    apply = params["apply"] and (new != old or pending)
    argv, spoiled = _command(params) if apply else ([], [])
    reasons = backup_plan.lint(wanted, params["dsm_version"], exposed) + spoiled
    accepted = refuse_unless_accepted(reasons, params["accept"], f"{params['path']} was left as it is.")
    rewrite = new != old or exposed
    before = _shown(now, None, config.mode, not pending)
    after = _shown(wanted, now, 0o600 if rewrite else config.mode, True)
    if not shell.check_mode:
        if apply:
            config.note_pending(again=new != old)
        if rewrite:
            config.replace(old, new)
        if apply:
            hidden = [one for block in [*now.values(), *wanted.values()] for one in backup_plan.secrets(block)]
            _apply(shell, argv, hidden, config.pending_since())
            config.note_applied()
    return Outcome(
        bool(rewrite or apply),
        before,
        after,
        config=params["path"],
        previous=config.previous if os.path.exists(config.previous) or new != old else None,
        applied=bool(apply),
        accepted=[reason.as_dict() for reason in accepted],
    )


def _command(params: dict) -> tuple[list, list]:
    """The operator's command that takes the file up, and what is wrong with its template."""
    try:
        values = {"config": params["path"]}
        return fill_template(
            params["apply_argv"], values, name="apply_argv (what takes a changed file up)", article=params["article"]
        ), []
    except DsmError as error:
        return [], reasons_of(error)


def _apply(shell: Shell, argv: list, hidden: list, since: str) -> None:
    """Run the command. One of an earlier text is waited for and does not count for this one."""
    timeout = shell.params["timeout"]
    earlier = shell.operations.status(OPERATION)
    if earlier is not None and earlier.started_at < since:
        if earlier.running:
            shell.operations.start_or_attach(OPERATION, argv, timeout=timeout, secrets=hidden)
        shell.operations.forget(OPERATION)
    done = shell.operations.start_or_attach(OPERATION, argv, timeout=timeout, secrets=hidden)
    if done.rc != 0:
        raise CommandFailed(
            f"The file is written, but applying it ended with exit code {done.rc}.",
            "APPLY_FAILED",
            "See the output, put right what it says, and run this again: it applies the file once more.",
            rc=done.rc,
            output_tail=done.output_tail,
        )


def _plan(text: str, params: dict) -> tuple[dict, dict, str]:
    """Both blocks as they are, as they should be, and the text that says so."""
    try:
        now = {key: config_text.read_block(text, key) for key in backup_plan.BLOCKS.values()}
        wanted, new = {}, text
        for option, key in backup_plan.BLOCKS.items():
            wanted[key] = backup_plan.desired(now[key], params[option])
            new = config_text.write_block(new, key, wanted[key])
    except config_text.ConfigTextError as error:
        raise Refused(
            f"{params['path']} cannot be edited safely: {error}",
            "CONFIG_UNSAFE",
            "Put that line right by hand, then run this again. Nothing was changed.",
            line=error.line,
        ) from error
    return now, wanted, new


def _shown(blocks: dict, other: dict | None, mode: int, applied: bool) -> dict:
    found = {}
    for key, block in blocks.items():
        found[key] = backup_plan.shown(block, None if other is None else other[key] or {})
    return dict(found, mode=f"{mode:04o}", applied=applied)


def main() -> None:
    run_module(ARGUMENT_SPEC, body)


if __name__ == "__main__":
    main()
