# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""The isolation gate for ``create`` and ``restore``: probed from this host, right before acting."""

from __future__ import annotations

import typing as t
from concurrent.futures import ThreadPoolExecutor

from ._core.membership import isolation_reasons
from ._core.reasons import Reason
from ._node import resolve, try_connection


def isolation_spec() -> dict[str, t.Any]:
    """Option ``isolation`` of the doc fragment of the same name."""
    endpoint = {"address": {"type": "str", "required": True}, "port": {"type": "int", "default": 443}}
    return {
        "isolation": {
            "type": "dict",
            "required": True,
            "options": {
                "service_name": {"type": "str"},
                "service_address": {"type": "str"},
                "production_endpoints": {"type": "list", "elements": "dict", "required": True, "options": endpoint},
                "timeout": {"type": "float", "default": 3},
            },
        }
    }


def probe_isolation(isolation: t.Mapping[str, t.Any], own_addresses: t.Iterable[str]) -> list[Reason]:
    """Try every production endpoint and resolve the service name, now, from here; empty means isolated.

    All at once: dead endpoints say nothing until the timeout, and a probe should not be older than one of them.

    :param own_addresses: every address of this host, those on loopback included: that is where a service address is
        often kept (``HostIdentity.every_address``)
    """
    seconds = float(isolation.get("timeout") or 3)
    endpoints = isolation.get("production_endpoints") or []
    with ThreadPoolExecutor(max_workers=len(endpoints) or 1) as pool:
        probes = list(pool.map(lambda one: try_connection(one["address"], int(one["port"]), seconds), endpoints))
    name = isolation.get("service_name") or ""
    addresses = resolve(name) if name else []
    if isolation.get("service_address"):
        addresses.append(isolation["service_address"])
    return isolation_reasons(probes, name, addresses, own_addresses)
