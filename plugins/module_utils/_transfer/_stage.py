# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Staging: the store pushes one published backup to the node that will restore it, which needs nothing but sshd."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import posixpath
import stat
import time
import typing as t
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from .._core import manifest as manifests
from .._core.manifest import FileEntry, Manifest
from .._core.openability import describe
from .._errors import DsmError, Refused, Unreadable
from ._discover import DEEPEST, Item
from ._endpoint import SftpEndpoint
from ._keeping import usable
from ._pool import Pool
from ._progress import Lines
from ._pull import TransferPlan, TransferReport, pull
from ._sftp import Attributes, EndOfFile, ProtocolError, Sftp
from ._ssh import SshTarget, connect
from ._store import Checkpoint, ClusterStore, no_checkpoint

_PIECE = 1 << 20
_PARTIAL = ".incoming"
#: Longer (s) than any two clocks are apart, and than any pause of a run that lives.
_GRACE = 604800.0


@dataclass(frozen=True)
class StageRequest:
    """What to push where. ``id`` may be ``newest``; ``path`` is a directory on the node that is made if absent."""

    store: str
    cluster_id: str
    fingerprint: str
    id: str
    target: SshTarget
    path: str
    headroom: float = 0.1
    workers: int = 8
    rate_limit: float = 0.0
    say: t.Callable[[str], None] = lambda _line: None
    checkpoint: Checkpoint = no_checkpoint


@dataclass
class StageResult:
    """Where it is now, and what the transfer did; ``seconds`` with everything that was read back."""

    staged: dict[str, t.Any] = field(default_factory=dict)
    changed: bool = False
    report: TransferReport = field(default_factory=TransferReport)
    seconds: float = 0.0


def newest(store: ClusterStore) -> str:
    """The published backup with the highest sequence whose last verification did not fail. Raises :class:`Refused`
    (NOT_PUBLISHED) or :class:`Unreadable` (LEDGER_BROKEN: nobody knows what failed)."""
    store.ledger.trusted()
    found = usable(store)
    if not found:
        raise Refused(f"{store.path} holds no usable backup.", "NOT_PUBLISHED", "Run playbook ship_backups first.")
    return found[-1].id


def stage(request: StageRequest, check_mode: bool) -> StageResult:
    """Push a backup; what is already there is read back and hashed, never believed.

    Raises :class:`Refused` (NOT_PUBLISHED, BAD_TARGET, NODE_FULL, LOCKED and all of a connection) or
    :class:`Unreadable` (CORRUPT: the copy in the store is damaged).
    """
    if not posixpath.isabs(request.path) or manifests.path_problem(request.path.strip("/")):
        raise Refused(
            f"The target directory {request.path!r} cannot be used.",
            "BAD_TARGET",
            "Give an absolute path below the root directory.",
        )
    store = ClusterStore.require(request.store, cluster_id=request.cluster_id, fingerprint=request.fingerprint)
    backup_id = newest(store) if request.id == "newest" else request.id
    store.published(backup_id)
    started = time.monotonic()
    # The workers come first: nothing that has connections or threads may be forked.
    with Pool(0 if check_mode else request.workers) as pool:
        result = _staged(request, store, backup_id, pool, check_mode)
    result.seconds = round(time.monotonic() - started, 3)
    return result


def _staged(request: StageRequest, store: ClusterStore, backup_id: str, pool: Pool, check_mode: bool) -> StageResult:
    connection = connect(request.target)
    try:
        with contextlib.closing(connection), store.reading(backup_id):
            manifest = store.published(backup_id)
            push = _Push(connection.open_sftp(), request, store, manifest)
            # What one run has begun there another one would take for what a killed one left.
            with contextlib.nullcontext() if check_mode else store.staging(backup_id, push.place):
                return push.bring(pool, check_mode)
    except (EOFError, ProtocolError) as error:
        raise connection.lost(error) from None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EACCES, errno.EIO):
            raise Refused(
                f"{request.target.label}: {error.filename or request.path}: {error.strerror}.",
                "BAD_TARGET",
                "Give a directory that the user may write and that has room for the backup.",
            ) from None
        raise connection.lost(error) from None


class _Push:
    """One backup on its way to one node."""

    def __init__(self, sftp: Sftp, request: StageRequest, store: ClusterStore, manifest: Manifest) -> None:
        self.sftp = sftp
        self.request = request
        self.manifest = manifest
        self.source = store.data_path(manifest.id)
        self.target = posixpath.join(request.path, manifest.id)
        self.partial = posixpath.join(request.path, f".{manifest.id}{_PARTIAL}")
        self.document = manifests.dump(manifest)

    @property
    def place(self) -> str:
        """The directory of the node, as its files are known by."""
        return f"{SftpEndpoint(self.request.target).place}:{posixpath.normpath(self.request.path)}"

    def bring(self, pool: Pool, check_mode: bool) -> StageResult:
        """Make sure that it is there."""
        result = StageResult(staged=self.described())
        if not self.there():
            result.changed = True
            leftovers = self.leftovers()
            if not check_mode:
                for path in leftovers:
                    self.remove(path)
            self.check_room(sum(leftovers.values()) if check_mode else 0)
            if not check_mode:
                result.report = self.send(pool)
        return result

    def described(self) -> dict[str, t.Any]:
        """Where everything is on the node, in the form that the module restore takes as a candidate."""
        described = describe(self.manifest)
        data = posixpath.join(self.target, "data")
        archive = described["archive"]
        return {
            **described,
            "host": self.request.target.host,
            "directory": self.target,
            "path": posixpath.join(data, archive) if archive else data,
            "manifest_path": posixpath.join(self.target, "manifest.json"),
        }

    def there(self) -> bool:
        """Whether the node has exactly this backup: the same document, the same files, every byte read back."""
        try:
            if self._read(posixpath.join(self.target, "manifest.json")) != hashlib.sha256(self.document).hexdigest():
                return False
            return self._complete(self.target) and all(
                self._read(self._at(self.target, entry)) == entry.sha256 for entry in self.manifest.files
            )
        except FileNotFoundError:
            return False

    def _complete(self, base: str) -> bool:
        """Whether a directory of the node has these files, each of its size, and no others."""
        known = {str(parent) for entry in self.manifest.files for parent in PurePosixPath(entry.path).parents}
        try:
            found = sorted(self._files(posixpath.join(base, "data"), "", known))
        except FileNotFoundError:
            return False
        return found == sorted((entry.path, entry.size) for entry in self.manifest.files)

    def _at(self, base: str, entry: FileEntry) -> str:
        return posixpath.join(base, "data", entry.path)

    def _files(self, path: str, below: str, known: t.Collection[str]) -> t.Iterator[tuple[str, int]]:
        """What is there and its size; -1 for what is no file, a directory that this backup does not have included."""
        for name, attributes in self.sftp.listdir(path):
            relative = posixpath.join(below, name)
            if stat.S_ISDIR(attributes.mode) and relative in known:
                yield from self._files(posixpath.join(path, name), relative, known)
            else:
                yield relative, attributes.size if stat.S_ISREG(attributes.mode) else -1

    def _read(self, path: str) -> str:
        whole = hashlib.sha256()
        if not stat.S_ISREG(self.sftp.lstat(path).mode):
            return ""
        handle = self.sftp.open_read(path)
        try:
            size = self.sftp.fstat(handle).size
            with contextlib.suppress(EndOfFile):
                self.sftp.read(handle, 0, size, lambda _position, piece: whole.update(piece))
        finally:
            self.sftp.close(handle)
        return whole.hexdigest()

    def leftovers(self) -> dict[str, int]:
        """What runs that were killed left on the node, with its bytes: of this backup, and of others that nobody
        touched for :data:`_GRACE` (F14).

        Nothing of it is used. Whether it is right could be told only by reading it back, which costs the link as much
        as sending it again: the SFTP of OpenSSH hashes nothing. The node is beside the store, so that is short.
        """
        found = {}
        try:
            entries = self.sftp.listdir(self.request.path)
        except FileNotFoundError:
            return {}
        for name, attributes in entries:
            backup_id = name[1 : -len(_PARTIAL)]
            ours = name == f".{backup_id}{_PARTIAL}" and manifests.BACKUP_ID.match(backup_id)
            if not ours or not stat.S_ISDIR(attributes.mode):
                continue
            path = posixpath.join(self.request.path, name)
            newest, size = attributes.mtime, 0
            try:
                for _path, below in self._tree(path):
                    newest = max(newest, below.mtime)
                    size += below.size if stat.S_ISREG(below.mode) else 0
            except (FileNotFoundError, PermissionError):
                if path == self.partial:
                    raise
                # Another run has just finished it, or somebody else owns it.
                continue
            if path == self.partial or newest + _GRACE < time.time():
                found[path] = size
        return found

    def _tree(self, path: str, depth: int = DEEPEST + 3) -> t.Iterator[tuple[str, Attributes]]:
        """All below a directory of the node, what is in a directory before the directory itself."""
        if not depth:
            raise Refused(
                f"{self.request.target.label} has more directories one in the other below {self.request.path} than "
                "staging makes.",
                "BAD_TARGET",
                "Look at what is there, and give a directory that nobody else writes to.",
            )
        for name, attributes in self.sftp.listdir(path):
            below = posixpath.join(path, name)
            if stat.S_ISDIR(attributes.mode):
                yield from self._tree(below, depth - 1)
            yield below, attributes

    def check_room(self, leaving: int) -> None:
        """Refuse before the first byte what does not fit with headroom (code NODE_FULL); ``leaving`` bytes will go."""
        path = self.request.path
        while True:
            try:
                space = self.sftp.space(path)
                break
            except FileNotFoundError:
                if path == "/":
                    return
                path = posixpath.dirname(path)
        need = self.manifest.bytes * (1 + self.request.headroom)
        if space is not None and (space.bytes + leaving < need or 0 < space.inodes < len(self.manifest.files)):
            raise self._full(f"{need:.0f} bytes are needed, {space.bytes} are free")

    def _full(self, why: str) -> Refused:
        return Refused(
            f"{self.request.target.label} has no room for {self.manifest.id} in {self.request.path}: {why}.",
            "NODE_FULL",
            "Remove backups that were staged before, or name another directory.",
        )

    def send(self, pool: Pool) -> TransferReport:
        """Push into a hidden directory, rename it when everything is there."""
        at = self.request.checkpoint
        items = tuple(self._item(entry) for entry in self.manifest.files)
        self._make(self.request.path)
        self.sftp.mkdir(self.partial)
        self.sftp.mkdir(posixpath.join(self.partial, "data"))
        at("directory made")
        lines = Lines(f"{self.manifest.id} to {self.request.target.label}", self.request.say)

        def progress(done: int, total: int, workers: int) -> None:
            lines(done, total, workers)
            at("range landed")

        made = {""}
        try:
            for item in items:
                self._make_parents(posixpath.dirname(item.path), made)
                if not item.attributes.size:
                    self._write(item.source, [])
            report = pull(
                TransferPlan(
                    endpoint=SftpEndpoint(self.request.target),
                    items=items,
                    directory=self.source,
                    journal="",
                    workers=self.request.workers,
                    rate_limit=self.request.rate_limit,
                    push=True,
                ),
                progress,
                pool,
            )
            at("pushed")
            for entry in self.manifest.files:
                if report.sha256[entry.path] != entry.sha256:
                    raise self._damaged(entry)
            self._write(posixpath.join(self.partial, "manifest.json"), [self.document])
            at("manifest written")
        except (DsmError, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.EIO:
                raise
            full = self._filled_up()
            self.remove(self.partial)
            if full is not None:
                raise full from None
            raise
        # Who stages from another store knows nothing of this one's locks.
        if not self._complete(self.partial):
            raise Refused(
                f"Somebody else changed what was pushed to {self.request.target.label}:{self.partial} meanwhile.",
                "LOCKED",
                "Let nobody else write there, no other store either, then run again.",
            )
        self.remove(self.target)
        at("old one removed")
        self.sftp.rename(self.partial, self.target)
        at("renamed")
        return report

    def _filled_up(self) -> Refused | None:
        """The error for a full disk of the node, if that is what it is: SFTP has no word for it."""
        space = self.sftp.space(self.request.path)
        return None if space is None or space.bytes >= _PIECE else self._full("its disk filled up")

    def _item(self, entry: FileEntry) -> Item:
        """One file to push, if the store has it in full."""
        try:
            status = os.lstat(os.path.join(self.source, entry.path))
        except OSError:
            raise self._damaged(entry) from None
        if not stat.S_ISREG(status.st_mode) or status.st_size != entry.size:
            raise self._damaged(entry)
        return Item(self._at(self.partial, entry), entry.path, Attributes(entry.size, status.st_mode, entry.mtime))

    def _damaged(self, entry: FileEntry) -> Unreadable:
        return Unreadable(
            f"The copy of {self.manifest.id} in the store is damaged: {entry.path} is not what was published.",
            "CORRUPT",
            "Run backup_verify, and stage another backup.",
        )

    def _make_parents(self, directory: str, made: set[str]) -> None:
        if directory not in made:
            self._make_parents(posixpath.dirname(directory), made)
            self.sftp.mkdir(posixpath.join(self.partial, "data", directory))
            made.add(directory)

    def _write(self, path: str, pieces: t.Iterable[bytes]) -> int:
        handle = self.sftp.open_write(path)
        try:
            sent = self.sftp.write(handle, pieces, path)
            self.sftp.fsync(handle)
        finally:
            self.sftp.close(handle)
        return sent

    def _make(self, path: str) -> None:
        try:
            self.sftp.lstat(path)
        except FileNotFoundError:
            self._make(posixpath.dirname(path))
            self.sftp.mkdir(path)

    def remove(self, path: str) -> None:
        """Remove a directory that an earlier run made; a link in it is removed, not followed."""
        try:
            self.sftp.lstat(path)
        except FileNotFoundError:
            return
        for below, attributes in self._tree(path):
            (self.sftp.rmdir if stat.S_ISDIR(attributes.mode) else self.sftp.remove)(below)
        self.sftp.rmdir(path)
