# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""From options of ``backup_replicate`` to a request. Apart from those of shipping, which need not load replication."""

from __future__ import annotations

import typing as t

from .._core.manifest import path_problem
from ._other import Site
from ._replicate import ReplicateRequest
from ._request import Options, bad, endpoint, numbers, refuse, silent


def replicate_request(options: Options, say: t.Callable[[str], None] = silent) -> ReplicateRequest:
    """The request of ``backup_replicate``. Raises :class:`Refused` (code BAD_OPTION)."""
    other = options["other"]
    reasons = numbers(options, {"other": other})
    if other.get("host") and not other.get("user"):
        reasons.append(bad("other names a host and no user"))
    if not other["path"].startswith("/") or path_problem(other["path"].strip("/")) or set("*?[") & set(other["path"]):
        reasons.append(bad(f"other.path is {other['path']!r}; give the absolute path of the root directory there"))
    refuse(reasons)
    return ReplicateRequest(
        store=options["store"],
        other=Site(
            endpoint(other, options), other["path"].rstrip("/"), other.get("name") or other.get("host") or "other"
        ),
        only_repair=options["state"] == "repaired",
        cluster_id=options["cluster_id"] or "",
        fingerprint=options["fingerprint"] or "",
        new_cluster=options["new_cluster"],
        headroom=options["headroom"],
        workers=options["workers"],
        rate_limit=float(options["rate_limit"] or 0),
        accept=frozenset(options["accept"]),
        run_id=options["run_id"],
        say=say,
    )
