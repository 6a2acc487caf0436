# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""What the modules of a store share: the option groups of the doc fragments ``store`` and ``transfer``, and its part
that the options choose."""

from __future__ import annotations

import syslog
import typing as t

from ._core.parts import PARTS
from ._transfer._store import ClusterStore

ONE_NAME = [("cluster_id", "fingerprint")]


def store_spec(*groups: str) -> dict[str, t.Any]:
    """Options of the doc fragment ``store`` and of its variations: ``cluster``, ``new``, ...."""
    options: dict[str, dict[str, t.Any]] = {
        "cluster": {"cluster_id": {"type": "str"}, "fingerprint": {"type": "str"}},
        "new": {"new_cluster": {"type": "bool", "default": False}},
        "run": {"run_id": {"type": "str", "default": ""}},
        "parts": {"require": {"type": "list", "elements": "str", "choices": list(PARTS), "default": []}},
        "metrics": {"metrics": {"type": "path"}},
    }
    spec: dict[str, t.Any] = {"store": {"type": "path", "required": True}}
    for group in groups:
        spec.update(options[group])
    return spec


def transfer_spec() -> dict[str, t.Any]:
    """Options of the doc fragment ``transfer``."""
    return {
        "headroom": {"type": "float", "default": 0.1},
        "workers": {"type": "int", "default": 8},
        "rate_limit": {"type": "int"},
        "connect_timeout": {"type": "float", "default": 30},
        "stall_timeout": {"type": "float", "default": 60},
    }


def login_spec() -> dict[str, t.Any]:
    """Options of an SSH login."""
    return {
        "port": {"type": "int", "default": 22},
        "key_file": {"type": "path", "no_log": False},
        "passphrase": {"type": "str", "no_log": True},
        "host_key": {"type": "str", "no_log": False},
        "known_hosts": {"type": "path"},
    }


def chosen(params: t.Mapping[str, t.Any]) -> dict[str, str]:
    """The cluster that the options name, as arguments of :class:`ClusterStore`."""
    return {name: params.get(name) or "" for name in ONE_NAME[0]}


def chosen_store(params: t.Mapping[str, t.Any]) -> ClusterStore:
    """The part of the store that the options name. Raises ``Refused`` (STORE_MISSING, UNKNOWN_CLUSTER)."""
    return ClusterStore.require(params["store"], **chosen(params))


def follow(module: str) -> t.Callable[[str], None]:
    """Lines for whoever watches a transfer (``journalctl -t kmsops-...``): a module's result comes only at its end."""

    def say(line: str) -> None:
        syslog.openlog(f"kmsops-{module.replace('_', '-')}", syslog.LOG_PID, syslog.LOG_DAEMON)
        syslog.syslog(syslog.LOG_INFO, line)

    return say
