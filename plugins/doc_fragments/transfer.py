# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Options of modules that move backups between hosts."""

from __future__ import annotations


class ModuleDocFragment:
    """How fast, how patient, and how much room."""

    DOCUMENTATION = r"""
options:
  headroom:
    description: Free space wanted beside the backups themselves, as a fraction of their size.
    type: float
    default: 0.1
  workers:
    description:
      - Upper bound of parallel connections to one host, 1 to 8. It begins with as many as the distance needs (two at
        10 ms, three at 20, eight at 80), more are made only while that raises the throughput, and those that
        did not are taken back.
      - Each is a process of its own. All together need less than 200 MB whatever the size of a backup.
    type: int
    default: 8
  rate_limit:
    description: Bytes a second at most, of all connections together. Absent means no limit.
    type: int
  connect_timeout:
    description: How long to wait for a connection, in seconds.
    type: float
    default: 30
  stall_timeout:
    description: How long a connection may send nothing before it is given up, in seconds. There is no total limit.
    type: float
    default: 60
"""
