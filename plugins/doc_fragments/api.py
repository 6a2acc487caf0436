# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Options of modules that speak to the DSM API over HTTPS."""

from __future__ import annotations


class ModuleDocFragment:
    """``ca_path`` and ``timeout``. TLS is always verified: there is no option to switch that off."""

    DOCUMENTATION = r"""
options:
  ca_path:
    description:
      - A PEM file of the certification authorities that may have signed the API certificate.
      - When absent, those that the host trusts. Verification cannot be switched off.
    type: path
  ca_pem:
    description:
      - The text of such a file, for hosts that do not have it, for instance C(lookup('ansible.builtin.file', ...)).
    type: str
  timeout:
    description:
      - How long to wait for one answer, in seconds.
    type: float
    default: 10
"""
