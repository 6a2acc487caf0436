# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""The store of another site, only ever read: nothing there is believed before it was read as strictly as at home."""

from __future__ import annotations

import contextlib
import posixpath
import typing as t
from dataclasses import dataclass

from .._core import catalogue, ledger, parts, replication
from .._core import manifest as manifests
from .._core.manifest import BACKUP_ID, CLUSTER_ID, Manifest
from .._core.strict import Invalid, Problem
from .._errors import Refused, Unreadable
from ._discover import Item, Source, discover
from ._endpoint import Endpoint, Session
from ._store import as_reasons

_DOCUMENT = 64 << 20
_LEDGER = 1 << 30


@dataclass(frozen=True)
class Site:
    """Where another store is: an endpoint, the root directory of the store there, and what people call it."""

    endpoint: Endpoint
    root: str
    name: str

    @contextlib.contextmanager
    def look(self) -> t.Iterator[Look]:
        """A connection to look with. Raises what connections raise."""
        with contextlib.closing(self.endpoint.connect()) as session:
            yield Look(self, session)


class Look:
    """Documents and directories of another store. Whatever cannot be read is :class:`Refused` (OTHER_UNREADABLE)."""

    def __init__(self, site: Site, session: Session) -> None:
        self.site = site
        self.session = session

    def _refused(self, path: str, error: OSError) -> Refused:
        return Refused(
            f"{self.site.endpoint.label}:{path} cannot be read: {error.strerror or error}.",
            "OTHER_UNREADABLE",
            "Correct other.path, and see that other.user may read everything in the store there.",
        )

    def names(self, *path: str) -> list[str]:
        """Names in a directory; none if it is absent."""
        where = posixpath.join(self.site.root, *path)
        try:
            return [name for name, _attributes in self.session.listdir(where)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._refused(where, error) from None

    def read(self, *path: str, limit: int = _DOCUMENT) -> bytes:
        """A small file. Raises FileNotFoundError."""
        where = posixpath.join(self.site.root, *path)
        try:
            return self.session.read(where, limit)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._refused(where, error) from None

    def identities(self) -> dict[str, catalogue.StoreIdentity]:
        """The clusters of the store there. Raises :class:`Refused` (OTHER_MISSING) or :class:`Unreadable`."""
        found = {}
        for name in self.names():
            if not CLUSTER_ID.match(name):
                continue
            try:
                with contextlib.suppress(FileNotFoundError):
                    found[name] = catalogue.parse_identity(self.read(name, "store.json"), name)
            except Invalid as error:
                raise Unreadable(
                    f"store.json of {name} at {self.site.endpoint.label} cannot be trusted.",
                    f"OTHER_{error.problems[0].code}",
                    "Nothing was touched. Look at the store there with backup_info of its own release.",
                    reasons=as_reasons(error.problems),
                ) from None
        if not found:
            raise Refused(
                f"There is no store in {self.site.endpoint.label}:{self.site.root}.",
                "OTHER_MISSING",
                "Correct other.path: it is the root directory of the store there.",
            )
        return found

    def ledger(self, cluster_id: str) -> bytes:
        """The ledger there."""
        try:
            return self.read(cluster_id, "ledger.jsonl", limit=_LEDGER)
        except FileNotFoundError:
            return b""

    def manifest(self, identity: catalogue.StoreIdentity, backup_id: str) -> Manifest:
        """A manifest. Raises FileNotFoundError, or :class:`Invalid`."""
        data = self.read(identity.cluster_id, "backups", backup_id, "manifest.json")
        manifest = manifests.parse(data, cluster_id=identity.cluster_id, backup_id=backup_id)
        generation = identity.generation_of(manifest.fingerprint)
        if generation is None or generation.generation != manifest.generation:
            raise Invalid([Problem("FOREIGN", "its manifest names a generation that store.json does not know")])
        return manifest

    def items(self, manifest: Manifest) -> tuple[Item, ...]:
        """The files to fetch. Raises :class:`Invalid` unless they are those of the manifest."""
        data = posixpath.join(self.site.root, manifest.cluster_id, "backups", manifest.id, "data")
        units = discover(self.session, Source(self.site.endpoint, data))
        items = tuple(item for unit in units for item in unit.items)
        wanted = sorted((entry.path, entry.size) for entry in manifest.files)
        if sorted((item.path, item.attributes.size) for item in items) != wanted:
            raise Invalid([Problem("CORRUPT", "its files are not those of its manifest")])
        return items

    def bundles(self, cluster_id: str, part: str, wanted: t.Container[str]) -> t.Iterator[parts.Bundle]:
        """The documents of bundles that are wanted and understood."""
        for name in self.names(cluster_id, part):
            if name in wanted:
                with contextlib.suppress(FileNotFoundError, Invalid):
                    document = self.read(cluster_id, part, name, "part.json")
                    yield parts.parse(document, cluster_id=cluster_id, part=part, bundle_id=name)

    def copies(self, cluster_id: str) -> list[str]:
        """Ids of what might be a backup there."""
        return [name for name in self.names(cluster_id, "backups") if BACKUP_ID.match(name)]


def copies_there(folded: ledger.Folded, listed: t.Iterable[str]) -> dict[str, replication.Copy]:
    """What the ledger there says of the backups that are listed there."""
    found = {}
    for name in listed:
        record = folded.backups.get(name, {})
        verdict = str(record.get("verdict", "unverified"))
        found[name] = replication.Copy(name, record.get("recorded_at"), verdict)
    return found
