# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The attributes that every module of this collection states, and the two action groups beside the common one."""

from __future__ import annotations


class ModuleDocFragment:
    """``attributes``, and the action group as a variation. Its name must not be that of another fragment."""

    # Each module gives its own `support` (and `details` where it is not `full`).
    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode), touches nothing then, and predicts C(changed) exactly.
  diff_mode:
    description: Returns in C(diff) what changed (or would change in C(check_mode)), without secrets.
  idempotent:
    description:
      - When run twice in a row outside C(check_mode) with the same arguments, the second run does nothing, reports
        C(changed=false), and has an empty difference.
      - This assumes that the system that the module controls did not change in between.
"""

    NODE_GROUP = r"""
options: {}
attributes:
  action_group:
    description: Use C(group/kmsops.fortanix_dsm.dsm_node) in C(module_defaults) to set defaults for this module.
    support: full
    membership:
      - kmsops.fortanix_dsm.dsm_node
"""

    STORE_GROUP = r"""
options: {}
attributes:
  action_group:
    description: Use C(group/kmsops.fortanix_dsm.dsm_store) in C(module_defaults) to set defaults for this module.
    support: full
    membership:
      - kmsops.fortanix_dsm.dsm_store
"""

    API_GROUP = r"""
options: {}
attributes:
  action_group:
    description: Use C(group/kmsops.fortanix_dsm.dsm_api) in C(module_defaults) to set defaults for this module.
    support: full
    membership:
      - kmsops.fortanix_dsm.dsm_api
"""
