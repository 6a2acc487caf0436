# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""What a source delivers: matches of a glob grouped into backups, without assuming names or formats (law 10).

A backup may be a file, a directory, several files, or one directory a node. It is offered only when it is complete as
far as that can be seen: not empty, nothing but regular files, and quiet for a while by the clock of its own host.
"""

from __future__ import annotations

import collections
import fnmatch
import posixpath
import stat
import time
import typing as t
from dataclasses import dataclass, field

from .._core.manifest import path_problem
from .._core.strict import digest
from .._errors import DsmError, Reason, Refused
from ._changed import gone
from ._endpoint import Endpoint, Session
from ._sftp import Attributes

#: A file that grows although its time stands still shows when it is looked at twice, so far apart (s).
LOOK_AGAIN = 1.0
LAYOUTS = ("single", "per_node", "together")
#: What a backup may consist of: directories one in the other, and files and directories altogether. Whoever may deliver
#: must not be able to keep the store busy for ever.
DEEPEST, MOST_ENTRIES = 64, 1_000_000
_WILD = frozenset("*?[")
_NO_BACKUP = "No backup of DSM is like that: find out who delivered it, and remove it at the source."


@dataclass(frozen=True)
class Source:
    """One entry of ``sources``: an endpoint, an absolute path (its last parts may be globs) and a layout.

    ``hashes``: SHA-256 (hex) by absolute path of files there, where somebody computed them at the source.
    ``clock_skew``: seconds by which its clock is ahead of the store's, where somebody measured it.
    """

    endpoint: Endpoint
    path: str
    layout: str = "single"
    hashes: t.Mapping[str, str] = field(default_factory=dict, hash=False)
    clock_skew: int | None = None

    @property
    def label(self) -> str:
        """``user@host:path`` for messages."""
        return f"{self.endpoint.label}:{self.path}"


@dataclass(frozen=True)
class Item:
    """One file of a backup: where it is at the source, and its path in the stored copy."""

    source: str
    path: str
    attributes: Attributes


#: Why something in a backup was not looked at: it may be the youngest of it.
_UNSEEN = frozenset(("BAD_NAME", "NOT_A_FILE", "SOURCE_UNREADABLE", "SYMLINK_OUTSIDE", "TOO_DEEP", "TOO_MANY_FILES"))


@dataclass(frozen=True)
class Unit:
    """One backup at a source. ``name`` is its path there (for people and for finding it again)."""

    name: str
    items: tuple[Item, ...]
    reasons: tuple[Reason, ...]
    parts: int = 1

    @property
    def shown_name(self) -> str:
        """Its name where only text is possible; bytes that are none are told as ``\\udcff``."""
        return self.name.encode("utf-8", "backslashreplace").decode("utf-8")

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(item.attributes.size for item in self.items)

    @property
    def newest(self) -> int:
        """The youngest mtime (s, clock of the source)."""
        return max((item.attributes.mtime for item in self.items), default=0)

    @property
    def oldest(self) -> int:
        """The eldest mtime (s, clock of the source)."""
        return min((item.attributes.mtime for item in self.items), default=0)

    @property
    def ageless(self) -> bool:
        """Whether nobody can tell when it was written last: not all that is in it was seen, or there is no file."""
        return not self.items or any(reason.code in _UNSEEN for reason in self.reasons)

    @property
    def state(self) -> tuple[str, tuple[int, ...]]:
        """What must be the same when it is looked at again in this run."""
        return self.key(""), tuple(item.attributes.changed_ns for item in self.items)

    def key(self, place: str) -> str:
        """Identity of exactly these bytes at this place: host, name, and path, size and time of every file."""
        files = [[item.path, item.attributes.size, item.attributes.mtime] for item in self.items]
        return digest({"host": place, "name": self.name, "files": files})


class Match(t.NamedTuple):
    """A path that a pattern matches; without ``attributes`` nobody looked yet, or ``why`` says why nobody can.

    ``short``: it ends above the last part of the pattern, because what is below it must not or cannot be looked at.
    """

    path: str
    attributes: Attributes | None = None
    why: str = ""
    short: bool = False

    @property
    def mode(self) -> int:
        """Kind and permissions; 0: unknown."""
        return self.attributes.mode if self.attributes is not None else 0


def expand(session: Session, pattern: str) -> list[Match]:
    """What matches ``pattern`` part by part; hidden names only where that part starts with a dot.

    From the first wildcard on no link is followed: whoever delivers would choose what else of that host counts as a
    backup. Such a link is a match of its own, and so is a directory that cannot be listed.
    """
    top, (*above, last) = _split(pattern)
    directories = [top]
    ends: list[Match] = []
    for part in above:
        directories, ended = _passable(session, top, _named(session, top, directories, part))
        ends += ended
    return ends + _named(session, top, directories, last)


def _split(pattern: str) -> tuple[str, list[str]]:
    """The directory above the first wildcard (or above the last part), and the parts below it."""
    parts = [piece for piece in pattern.split("/") if piece] or [""]
    fixed = next((index for index, part in enumerate(parts) if _WILD & set(part)), len(parts) - 1)
    return "/" + "/".join(parts[:fixed]), parts[fixed:]


def _named(session: Session, top: str, directories: t.Iterable[str], part: str) -> list[Match]:
    """What matches one part of a pattern in these directories, and those of them that cannot be listed."""
    if not _WILD & set(part):
        return [Match(posixpath.join(directory, part)) for directory in directories]
    found: list[Match] = []
    for directory in directories:
        try:
            entries = session.listdir(directory)
        except OSError as error:
            if directory == top:
                raise _out_of_reach(directory, _why(error)) from None
            if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
                found.append(Match(directory, why=_why(error), short=True))
            continue
        found.extend(
            Match(posixpath.join(directory, name), attributes)
            for name, attributes in entries
            if fnmatch.fnmatchcase(name, part) and (part.startswith(".") or not name.startswith("."))
        )
    return found


def _passable(session: Session, top: str, found: t.Sequence[Match]) -> tuple[list[str], list[Match]]:
    """Directories in which to go on, and what ends here: links to none of ``found``, and what nobody can tell."""
    directories: list[str] = []
    ends = [match for match in found if match.short]
    links: list[Match] = []
    for match in _looked_at(session, [match for match in found if not match.short]):
        if stat.S_ISDIR(match.mode):
            directories.append(match.path)
        elif stat.S_ISLNK(match.mode):
            links.append(match._replace(short=True))
        elif not stat.S_IFMT(match.mode):
            ends.append(match._replace(short=True))
    return directories, ends + _without_aliases(session, top, links, found)


def _looked_at(session: Session, matches: t.Iterable[Match]) -> t.Iterator[Match]:
    """Matches with their attributes, or with the reason why these cannot be told; without those that are not there."""
    for match in matches:
        # Each question is a round trip; but a listing need not say what kind of file something is.
        if match.why or match.mode:
            yield match
            continue
        try:
            yield match._replace(attributes=session.lstat(match.path))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            yield match._replace(attributes=None, why=_why(error))


def _without_aliases(session: Session, top: str, matches: list[Match], counted: t.Iterable[Match]) -> list[Match]:
    """Leave out links (``latest -> sdkms_backup_...``) that lead to one of ``counted``, which counts for itself."""
    if not any(stat.S_ISLNK(match.mode) for match in matches):
        return matches
    try:
        # Links lead there only above the first wildcard, so that one question tells where everything really is.
        real = session.realpath(top)
    except OSError:
        real = top
    there = {posixpath.join(real, posixpath.relpath(match.path, top)) for match in counted}
    return [match for match in matches if not (stat.S_ISLNK(match.mode) and _leads_to(session, match.path, there))]


def _leads_to(session: Session, link: str, paths: t.Container[str]) -> bool:
    try:
        return session.realpath(link) in paths
    except OSError:
        return False


def _why(error: OSError) -> str:
    return error.strerror or str(error)


def _out_of_reach(path: str, why: str) -> Refused:
    return Refused(
        f"{path} at the source cannot be looked at: {why}.",
        "SOURCE_UNREADABLE",
        "Check the path of the source, and that its user may read it.",
    )


def check_pattern(source: Source) -> None:
    """Refuse a path that is not absolute, climbs, holds control characters, or an unknown layout (code BAD_SOURCE)."""
    why = ""
    if not source.path.startswith("/"):
        why = "it is not absolute"
    elif path_problem(source.path.strip("/")):
        why = f"it {path_problem(source.path.strip('/'))}"
    elif source.layout not in LAYOUTS:
        why = f"layout {source.layout!r} is not one of {', '.join(LAYOUTS)}"
    if why:
        raise Refused(
            f"The source path {source.path!r} cannot be used: {why}.",
            "BAD_SOURCE",
            "Give an absolute path such as /home/dsmbackup/backup/*; wildcards are * ? and [...].",
        )


def discover(session: Session, source: Source, only: frozenset[str] = frozenset()) -> list[Unit]:
    """All backups of a source, eldest first. With ``only``, units of other names are not walked again."""
    check_pattern(source)
    top, below = _split(source.path)
    matches = list(_looked_at(session, expand(session, source.path)))
    groups: dict[str, list[Match]] = {}
    for match in _without_aliases(session, top, matches, matches):
        if match.why and not _WILD & set("".join(below)):
            # There is nothing beside it that could come.
            raise _out_of_reach(match.path, match.why)
        if source.layout == "together":
            group = source.path
        elif source.layout == "single" or match.short:
            group = match.path
        else:
            group = posixpath.dirname(match.path)
        groups.setdefault(group, []).append(match)
    units = [_unit(session, name, group, source) for name, group in groups.items() if not only or name in only]
    return sorted(units, key=lambda unit: (unit.newest, unit.name))


def _unit(session: Session, name: str, group: t.Sequence[Match], source: Source) -> Unit:
    alone = source.layout == "single"
    walk = _Walk(session, alone)
    problem = path_problem(name.strip("/"))
    if problem:
        walk.refuse("BAD_NAME", f"{name!r}: its name {problem}.", "Rename it at the source.")
        return Unit(name, (), tuple(walk.reasons), len(group))
    # Of matches in several directories the paths say which file is whose.
    together = posixpath.commonpath([posixpath.dirname(match.path) for match in group])
    for match in group:
        if match.attributes is None:
            walk.refuse(
                "SOURCE_UNREADABLE",
                f"{match.path} cannot be looked at: {match.why}.",
                "Let the user of this source list the directories that are delivered and read what is in them.",
            )
            continue
        whole = stat.S_ISDIR(match.mode)
        # A link that would have to be followed to the rest of the pattern is no file of a backup, wherever it leads.
        root = match.path if whole or match.short else posixpath.dirname(match.path)
        walk.visit(match.path, match.attributes, match.path if alone and whole else together, root)
    parts = _parts(walk, name, group) if source.layout == "per_node" else len(group)
    items = tuple(sorted(walk.items, key=lambda item: item.path))
    walk.refuse_twice()
    reasons = walk.reasons
    if not items and not any(reason.hard for reason in reasons):
        # Nothing at all is no backup, even where every single part of it may be empty.
        reasons = [
            Reason(
                "EMPTY_DIRECTORY", f"{name} holds no file.", "Look at the backup job of the cluster: it did nothing."
            )
        ]
    elif items and sum(item.attributes.size for item in items) == 0:
        reasons = [reason for reason in reasons if reason.code != "ZERO_LENGTH_PART"]
        reasons.append(
            Reason(
                "ZERO_LENGTH",
                f"{name} has zero bytes.",
                "Look at the backup job of the cluster and at the disk it writes to; delete the empty delivery there.",
            )
        )
    return Unit(name, items, tuple(reasons), parts)


def _parts(walk: _Walk, name: str, group: t.Sequence[Match]) -> int:
    """How many nodes delivered. Each gives the same, a directory or a file. Where there are both, directories count:
    a marker beside each must not stand for the node whose directory is missing, and too few parts are told."""
    seen = [match for match in group if match.attributes is not None]
    directories = [match.path for match in seen if stat.S_ISDIR(match.mode)]
    files = [match.path for match in seen if not stat.S_ISDIR(match.mode)]
    if not directories or not files:
        return len(group)
    walk.refuse(
        "STRAY_FILE",
        f"{name} holds directories ({len(directories)}, the first is {directories[0]}) and files ({len(files)}, the "
        f"first is {files[0]}), of which only one kind can be what each node delivers.",
        "Exclude the others by the path of the source; accept STRAY_FILE if they belong to the backup, then its "
        "directories are counted as the parts of the nodes.",
        hard=False,
    )
    return len(directories)


class _Walk:
    """Collects the files of one backup. ``alone``: its match is all of it, not one part of several."""

    def __init__(self, session: Session, alone: bool) -> None:
        self.session = session
        self.alone = alone
        self.items: list[Item] = []
        self.reasons: list[Reason] = []
        self.visited = 0
        self._said: set[str] = set()

    def refuse(self, code: str, message: str, remedy: str, hard: bool = True) -> None:
        if message not in self._said:
            self._said.add(message)
            self.reasons.append(Reason(code, message, remedy, hard))

    def refuse_twice(self) -> None:
        """Two files that would get one path would overwrite one another."""
        paths = collections.Counter(item.path for item in self.items)
        twice = sorted(path for path, count in paths.items() if count > 1)
        if twice:
            self.refuse(
                "LISTED_TWICE",
                f"{len(twice)} of its paths are there more than once, {twice[0]} is the first.",
                "Look at the directory at the source, and at the SFTP server there: no file system lists a name twice.",
            )

    def visit(self, path: str, attributes: Attributes, base: str, root: str) -> None:
        """Take ``path`` if it is a regular file, everything below it if it is a directory; refuse anything else."""
        self.visited += 1
        if self.visited >= MOST_ENTRIES:
            if self.visited == MOST_ENTRIES:
                self.refuse("TOO_MANY_FILES", f"{root} has {MOST_ENTRIES} or more entries.", _NO_BACKUP)
            return
        relative = posixpath.relpath(path, base) if path != base else ""
        problem = path_problem(relative) if relative else None
        if problem:
            self.refuse("BAD_NAME", f"{path!r}: its name {problem}.", "Rename it at the source.")
        elif stat.S_ISREG(attributes.mode):
            self._file(path, relative, attributes)
        elif stat.S_ISDIR(attributes.mode):
            if relative.count("/") < DEEPEST:
                self._directory(path, base, root)
            else:
                self.refuse("TOO_DEEP", f"{root} has more than {DEEPEST} directories one in the other.", _NO_BACKUP)
        elif stat.S_ISLNK(attributes.mode):
            self._link(path, relative, root)
        else:
            self.refuse("NOT_A_FILE", f"{path} is a device, socket or pipe.", "Remove it from the source.")

    def _file(self, path: str, relative: str, attributes: Attributes) -> None:
        self.items.append(Item(path, relative, attributes))
        if attributes.size == 0:
            self.refuse(
                "ZERO_LENGTH_PART",
                f"{path} has zero bytes.",
                "If it is meant to be empty, accept ZERO_LENGTH_PART.",
                hard=False,
            )

    def _directory(self, path: str, base: str, root: str) -> None:
        try:
            entries = self.session.listdir(path)
        except OSError as error:
            self.refuse("SOURCE_UNREADABLE", f"{path} cannot be listed: {error.strerror}.", "Check its permissions.")
            return
        if not entries and not (self.alone and path == root):
            self.refuse(
                "EMPTY_PART",
                f"the directory {path} is empty.",
                "If it is meant to be empty, accept EMPTY_PART.",
                hard=False,
            )
        for name, attributes in entries:
            self.visit(posixpath.join(path, name), attributes, base, root)

    def _link(self, path: str, relative: str, root: str) -> None:
        """A link to a regular file of the same backup is stored as that file; any other link is refused."""
        try:
            target = self.session.realpath(path)
            attributes = self.session.lstat(target)
            inside = target.startswith(self.session.realpath(root).rstrip("/") + "/")
        except OSError:
            target, inside, attributes = "nowhere", False, Attributes(0, 0, 0)
        if inside and stat.S_ISREG(attributes.mode):
            self._file(target, relative, attributes)
        else:
            self.refuse(
                "SYMLINK_OUTSIDE",
                f"{path} is a symbolic link to {target}, which is no file of this backup.",
                "Remove the link at the source.",
            )


def settle(
    session: Session, source: Source, units: t.Sequence[Unit], quiet: float, patience: float
) -> tuple[list[Unit], list[tuple[Unit, Reason]]]:
    """Units that nobody writes any more, and those that somebody does or that vanished meanwhile, with the reason.

    A unit is quiet when its youngest file is more than ``quiet`` seconds old by the clock of its own host; whoever
    takes it looks a second time, :data:`LOOK_AGAIN` seconds later at the earliest, and must find the same files. Where
    that clock cannot be read, or says that it may be younger, the unit must be seen unchanged here, for ``quiet``
    seconds if the clock does not help. Waits for that at most ``patience`` seconds.
    """
    started = time.monotonic()
    clock = session.clock()
    first_seen = {unit.name: (unit, started) for unit in units}
    quiet_units: list[Unit] = []
    age = {unit.name: clock - unit.newest if clock is not None else -1.0 for unit in units}
    # Times are whole seconds, and the clock was read after the files were listed.
    quiet_units += [unit for unit in units if age[unit.name] >= quiet + 2]
    waiting = {unit.name for unit in units} - {unit.name for unit in quiet_units}
    refused: list[tuple[Unit, Reason]] = []
    while waiting:
        time.sleep(min(1.0, max(quiet, 0.05)))
        now = time.monotonic()
        found = {unit.name: unit for unit in discover(session, source, frozenset(waiting))}
        for name in sorted(waiting):
            if name not in found:
                waiting.discard(name)
                lost = gone(f"{source.endpoint.label}:{name}")
                refused.append((first_seen[name][0], Reason(lost.code, lost.message, lost.remedy)))
                continue
            seen, since = first_seen[name]
            unit = found[name]
            if unit.state != seen.state:
                first_seen[name] = (unit, now)
                age[name] = -1.0
            elif now - since >= quiet or (age[name] >= 0 and age[name] + now - started >= quiet):
                quiet_units.append(unit)
                waiting.discard(name)
        if waiting and now - started > patience:
            break
    for name in sorted(waiting):
        unit = first_seen[name][0]
        refused.append(
            (
                unit,
                Reason(
                    "GROWING",
                    f"{source.endpoint.label}:{name} is still being written (youngest change "
                    f"{f'{max(0.0, clock - unit.newest):.0f} s' if clock is not None else 'an unknown time'} ago).",
                    f"Run again when the delivery is complete; it must be quiet for {quiet:g} s (option quiet).",
                ),
            )
        )
    return sorted(quiet_units, key=lambda unit: (unit.newest, unit.name)), refused


def tidy(error: DsmError, source: Source) -> Reason:
    """The failure of a whole source as one reason among others."""
    return Reason(error.code, f"{source.label}: {error.message}", error.remedy)
