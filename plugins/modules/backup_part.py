#!/usr/bin/python
# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_part
short_description: Put the escrowed configuration or a secrets bundle beside the backups
version_added: 0.1.0
author:
  - The kmsops.fortanix_dsm contributors (@kmsops)
description:
  - A recovery needs more than the data. C(config.yaml), and at a site without SGX the Kubernetes secrets, are kept in
    the store as bundles that were encrypted to people before.
  - The newest bundle of a part serves every backup of its generation. Where a part is required and not there,
    M(kmsops.fortanix_dsm.backup_info) and M(kmsops.fortanix_dsm.backup_verify) call the backups incomplete.
  - What is not encrypted (CMS enveloped data, PEM or DER) is refused.
options:
  fingerprint:
    description: The generation that the bundle is of. Absent means the newest one.
  part:
    description: What the bundle holds.
    type: str
    choices: [config, secrets]
    required: true
  src:
    description: The encrypted file, on the store.
    type: path
    required: true
extends_documentation_fragment:
  - kmsops.fortanix_dsm.attributes
  - kmsops.fortanix_dsm.attributes.store_group
  - kmsops.fortanix_dsm.store
  - kmsops.fortanix_dsm.store.cluster
  - kmsops.fortanix_dsm.store.run
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
seealso:
  - module: kmsops.fortanix_dsm.backup_verify
"""

EXAMPLES = r"""
- name: Escrow the configuration
  kmsops.fortanix_dsm.backup_part:
    store: /srv/dsm-store
    part: config
    src: /run/kmsops/config.yaml.cms
"""

RETURN = r"""
cluster_id:
  description: Name of the cluster in the store.
  returned: success
  type: str
sha256:
  description: SHA-256 of the encrypted bundle.
  returned: success
  type: str
"""

import typing as t

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._module import Outcome, Shell, run_module
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._store_module import chosen_store, store_spec
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._parts import put


def argument_spec() -> dict[str, t.Any]:
    """Options of the module."""
    return {
        **store_spec("cluster", "run"),
        "part": {"type": "str", "choices": ["config", "secrets"], "required": True},
        "src": {"type": "path", "required": True},
    }


def body(shell: Shell) -> Outcome:
    """Store the bundle."""
    params = shell.params
    store = chosen_store(params)
    fingerprint = params["fingerprint"] or store.identity.generations[-1].fingerprint
    before, after = put(store, params["part"], params["src"], fingerprint, params["run_id"], not shell.check_mode)
    left = None if before is None else {"part": before.part, "sha256": before.sha256}
    right = {"part": after.part, "sha256": after.sha256}
    return Outcome(left != right, before=left, after=right, cluster_id=store.identity.cluster_id, sha256=after.sha256)


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), body)


if __name__ == "__main__":
    main()
