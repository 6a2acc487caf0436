# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Options of the modules that can hurt: they make sure that they are on the right host."""

from __future__ import annotations


class ModuleDocFragment:
    """``confirm``, the expected identity, the declared role, and the testimony that the action plugin gathers."""

    DOCUMENTATION = r"""
options:
  confirm:
    description:
      - The name of the host that this may happen to, as that host itself gives it (C(hostname)).
      - A different name is a refusal. There is no prompt, because a prompt hangs a scheduled job.
    type: str
    required: true
  host_role:
    description:
      - What the inventory declares this host to be.
    type: str
    choices: [production, dr, spare, rollback, retired]
    required: true
  expected_addresses:
    description:
      - Addresses that the host must carry, all of them. Read again right before anything is done.
    type: list
    elements: str
    default: []
  expected_serial:
    description:
      - Serial number that the host must carry (C(dmidecode -s system-serial-number)). Not compared when absent.
    type: str
  run_id:
    description:
      - Names the run (of a rehearsal, of a recovery) in journals and operation records.
        A second try finds the first one by it.
    type: str
  testimony:
    description:
      - What other hosts said in this play. The module's action plugin fills it in from results of
        M(kmsops.fortanix_dsm.cluster_info) and M(kmsops.fortanix_dsm.ledger) not older than two minutes.
      - A task that gives it is refused, and so is the module when called without its action plugin.
    type: dict
"""
