# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""The store on disk: who it belongs to, what is published in it, who may change it now, and how a backup is published.

Everything here survives ``kill -9`` between any two system calls: documents are replaced atomically, data comes first
and the manifest last, and whatever a dead run left behind is found again and checked before it is used.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import time
import typing as t
from dataclasses import dataclass

from .._core import catalogue, ledger
from .._core import manifest as manifests
from .._core.manifest import BACKUP_ID, CLUSTER_ID, Manifest
from .._core.strict import Invalid, Problem, utc_text
from .._errors import DsmError, Reason, Refused, Unreadable
from ._disk import (
    make_directory,
    not_written,
    read_bytes,
    remove_tree,
    sync_directory,
    sync_tree,
    write_atomically,
)

#: What the manifest of a pruned backup is called until the rest of it is gone.
REMOVED = "removed.json"
#: Beside a backup that is being repaired: its bad bytes, until the good ones are published.
BAD = "bad"
LEASE_SECONDS = 900
RENEW_SECONDS = 60

Checkpoint = t.Callable[[str], None]


def no_checkpoint(_step: str) -> None:
    """Tests replace this to die at every step."""


def as_reasons(problems: t.Iterable[Problem], remedy: str = "") -> list[Reason]:
    """Problems of the core as hard reasons."""
    return [Reason(problem.code, problem.message, remedy) for problem in problems]


@dataclass(frozen=True)
class Entry:
    """One directory of ``backups/``: ``published`` (with its manifest), ``incomplete``, ``failed``, or ``removing``
    (no backup any more, its remains wait to be removed)."""

    id: str
    state: str
    manifest: Manifest | None
    problems: tuple[Problem, ...]


def this_process() -> catalogue.Owner:
    """Host, boot id, pid and start time of this process."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot_id = file.read().strip()
    return catalogue.Owner(socket.gethostname(), boot_id, os.getpid(), _start_time(os.getpid()) or 0)


def _start_time(pid: int) -> int | None:
    """Start of a process in clock ticks since boot (proc(5), field 22); None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return int(fields[19]) if fields[0] != b"Z" else None


def identities(root: str) -> dict[str, catalogue.StoreIdentity]:
    """The clusters whose backups a store holds. Raises :class:`Refused` (STORE_MISSING) or :class:`Unreadable`."""
    try:
        names = sorted(os.listdir(root))
    except OSError as error:
        raise Refused(
            f"The store {root} cannot be listed: {error.strerror}.",
            "STORE_MISSING",
            "Run role backup_store on this host, or correct the option store.",
        ) from None
    found = {}
    for name in names:
        if CLUSTER_ID.match(name):
            with contextlib.suppress(FileNotFoundError):
                found[name] = _identity(os.path.join(root, name))
    return found


def _identity(directory: str) -> catalogue.StoreIdentity:
    path = os.path.join(directory, "store.json")
    try:
        return catalogue.parse_identity(read_bytes(path), os.path.basename(directory))
    except Invalid as error:
        code = error.problems[0].code
        raise Unreadable(
            f"{path} cannot be trusted.",
            f"STORE_{code}",
            "Nothing was touched. Restore store.json from another copy of the store, or name another store.",
            reasons=as_reasons(error.problems),
        ) from None


class ClusterStore:
    """One cluster's part of a store."""

    def __init__(self, root: str, identity: catalogue.StoreIdentity, checkpoint: Checkpoint = no_checkpoint) -> None:
        self.root = root
        self.identity = identity
        self.checkpoint = checkpoint
        self.path = os.path.join(root, identity.cluster_id)
        self.backups_path = os.path.join(self.path, "backups")
        self.incoming_path = os.path.join(self.path, "incoming")
        self.index = self._read_index()
        self.ledger = LedgerFile(os.path.join(self.path, "ledger.jsonl"), self.index)

    # -- identity ---------------------------------------------------------------------------------------------------
    @classmethod
    def find(cls, root: str, *, cluster_id: str = "", fingerprint: str = "") -> ClusterStore | None:
        """The part of a cluster, named by id, by the fingerprint of any generation, or by being the only one."""
        known = identities(root)
        for identity in known.values():
            found = cls(root, identity)
            if not cluster_id and not fingerprint and len(known) == 1:
                return found
            if identity.cluster_id == cluster_id or (fingerprint and identity.generation_of(fingerprint)):
                return found
            if fingerprint and found.missing_generation(fingerprint):
                return found
        return None

    @classmethod
    def require(cls, root: str, *, cluster_id: str = "", fingerprint: str = "") -> ClusterStore:
        """Like :meth:`find`, but a cluster that is not there is refused (code UNKNOWN_CLUSTER)."""
        found = cls.find(root, cluster_id=cluster_id, fingerprint=fingerprint)
        if found is None:
            known = ", ".join(identities(root)) or "no cluster"
            raise Refused(
                f"The store {root} holds {known}; that leaves it open which cluster is meant."
                if not cluster_id and not fingerprint
                else f"The store {root} holds nothing of cluster {cluster_id or fingerprint[:16]}; it holds {known}.",
                "UNKNOWN_CLUSTER",
                "Correct store, cluster_id or fingerprint.",
            )
        return found

    @classmethod
    def open(
        cls,
        root: str,
        fingerprint: str,
        *,
        uid: str,
        members: t.Sequence[str],
        run_id: str,
        new_cluster: bool,
        create: bool,
        checkpoint: Checkpoint = no_checkpoint,
    ) -> ClusterStore:
        """The part of the cluster with ``fingerprint``, made if the store is empty or ``new_cluster`` says so.

        With ``create`` false (check mode) nothing is written. Raises :class:`Refused` (ANOTHER_CLUSTER, ...).
        """
        try:
            cluster_id = catalogue.cluster_id_of(fingerprint)
        except Invalid as error:
            raise Refused(
                str(error) + ".", "BAD_FINGERPRINT", "Take cluster.fingerprint from the module cluster_info."
            ) from None
        known = identities(root)
        for identity in known.values():
            found = cls(root, identity, checkpoint)
            if identity.generation_of(fingerprint):
                return found
            event = found.missing_generation(fingerprint)
            if event:
                return found._with_generation(fingerprint, uid, members, event, create)
        problems = catalogue.store_problems(known, fingerprint, may_create=new_cluster)
        if problems:
            raise Refused(
                "These bytes do not belong into this store.",
                "ANOTHER_CLUSTER",
                "Check store and the member that was asked. After a recovery the ledger must hold its event 'restored' "
                "(drill: false) first. To keep a second cluster in the same store, say new_cluster: true once.",
                reasons=as_reasons(problems),
            )
        facts = {"uid": uid, "members": tuple(members), "run_id": run_id, "added_at": utc_text(time.time())}
        identity = catalogue.StoreIdentity(cluster_id, ()).with_generation(fingerprint, because="first", **facts)
        made = cls(root, identity, checkpoint)
        if create:
            make_directory(made.path)
            made.checkpoint("cluster directory")
            write_atomically(os.path.join(made.path, "store.json"), catalogue.dump_identity(identity))
            made.checkpoint("store.json")
        return made

    def missing_generation(self, fingerprint: str) -> ledger.Event | None:
        """The event ``restored`` (no drill) of a generation that ``store.json`` does not list yet."""
        if self.identity.generation_of(fingerprint):
            return None
        for event in self.ledger.chain().events:
            if ledger.is_recovery(event) and event.data.get("fingerprint") == fingerprint:
                return event
        return None

    def _with_generation(
        self, fingerprint: str, uid: str, members: t.Sequence[str], event: ledger.Event, create: bool
    ) -> ClusterStore:
        self.identity = self.identity.with_generation(
            fingerprint,
            uid=uid,
            members=tuple(members),
            run_id=event.run_id,
            added_at=event.time,
            because=f"restored {event.data.get('backup')}",
        )
        if create:
            write_atomically(os.path.join(self.path, "store.json"), catalogue.dump_identity(self.identity))
        return self

    # -- catalogue --------------------------------------------------------------------------------------------------
    def entries(self) -> list[Entry]:
        """Every directory of ``backups/``, in the order of ids (sequence, not time)."""
        return [self.entry(name) for name in self.backup_names()]

    def _read_index(self) -> catalogue.Index:
        try:
            return catalogue.parse_index(read_bytes(os.path.join(self.path, "index.json")))
        except (FileNotFoundError, NotADirectoryError, DsmError):
            return catalogue.NO_INDEX

    def refresh_index(self) -> None:
        """Remember what the strict readers accept now; failing to is no failure."""
        manifests_ = {}
        for entry in self.entries():
            if entry.manifest is not None:
                with contextlib.suppress(OSError, DsmError):
                    data = read_bytes(os.path.join(self.backups_path, entry.id, "manifest.json"))
                    manifests_[entry.id] = hashlib.sha256(data).hexdigest()
        index = catalogue.Index(manifests_, *self.ledger.accepted())
        if index != self.index:
            with contextlib.suppress(OSError, DsmError):
                write_atomically(os.path.join(self.path, "index.json"), catalogue.dump_index(index))

    def backup_names(self) -> list[str]:
        """Every name in ``backups/``, in order."""
        try:
            return sorted(os.listdir(self.backups_path))
        except FileNotFoundError:
            return []

    def entry(self, name: str, document: str = "manifest.json") -> Entry:
        """What one directory of ``backups/`` is, with :data:`REMOVED` what it would be if it was published again. Never
        guesses: everything that is not fully understood is failed."""
        directory = os.path.join(self.backups_path, name)
        if not BACKUP_ID.match(name):
            problem = Problem("UNKNOWN", f"{directory} is nothing that this collection made")
            return Entry(name, "failed", None, (problem,))
        try:
            data = read_bytes(os.path.join(directory, document))
            known = self.index.manifests.get(name)
            if known is not None and known == hashlib.sha256(data).hexdigest():
                manifest = manifests.parse_known(data)
            else:
                manifest = manifests.parse(data, cluster_id=self.identity.cluster_id, backup_id=name)
        except FileNotFoundError:
            if os.path.lexists(os.path.join(directory, REMOVED)):
                return Entry(name, "removing", None, (Problem("REMOVING", f"{name} was pruned, its remains are left"),))
            return Entry(name, "incomplete", None, (Problem("NO_MANIFEST", f"{name} has no manifest"),))
        except Unreadable as error:
            return Entry(name, "failed", None, (Problem("UNREADABLE", error.message),))
        except Invalid as error:
            return Entry(name, "failed", None, tuple(error.problems))
        generation = self.identity.generation_of(manifest.fingerprint)
        if generation is None or generation.generation != manifest.generation:
            problem = Problem("FOREIGN", f"{name} names a generation that store.json does not know")
            return Entry(name, "failed", None, (problem,))
        return Entry(name, "published", manifest, ())

    def published(self, backup_id: str) -> Manifest:
        """The manifest of a published backup. Raises :class:`Refused` (NOT_PUBLISHED) or :class:`Unreadable`."""
        if not BACKUP_ID.match(backup_id) or not os.path.isdir(os.path.join(self.backups_path, backup_id)):
            known = [entry.id for entry in self.entries() if entry.state == "published"]
            raise Refused(
                f"There is no backup {backup_id!r} in {self.path}.",
                "NOT_PUBLISHED",
                f"Published are: {', '.join(known[-10:]) or 'none'}.",
            )
        entry = self.entry(backup_id)
        if entry.manifest is None:
            raise Unreadable(
                f"Backup {backup_id} cannot be used.",
                "NOT_PUBLISHED" if entry.state == "incomplete" else "BAD_MANIFEST",
                "Choose another backup, or ship again.",
                reasons=as_reasons(entry.problems),
            )
        return entry.manifest

    def has_manifest(self, backup_id: str) -> bool:
        """Whether there is a manifest, good or bad."""
        return os.path.lexists(os.path.join(self.backups_path, backup_id, "manifest.json"))

    def data_path(self, backup_id: str) -> str:
        """Where the files of a published backup are."""
        return os.path.join(self.backups_path, backup_id, "data")

    def incoming(self) -> list[str]:
        """Ids of unfinished transfers."""
        return _ids_in(self.incoming_path)

    def repairs(self) -> list[str]:
        """Ids of copies that are to take the place of bad ones."""
        return _ids_in(self.repairs_path)

    def seen_ids(self) -> list[str]:
        """Every id that was ever used here, as far as the store and its ledger tell."""
        return [*self.backup_names(), *self.incoming(), *self._shipped_ids()]

    def _shipped_ids(self) -> list[str]:
        return [event.subject for event in self.ledger.chain().events if event.kind == "shipped"]

    def free(self) -> tuple[int, int]:
        """Free bytes and inodes of the file system for this user."""
        path = self.path if os.path.isdir(self.path) else self.root
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize, found.f_favail if found.f_files else 1 << 62

    def capacity(self) -> int:
        """Bytes that the file system could hold if it were empty."""
        found = os.statvfs(self.path if os.path.isdir(self.path) else self.root)
        return found.f_blocks * found.f_frsize

    # -- publishing -------------------------------------------------------------------------------------------------
    def publish(self, backup_id: str, manifest: Manifest) -> None:
        """Data first, then the manifest; then what was needed to resume goes away (law 4). Raises :class:`Refused`
        (BAD_MANIFEST)."""
        document = self._document(manifest)
        incoming = os.path.join(self.incoming_path, backup_id)
        target = os.path.join(self.backups_path, backup_id)
        sync_tree(os.path.join(incoming, "data"))
        make_directory(self.backups_path)
        make_directory(target)
        self.checkpoint("directory made")
        os.rename(os.path.join(incoming, "data"), os.path.join(target, "data"))
        sync_directory(target)
        sync_directory(incoming)
        self.checkpoint("data moved")
        write_atomically(os.path.join(target, "manifest.json"), document)
        self.checkpoint("manifest written")
        remove_tree(incoming)
        self.checkpoint("incoming removed")

    def _document(self, manifest: Manifest) -> bytes:
        """The manifest as it is written. One that the strict reader refuses would make a backup that nobody can use."""
        data = manifests.dump(manifest)
        try:
            manifests.parse(data, cluster_id=self.identity.cluster_id, backup_id=manifest.id)
        except Invalid as error:
            raise Refused(
                f"What is to be said of {manifest.id} would be refused by whoever reads it.",
                "BAD_MANIFEST",
                "Nothing was published, and what landed is kept. Correct what is named (the clock of the source, an "
                "option), then run again.",
                reasons=as_reasons(error.problems),
            ) from None
        return data

    def take_back(self) -> None:
        """What a run that was killed while publishing left in ``backups/`` becomes an unfinished transfer again.

        One for which that fails stops no other; the first error is raised at the end.
        """
        errors: list[Exception] = []
        for name in self.incoming():
            try:
                self._take_back(name)
            except (DsmError, OSError) as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _take_back(self, name: str) -> None:
        incoming = os.path.join(self.incoming_path, name)
        target = os.path.join(self.backups_path, name)
        if os.path.exists(os.path.join(target, "manifest.json")):
            remove_tree(incoming)
        elif os.path.isdir(target):
            if os.path.isdir(os.path.join(target, "data")) and not os.path.exists(os.path.join(incoming, "data")):
                os.rename(os.path.join(target, "data"), os.path.join(incoming, "data"))
            remove_tree(target)

    @property
    def repairs_path(self) -> str:
        """Where better copies of bad backups land, each in a directory of its id."""
        return os.path.join(self.path, "repair")

    def exchange(self, backup_id: str, manifest: Manifest) -> None:
        """A better copy, complete in :attr:`repairs_path`, takes the place of a bad one (which may be gone altogether).

        The bad manifest goes first, the good one comes last; the bad bytes stay beside it until then. Raises
        :class:`Refused` (BEING_READ) while somebody reads the bad one, or (BAD_MANIFEST).
        """
        document = self._document(manifest)
        source = os.path.join(self.repairs_path, backup_id)
        target = os.path.join(self.backups_path, backup_id)
        sync_tree(os.path.join(source, "data"))
        make_directory(self.backups_path)
        make_directory(target)
        with self._backup_lock(backup_id, fcntl.LOCK_EX | fcntl.LOCK_NB):
            aside = os.path.join(target, BAD)
            make_directory(aside)
            for name in ("manifest.json", "data"):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(os.path.join(target, name), os.path.join(aside, name))
                sync_directory(target)
                sync_directory(aside)
                self.checkpoint(f"bad {name} aside")
            os.rename(os.path.join(source, "data"), os.path.join(target, "data"))
            sync_directory(target)
            sync_directory(source)
            self.checkpoint("good data moved")
            # When its files were read last is no longer true of these.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(target, "reads.json"))
            write_atomically(os.path.join(target, "manifest.json"), document)
            self.checkpoint("good manifest written")
            self._exchanged(backup_id)

    def _exchanged(self, backup_id: str) -> None:
        remove_tree(os.path.join(self.backups_path, backup_id, BAD))
        self.checkpoint("bad bytes removed")
        remove_tree(os.path.join(self.repairs_path, backup_id))

    def finish_exchanges(self) -> None:
        """What a run that was killed while it exchanged copies left: ended if the good one is published, else undone as
        far as the good bytes are where the next run looks for them. Call it under the lease."""
        for name in self.backup_names():
            target = os.path.join(self.backups_path, name)
            aside = os.path.join(target, BAD)
            if not os.path.isdir(aside) or os.path.lexists(os.path.join(target, REMOVED)):
                # What is un-published was published once: its own data are the good ones, and prune decides about it.
                continue
            if self.has_manifest(name):
                self._exchanged(name)
            elif os.path.isdir(os.path.join(aside, "data")) and os.path.isdir(os.path.join(target, "data")):
                landed = os.path.join(self.repairs_path, name, "data")
                if os.path.isdir(os.path.dirname(landed)) and not os.path.lexists(landed):
                    os.rename(os.path.join(target, "data"), landed)
                else:
                    remove_tree(os.path.join(target, "data"))

    # -- reading and removing ---------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def reading(self, backup_id: str) -> t.Iterator[None]:
        """Read a backup; nobody may remove it meanwhile. The kernel ends this with the process, and it needs no space.

        Ask for the manifest inside: the backup may be gone already.
        """
        with self._backup_lock(backup_id, fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def staging(self, backup_id: str, place: str) -> t.Iterator[None]:
        """Push a published backup to one place, to which nobody else on this host pushes it meanwhile (code LOCKED).
        Call it inside :meth:`reading`; the kernel ends it with the process.

        Where no file can be made for the place (the store is full or read-only) nobody else pushes this backup at all.
        """
        directory = os.path.join(self.backups_path, backup_id)
        own = os.path.join(directory, f"staging.{hashlib.sha256(place.encode('utf-8', 'surrogateescape')).hexdigest()}")
        with contextlib.ExitStack() as stack:

            def hold(path: str, flags: int, operation: int) -> int:
                descriptor = os.open(path, flags | os.O_RDONLY | os.O_CLOEXEC, 0o600)
                stack.callback(os.close, descriptor)
                fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
                return descriptor

            try:
                shared = fcntl.LOCK_SH
                try:
                    # Whoever had it before took the file away.
                    while not _is_at(hold(own, os.O_CREAT, fcntl.LOCK_EX), own):
                        continue
                    stack.callback(_remove_if_possible, own)
                except BlockingIOError:
                    raise
                except OSError:
                    shared = fcntl.LOCK_EX
                hold(os.path.join(directory, "manifest.json"), 0, shared)
            except BlockingIOError:
                raise Refused(
                    f"Another run pushes backup {backup_id} to {place}.",
                    "LOCKED",
                    "It may go on although whoever started it was ended. Wait until it is done ('fuser -v "
                    f"{directory}/*' on the store names it), or end it, then run again.",
                ) from None
            yield

    def unpublish(self, backup_id: str) -> None:
        """The manifest goes first (law 4): from here on it is no backup. Raises :class:`Refused` (BEING_READ)."""
        with self._backup_lock(backup_id, fcntl.LOCK_EX | fcntl.LOCK_NB):
            directory = os.path.join(self.backups_path, backup_id)
            path = os.path.join(directory, "manifest.json")
            if os.path.lexists(path):
                os.rename(path, os.path.join(directory, REMOVED))
            else:
                os.close(os.open(os.path.join(directory, REMOVED), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            sync_directory(directory)

    def republish(self, backup_id: str) -> None:
        """The inverse of :meth:`unpublish`, for what no data was removed of. Call it under the lease."""
        directory = os.path.join(self.backups_path, backup_id)
        path = os.path.join(directory, REMOVED)
        if os.lstat(path).st_size:
            os.rename(path, os.path.join(directory, "manifest.json"))
        else:
            # There was no manifest.
            os.unlink(path)
        sync_directory(directory)

    @contextlib.contextmanager
    def _backup_lock(self, backup_id: str, operation: int) -> t.Iterator[None]:
        if not BACKUP_ID.match(backup_id):
            yield
            return
        try:
            descriptor = os.open(
                os.path.join(self.backups_path, backup_id), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            )
        except (FileNotFoundError, NotADirectoryError):
            yield
            return
        try:
            try:
                fcntl.flock(descriptor, operation)
            except BlockingIOError:
                raise Refused(
                    f"Backup {backup_id} is being read.", "BEING_READ", "It goes at the next run, when nobody reads it."
                ) from None
            yield
        finally:
            os.close(descriptor)

    def unmake(self) -> bool:
        """Take ``store.json`` away again if nothing is beside it; whether that was so. Call it under the lease."""
        if not set(os.listdir(self.path)) <= {"store.json", "incoming", "lock"} or self.incoming():
            return False
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(self.incoming_path)
        os.unlink(os.path.join(self.path, "store.json"))
        return True

    # -- lease ------------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def mutex(self) -> t.Iterator[None]:
        """A moment in which nobody else on this host decides about the lease; the kernel ends it with the process."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise Refused(
                f"{self.path} was taken away at this moment by another run, which had found nothing to put there.",
                "LOCKED",
                "Run again.",
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def look_at_lease(self) -> tuple[str, str]:
        """Whether the lease could be had now, see ``catalogue.decide_lease``."""
        try:
            lease: catalogue.Lease | None = catalogue.parse_lease(read_bytes(os.path.join(self.path, "lock")))
        except FileNotFoundError:
            lease = None
        except Invalid as error:
            # It is written atomically, so an unreadable one was damaged and its owner cannot be known.
            return "held", f"somebody unknown: {error}"
        alive = lease is not None and _start_time(lease.owner.pid) == lease.owner.started
        return catalogue.decide_lease(lease, this_process(), alive, time.time())

    def refuse_if_held(self) -> str:
        """Raise :class:`Refused` (code LOCKED) if a living owner has the lease; else why it is free to take."""
        verdict, reason = self.look_at_lease()
        if verdict == "held":
            raise Refused(
                f"Somebody else works on this part of the store: {reason}.",
                "LOCKED",
                f"Wait for it to end. If you know that it is gone for good, remove {os.path.join(self.path, 'lock')}.",
            )
        return reason

    @contextlib.contextmanager
    def lease(self, run_id: str) -> t.Iterator[Lease]:
        """Hold the lease. Raises :class:`Refused` (code LOCKED)."""
        with self.mutex():
            taken_over = self.refuse_if_held()
            held = Lease(self, run_id, taken_over)
            held.renew(force=True)
        try:
            yield held
        finally:
            held.release()


class Lease:
    """The right to change a cluster's part of the store, renewed while work goes on."""

    def __init__(self, store: ClusterStore, run_id: str, taken_over: str) -> None:
        self.taken_over = taken_over
        self._store = store
        self._run_id = run_id
        self._path = os.path.join(store.path, "lock")
        self._me = this_process()
        self._acquired = utc_text(time.time())
        self._renewed = 0.0

    def renew(self, force: bool = False) -> None:
        """Prolong the lease if a while has passed."""
        if force or time.monotonic() - self._renewed > RENEW_SECONDS:
            expires = utc_text(time.time() + LEASE_SECONDS)
            lease = catalogue.Lease(self._run_id, self._me, self._acquired, expires)
            if not force:
                self.confirm()
            write_atomically(self._path, catalogue.dump_lease(lease))
            self._renewed = time.monotonic()

    def confirm(self) -> None:
        """Raise :class:`Refused` (code LEASE_LOST) unless the lease is still ours; asked right before publishing."""
        try:
            owner = catalogue.parse_lease(read_bytes(self._path)).owner
        except (FileNotFoundError, Invalid):
            owner = None
        if owner != self._me:
            raise Refused(
                "The lease of this part of the store was lost to somebody else; nothing was published.",
                "LEASE_LOST",
                "Run again. If it happens again, two schedulers ship into the same store: stop one.",
            )

    def release(self) -> None:
        """Give the lease back if it is still ours; one that cannot be taken away ends with this process."""
        with self._store.mutex(), contextlib.suppress(OSError, Invalid):
            if catalogue.parse_lease(read_bytes(self._path)).owner == self._me:
                os.unlink(self._path)


@dataclass(frozen=True)
class _Read:
    """What this process knows of a ledger file: how the file was when it was read, its events, how many lines there
    are, and the length and hash state of those that are right."""

    file: tuple[int, ...]
    chain: ledger.Chain
    lines: int
    right: int
    sha256: t.Any


class LedgerFile:
    """``ledger.jsonl`` on disk. What was read once is read again only where the file is another than it was."""

    def __init__(self, path: str, index: catalogue.Index = catalogue.NO_INDEX) -> None:
        self.path = path
        self.index = index
        self._last: _Read | None = None

    def chain(self) -> ledger.Chain:
        """All events; an absent file has none."""
        found = self._read()
        return ledger.Chain((), (), 0) if found is None else found.chain

    def accepted(self) -> tuple[int, str]:
        """Length and SHA-256 of the ledger if all of it is right; nothing of a broken one."""
        found = self._read()
        return (found.right, found.sha256.hexdigest()) if found is not None and found.right else (0, "")

    def length(self) -> int:
        """How many lines there are, right or wrong."""
        found = self._read()
        return 0 if found is None else found.lines

    def _read(self) -> _Read | None:
        """What the file says now; None if it is absent."""
        try:
            # Before its bytes: what is written between makes it another. To open it asks a file server anew.
            with open(self.path, "rb") as opened:
                file = _state(opened.fileno())
            # A line that is not whole can give way to one of its length.
            if self._last is None or self._last.file != file or self._last.chain.torn:
                self._last = self._understood(file, read_bytes(self.path))
            return self._last
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unreadable(
                f"{self.path} cannot be read: {error.strerror}.", "UNREADABLE", "Check the disk."
            ) from None

    def _understood(self, file: tuple[int, ...], data: bytes) -> _Read:
        """All events in these bytes; as far as this process or the index knows them they are not checked again."""
        known, sha256 = 0, hashlib.sha256()
        last = self._last
        begun = _begun(data, last.right, last.sha256.hexdigest()) if last is not None else None
        if last is not None and begun is not None:
            known, sha256 = last.right, begun
            chain = ledger.read_on(last.chain.events, data[known:])
        else:
            begun = _begun(data, self.index.ledger_bytes, self.index.ledger_sha256)
            if begun is not None:
                known, sha256 = self.index.ledger_bytes, begun
            chain = ledger.read(data, known)
        if chain.problems:
            return _Read(file, chain, data.count(b"\n"), 0, hashlib.sha256())
        right = len(data) - chain.torn
        sha256.update(data[known:right])
        return _Read(file, chain, data.count(b"\n"), right, sha256)

    def trusted(self) -> ledger.Chain:
        """All events of an unbroken ledger. Raises :class:`Unreadable` (code LEDGER_BROKEN)."""
        chain = self.chain()
        if chain.problems:
            raise Unreadable(
                f"The ledger {self.path} is broken after {len(chain.events)} events.",
                "LEDGER_BROKEN",
                f"Keep it as evidence (mv {self.path} {self.path}.broken) and put back the copy of another store.",
                reasons=as_reasons(chain.problems),
            )
        return chain

    def _locked_chain(self, descriptor: int | None) -> ledger.Chain:
        """As :meth:`trusted`, of the locked file (None: there is none). An event that its writer took back (it had no
        room) may have been read before, and one of its length be in its place, within one step of the file system's
        clock."""
        if descriptor is None:
            return ledger.Chain((), (), 0)
        chain = self.trusted()
        line = chain.head.line() if chain.head is not None else b""
        at = os.fstat(descriptor).st_size - chain.torn - len(line)
        if at < 0 or os.pread(descriptor, len(line), at) != line:
            self._last = None
            chain = self.trusted()
        return chain

    def append(
        self,
        *,
        run_id: str,
        kind: str,
        subject: str,
        data: t.Mapping[str, t.Any],
        write: bool = True,
        unless: t.Callable[[t.Sequence[ledger.Event]], ledger.Event | None] = lambda _events: None,
    ) -> tuple[ledger.Event, bool]:
        """Append one event unless the same run did; returns the event and whether it is new. One writer at a time.

        With ``write`` false the event is only predicted. Where ``unless`` finds an event, that one stands instead.
        """
        with self._opened(write) as descriptor:
            chain = self._locked_chain(descriptor)
            known = unless(chain.events) or ledger.repeated(chain.events, run_id, kind, subject, data)
            if known is not None:
                return known, False
            event = self._make(chain.head, run_id, kind, subject, data)
            if write and descriptor is not None:
                self._write(descriptor, chain, [event])
            return event, True

    def append_all(self, run_id: str, records: t.Iterable[tuple[str, str, t.Mapping[str, t.Any]]]) -> None:
        """Append one event for each (kind, subject, data), all of them or none."""
        records = list(records)
        if not records:
            return
        with self._opened(True) as descriptor:
            chain = self._locked_chain(descriptor)
            events: list[ledger.Event] = []
            for kind, subject, data in records:
                events.append(self._make(events[-1] if events else chain.head, run_id, kind, subject, data))
            if descriptor is not None:
                self._write(descriptor, chain, events)

    @contextlib.contextmanager
    def _opened(self, write: bool) -> t.Iterator[int | None]:
        """The locked file; None if it does not exist and is not to be written."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC if write else os.O_RDONLY | os.O_CLOEXEC
        try:
            descriptor = os.open(self.path, flags, 0o600)
        except FileNotFoundError:
            yield None
            return
        except OSError as error:
            if write:
                raise not_written(self.path, error) from None
            raise
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if write else fcntl.LOCK_SH)
            yield descriptor
        finally:
            os.close(descriptor)

    def _make(
        self, head: ledger.Event | None, run_id: str, kind: str, subject: str, data: t.Mapping[str, t.Any]
    ) -> ledger.Event:
        try:
            return ledger.make(head, time=utc_text(time.time()), run_id=run_id, kind=kind, subject=subject, data=data)
        except Invalid as error:
            raise Refused(
                "This event cannot be recorded.",
                "BAD_EVENT",
                "Correct kind, subject and data.",
                reasons=as_reasons(error.problems),
            ) from None

    def _write(self, descriptor: int, chain: ledger.Chain, events: t.Sequence[ledger.Event]) -> None:
        """Put ``events`` behind ``chain``, which is what the locked file says."""
        end = os.fstat(descriptor).st_size - chain.torn
        line = b"".join(event.line() for event in events)
        try:
            # An unfinished line of a writer that was killed never happened.
            os.ftruncate(descriptor, end)
            written = 0
            while written < len(line):
                written += os.pwrite(descriptor, line[written:], end + written)
            os.fsync(descriptor)
            if end == 0:
                sync_directory(os.path.dirname(self.path))
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, end)
            raise not_written(self.path, error) from None
        last = self._last
        if last is not None and last.right == end:
            sha256 = last.sha256.copy()
            sha256.update(line)
            now = ledger.Chain((*chain.events, *events), (), 0)
            self._last = _Read(_state(descriptor), now, len(now.events), end + len(line), sha256)


def _is_at(descriptor: int, path: str) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _remove_if_possible(path: str) -> None:
    """Remove a file that does no harm where it stays."""
    with contextlib.suppress(OSError):
        os.unlink(path)


def _state(descriptor: int) -> tuple[int, ...]:
    """What is different after a file was written to, or is another."""
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _begun(data: bytes, length: int, sha256: str) -> t.Any:
    """The hash state after the first ``length`` bytes; None if these are no whole lines with this SHA-256."""
    if not 0 < length <= len(data) or data[length - 1 : length] != b"\n":
        return None
    found = hashlib.sha256(data[:length])
    return found if found.hexdigest() == sha256 else None


def _ids_in(path: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(path) if BACKUP_ID.match(name))
    except FileNotFoundError:
        return []
