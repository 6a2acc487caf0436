# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""How new the backups of this site are, and those of the other one when it was last looked at."""

from __future__ import annotations

import json
import os
import socket
import typing as t

from .._core import replication
from .._core.strict import Invalid, utc_text
from .._errors import DsmError
from ._disk import read_bytes, write_atomically
from ._keeping import Kept
from ._store import ClusterStore


def remember(store: ClusterStore, found: replication.Site) -> None:
    """What was seen of the other site."""
    data = json.dumps(replication.dump_site(found), sort_keys=True).encode("ascii")
    write_atomically(os.path.join(store.path, "other.json"), data)


def other_site(store: ClusterStore) -> replication.Site | None:
    """What was last seen of the other site; None if nothing was, or it cannot be read."""
    try:
        return replication.parse_site(read_bytes(os.path.join(store.path, "other.json")))
    except (FileNotFoundError, Invalid, DsmError):
        return None


def sites(store: ClusterStore, kept: t.Iterable[Kept], now: float) -> list[dict[str, t.Any]]:
    """How new the backups of this site are, and of the other one when it was last looked at."""
    copies = [
        replication.Copy(one.entry.id, one.entry.manifest.published_at, one.verdict)
        for one in kept
        if one.entry.manifest is not None
    ]
    own = replication.site(socket.gethostname(), utc_text(now), copies)
    other = other_site(store)
    told = [(True, own), *([(False, other)] if other is not None else [])]
    return [{"cluster_id": store.identity.cluster_id, "here": here, **found._asdict()} for here, found in told]
