# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Options of modules that speak to the cluster's Kubernetes."""

from __future__ import annotations


class ModuleDocFragment:
    """``kubeconfig`` and ``timeout``."""

    DOCUMENTATION = r"""
options:
  kubeconfig:
    description:
      - The administrator's kubeconfig on the node, as the vendor's article names it.
    type: path
    default: /etc/kubernetes/admin.conf
  timeout:
    description:
      - How long the module may wait altogether, in seconds.
    type: float
    default: 120
"""
