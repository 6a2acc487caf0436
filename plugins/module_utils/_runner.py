# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""The only door to commands: argv lists, C locale, time limits, redaction, detached operations. Never a shell."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import typing as t
from dataclasses import dataclass

from ._errors import CommandFailed, Reason, Refused, TemplateMissing, TimedOut

HIDDEN = "********"
#: sudo's secure path often lacks these, and the vendor's tools live in them [inferred].
TOOL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OPERATIONS_DIR = "/var/lib/kmsops/operations"
TAIL = 4000

_PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_NAME = re.compile(r"^[a-z0-9][a-z0-9_.-]{0,63}\Z")


@dataclass(frozen=True)
class Completed:
    """A command that ended. ``argv`` is redacted; ``seconds`` is wall time."""

    argv: list[str]
    rc: int
    stdout: str
    stderr: str
    seconds: float


class Runner(t.Protocol):
    """What modules need of a runner; tests have one that records."""

    actions: list[dict[str, t.Any]]

    def run(
        self,
        argv: t.Sequence[str],
        *,
        timeout: float = 60.0,
        check: bool = True,
        stdin: str | None = None,
        secrets: t.Sequence[str] = (),
        environ: t.Mapping[str, str] | None = None,
        reading: bool = False,
    ) -> Completed:
        """Run one command and wait for it.

        :param timeout: seconds; then the whole process group is killed and :class:`TimedOut` raised
        :param check: raise :class:`CommandFailed` when the exit code is not 0
        :param secrets: texts that are replaced wherever argv or output are kept
        :param reading: the command changes nothing, so it is left out of ``actions``
        """


def redact(text: str, secrets: t.Iterable[str]) -> str:
    """Replace every secret, longest first, so that no part of a longer one stays behind."""
    for secret in sorted({s for s in secrets if s}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def argv_reasons(words: t.Sequence[str], secrets: t.Sequence[str] = ()) -> list[Reason]:
    """What a copied document leaves in a command line, for every word that it spoiled. Pure.

    The vendor's article prints a typographic dash in ``--delete-data`` [seed], so argv must be plain ASCII.
    """
    return [
        Reason(
            "ARGV_NOT_ASCII",
            f"the argument {redact(word, secrets)!a} is not a single line of plain ASCII.",
            "Type it again by hand: copied documents often carry a typographic dash or quote.",
        )
        for word in words
        if not word.isascii() or "\x00" in word or "\n" in word
    ]


def check_argv(argv: t.Sequence[str], secrets: t.Sequence[str] = ()) -> list[str]:
    """The words of a command, once nothing speaks against them.

    :raises Refused: no command at all (``ARGV_INVALID``), or words that were spoiled (``ARGV_NOT_ASCII``)
    """
    words = list(argv)
    if not words or not all(isinstance(word, str) for word in words) or not words[0]:
        raise Refused(
            "A command must be a list of texts that starts with a program.",
            "ARGV_INVALID",
            "Write it as a list, one word an entry, the program first.",
        )
    reasons = argv_reasons(words, secrets)
    if reasons:
        raise Refused(f"The command {words[0]!a} is not run.", "ARGV_NOT_ASCII", reasons=reasons)
    return words


def fill_template(
    argv_template: t.Sequence[str] | None,
    values: t.Mapping[str, str],
    *,
    required: t.Sequence[str] = (),
    name: str = "command",
    article: str = "",
) -> list[str]:
    """Put values into an operator's argv template. Words stay words: there is no shell and no splitting.

    :param argv_template: words with placeholders such as ``{archive}``
    :param required: placeholders that the template must use
    :param article: the vendor article that answers how the template must look
    :raises TemplateMissing: no template was given
    :raises Refused: an unknown placeholder, or a required one that is not used
    """
    if not argv_template:
        raise TemplateMissing(
            f"No argv template for {name} is configured, and the command is not known in public.",
            remedy=f"Read the vendor article '{article}' and configure {name} as a list of words.",
            article=article,
        )
    used: set[str] = set()
    for word in argv_template:
        used.update(_PLACEHOLDER.findall(str(word)))
    unknown = sorted(used - set(values))
    unused = sorted(set(required) - used)
    if unknown or unused:
        raise Refused(
            f"The template for {name} does not fit: "
            + "; ".join(
                ([f"unknown placeholders {', '.join(unknown)}"] if unknown else [])
                + ([f"required placeholders not used: {', '.join(unused)}"] if unused else [])
            )
            + ".",
            "TEMPLATE_PLACEHOLDER",
            f"Known placeholders: {', '.join(sorted(values)) or 'none'}.",
        )
    return check_argv([_PLACEHOLDER.sub(lambda match: values[match.group(1)], str(word)) for word in argv_template])


def child_environment(extra: t.Mapping[str, str] | None = None) -> dict[str, str]:
    """A fresh environment for a child: C locale, a complete search path, and nothing of an earlier call."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG"))}
    environ.update(LC_ALL="C", LANG="C", PATH=f"{TOOL_PATH}:{environ.get('PATH', '')}".rstrip(":"))
    environ.update(extra or {})
    return environ


def find_tool(name: str, environ: t.Mapping[str, str]) -> str:
    """Absolute path of a program.

    :raises CommandFailed: it is not installed (code ``TOOL_MISSING``)
    """
    found = shutil.which(name, path=environ.get("PATH", TOOL_PATH))
    if found is None:
        raise CommandFailed(
            f"The program {name} was not found on this host.",
            "TOOL_MISSING",
            f"Install it, or check that this is the right host. Searched: {environ.get('PATH', TOOL_PATH)}.",
            tool=name,
        )
    return found


class LocalRunner:
    """Runs commands on this host, as children of this process."""

    def __init__(self) -> None:
        self.actions: list[dict[str, t.Any]] = []

    def run(
        self,
        argv: t.Sequence[str],
        *,
        timeout: float = 60.0,
        check: bool = True,
        stdin: str | None = None,
        secrets: t.Sequence[str] = (),
        environ: t.Mapping[str, str] | None = None,
        reading: bool = False,
    ) -> Completed:
        words = check_argv(argv, secrets)
        shown = [redact(word, secrets) for word in words]
        env = child_environment(environ)
        program = find_tool(words[0], env)
        begun = time.monotonic()
        try:
            child = subprocess.Popen(
                [program, *words[1:]],
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=env,
                start_new_session=True,
                close_fds=True,
            )
        except OSError as error:
            raise CommandFailed(f"{shown[0]} could not be started: {error.strerror}.", "COMMAND_NOT_STARTED") from None
        try:
            out, err = child.communicate(None if stdin is None else stdin.encode("utf-8"), timeout=timeout)
            late = False
        except subprocess.TimeoutExpired:
            late = True
            _kill_group(child.pid)
            out, err = _drain(child)
        except BaseException:
            _kill_group(child.pid)
            child.wait()
            raise
        done = Completed(
            shown,
            child.returncode,
            redact(out.decode("utf-8", "replace"), secrets),
            redact(err.decode("utf-8", "replace"), secrets),
            round(time.monotonic() - begun, 3),
        )
        if not reading:
            self.actions.append({"argv": done.argv, "rc": done.rc, "seconds": done.seconds})
        if late:
            raise TimedOut(
                f"{' '.join(shown)} did not end within {timeout:g} s and was stopped.",
                "COMMAND_TIMED_OUT",
                "Read the state again before repeating it: what it had begun may have taken effect.",
                argv=shown,
                last_state={"stdout": done.stdout[-TAIL:], "stderr": done.stderr[-TAIL:]},
            )
        if check and done.rc != 0:
            raise CommandFailed(
                f"{' '.join(shown)} ended with exit code {done.rc}: {_last_line(done.stderr or done.stdout)}",
                argv=shown,
                rc=done.rc,
                stdout=done.stdout[-TAIL:],
                stderr=done.stderr[-TAIL:],
            )
        return done


@dataclass(frozen=True)
class OperationResult:
    """A detached operation, as seen now.

    ``rc`` is None while it runs, and when it ended with nobody left to note its exit code (power cut, kill -9): the
    caller then reads the state, which it must do anyway. ``started_at`` is UTC, ISO 8601. ``attached`` tells that this
    call did not start it, ``reported`` that an earlier call has already told how it ended. ``note`` is what its starter
    wrote down for whoever attaches.
    """

    rc: int | None
    output_tail: str
    started_at: str
    attached: bool
    seconds: float
    running: bool
    reported: bool = False
    note: t.Mapping[str, t.Any] | None = None


class Operations:
    """Commands that survive the death of whoever started them (law 6 of the design).

    One operation a name. It runs in its own session with empty standard input; its output goes to a file of mode 0600;
    its record holds the hash of the redacted argv, process ids with their start times, and the exit code. Secrets go to
    the supervising process through a pipe and are never written.
    """

    def __init__(
        self,
        runner_dir: str = OPERATIONS_DIR,
        run_id: str | None = None,
        actions: list[dict[str, t.Any]] | None = None,
        poll: float = 0.2,
    ) -> None:
        self.directory = runner_dir
        self.run_id = run_id
        self.actions = actions if actions is not None else []
        self._poll = poll

    def status(self, name: str) -> OperationResult | None:
        """What is recorded of an operation, or None. Changes nothing."""
        record = _read_json(self._path(name, "record.json"))
        if record is None:
            return None
        return self._result(name, record, attached=True, secrets=())

    def running(self, name: str) -> list[str]:
        """Operations under way that are called ``name``, or ``name-`` and more (the steps of a restore)."""
        try:
            found = sorted(os.listdir(self.directory))
        except FileNotFoundError:
            return []
        ours = [one for one in found if one == name or one.startswith(f"{name}-")]
        return [one for one in ours if _runs(_read_json(self._path(one, "record.json")) or {})]

    def start_or_attach(
        self,
        name: str,
        argv: t.Sequence[str],
        *,
        timeout: float,
        secrets: t.Sequence[str] = (),
        wait: bool = True,
        report_within: float = 3600.0,
        patterns: t.Sequence[str] = (),
        excludes: t.Sequence[str] = (),
        note: t.Mapping[str, t.Any] | None = None,
    ) -> OperationResult:
        """Start an operation, or join the one of that name that is already there.

        Running with the same argv: wait for that one. Ended with the same argv and never reported, because its caller
        died: report that one, if it ended less than ``report_within`` seconds ago. Otherwise: start it.

        :param timeout: seconds to wait; the operation itself goes on
        :param wait: False returns as soon as it runs
        :param patterns: regular expressions of secrets, so that a later caller who does not know the secret of this
            run can still be shown the output while it runs
        :param excludes: names of operations beside which this one must not start
        :param note: kept with the record if this call starts it, and given to whoever attaches; JSON-like, no secrets
        :raises TimedOut: still running (code ``OPERATION_RUNNING``)
        :raises Refused: another argv runs under this name (code ``OPERATION_CONFLICT``)
        """
        words = check_argv(argv, secrets)
        shown = [redact(word, secrets) for word in words]
        digest = _digest(shown)
        os.makedirs(self._path(name), mode=0o700, exist_ok=True)
        # One lock for all names: two that exclude each other can never both begin.
        lock = os.open(os.path.join(self.directory, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(lock, time.monotonic() + max(timeout, 5.0), name)
            attached = self._to_attach(name, digest, shown, report_within)
            if not attached:
                self._refuse_beside(excludes, name)
                self._start(name, words, shown, digest, secrets, patterns, note, lock)
        finally:
            os.close(lock)
        return self._wait(name, shown, attached, timeout if wait else 0.0, secrets, wait)

    def would_attach(self, name: str, argv: t.Sequence[str], report_within: float = 3600.0) -> bool:
        """Whether :meth:`start_or_attach` would join one that is there, and start nothing. Changes nothing.

        :raises Refused: another argv runs under this name (code ``OPERATION_CONFLICT``)
        """
        words = check_argv(argv)
        return self._to_attach(name, _digest(words), words, report_within)

    def acknowledge(self, name: str) -> OperationResult | None:
        """Note that the end of an operation was seen, so that nobody reports it a second time. Starts nothing."""
        result = self.status(name)
        end = _read_json(self._path(name, "exit.json"))
        if result is None or result.running or result.reported:
            return result
        self.actions.append({"argv": self._shown(name), "rc": result.rc, "seconds": result.seconds})
        if end is not None:
            _write_json(self._path(name, "exit.json"), dict(end, reported=True))
        return result

    def _shown(self, name: str) -> list[str]:
        return [str(word) for word in (_read_json(self._path(name, "record.json")) or {}).get("argv", [])]

    def _refuse_beside(self, excludes: t.Sequence[str], name: str) -> None:
        beside = sorted({one for other in excludes for one in self.running(other)})
        if beside:
            raise Refused(
                f"'{name}' does not start beside {', '.join(beside)}, which runs on this host.",
                "OPERATION_CONFLICT",
                "Wait for it to end, then read the state again.",
            )

    def forget(self, name: str) -> None:
        """Drop the record of an operation that ended: after a reset it is about another host, so to say."""
        record = _read_json(self._path(name, "record.json"))
        if record is not None and not _runs(record):
            for part in ("record.json", "exit.json", "output", "output.raw"):
                _remove(self._path(name, part))

    def _path(self, name: str, part: str = "") -> str:
        if not _NAME.match(name):
            raise Refused(
                f"{name!r} is not a name for an operation.",
                "OPERATION_NAME",
                "Use small letters, digits, dashes, dots and underscores, at most 64 of them.",
            )
        return os.path.join(self.directory, name, part) if part else os.path.join(self.directory, name)

    def _to_attach(self, name: str, digest: str, shown: list[str], report_within: float) -> bool:
        record = _read_json(self._path(name, "record.json"))
        if record is None:
            return False
        if _runs(record):
            if record.get("argv_sha256") != digest:
                raise Refused(
                    f"Another operation '{name}' runs on this host since {record.get('started_at')}: "
                    f"{' '.join(record.get('argv', []))}",
                    "OPERATION_CONFLICT",
                    "Wait for it to end, then read the state again. Two at once would harm each other.",
                    running=record.get("argv"),
                    wanted=shown,
                )
            return True
        end = _read_json(self._path(name, "exit.json"))
        if end is None or end.get("reported") or record.get("argv_sha256") != digest:
            return False
        return time.time() - float(end.get("ended", 0.0)) <= report_within

    def _start(
        self,
        name: str,
        words: list[str],
        shown: list[str],
        digest: str,
        secrets: t.Sequence[str],
        patterns: t.Sequence[str],
        note: t.Mapping[str, t.Any] | None,
        lock: int,
    ) -> None:
        env = child_environment()
        spec = {
            "argv": [find_tool(words[0], env), *words[1:]],
            "shown": shown,
            "argv_sha256": digest,
            "run_id": self.run_id,
            "environ": env,
            "directory": self._path(name),
            "secrets": [secret for secret in secrets if secret],
            "patterns": list(patterns),
            "note": dict(note) if note is not None else None,
            "hidden": HIDDEN,
            "lock": lock,
        }
        supervisor = subprocess.Popen(
            [sys.executable, "-I", "-c", _SUPERVISOR],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(lock,),
            start_new_session=True,
            cwd="/",
        )
        answer, _unused = supervisor.communicate(json.dumps(spec).encode("utf-8"))
        if answer.strip() != b"started":
            raise CommandFailed(
                f"{' '.join(shown)} could not be started: {answer.decode('utf-8', 'replace').strip() or 'no answer'}",
                "COMMAND_NOT_STARTED",
            )

    def _wait(
        self, name: str, shown: list[str], attached: bool, timeout: float, secrets: t.Sequence[str], wait: bool
    ) -> OperationResult:
        deadline = time.monotonic() + timeout
        while True:
            record = _read_json(self._path(name, "record.json")) or {}
            result = self._result(name, record, attached, secrets)
            if not result.running:
                self.actions.append({"argv": shown, "rc": result.rc, "seconds": result.seconds})
                end = _read_json(self._path(name, "exit.json"))
                if end is not None:
                    _write_json(self._path(name, "exit.json"), dict(end, reported=True))
                return result
            if not wait:
                return result
            if time.monotonic() >= deadline:
                raise TimedOut(
                    f"{' '.join(shown)} still runs after {result.seconds:.0f} s. It goes on by itself.",
                    "OPERATION_RUNNING",
                    "Run this again: it attaches to the running operation and does not start another.",
                    last_state={"started_at": result.started_at, "output_tail": result.output_tail},
                )
            time.sleep(self._poll)

    def _result(self, name: str, record: dict[str, t.Any], attached: bool, secrets: t.Sequence[str]) -> OperationResult:
        running = _runs(record)
        end = _read_json(self._path(name, "exit.json"))
        begun = float(record.get("started", time.time()))
        return OperationResult(
            rc=None if running or end is None else int(end["rc"]),
            output_tail=self._shown_output(name, record, attached, secrets),
            started_at=str(record.get("started_at", "")),
            attached=attached,
            seconds=round(max(0.0, (float(end["ended"]) if end and not running else time.time()) - begun), 3),
            running=running,
            reported=bool(end and end.get("reported")),
            note=record.get("note"),
        )

    def _shown_output(self, name: str, record: t.Mapping[str, t.Any], attached: bool, secrets: t.Sequence[str]) -> str:
        """The end of the output. The supervisor cleans it when the command ends; until then only a caller who can hide
        the secrets of the run is shown anything."""
        cleaned = _tail(self._path(name, "output"))
        if cleaned:
            return cleaned
        patterns = [str(pattern) for pattern in record.get("patterns", [])]
        if attached and record.get("has_secrets") and not patterns:
            return ""
        text = redact(_tail(self._path(name, "output.raw")), secrets)
        for pattern in patterns:
            text = re.sub(pattern, HIDDEN, text)
        return text


# Runs as `python3 -I -c`, reads its orders from standard input, and is nobody's child once its starter has ended.
# It holds the starter's lock until the record is on disk, so that two starters can never both begin.
_SUPERVISOR = r"""
import json, os, re, resource, subprocess, sys, time
spec = json.loads(sys.stdin.buffer.read().decode("utf-8"))
os.umask(0o077)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
here = spec["directory"]
def path(part):
    return os.path.join(here, part)
def save(part, value):
    with open(path(part + ".new"), "w") as handle:
        json.dump(value, handle)
        handle.flush()
        os.fsync(handle.fileno())
    os.rename(path(part + ".new"), path(part))
def born(pid):
    with open("/proc/%d/stat" % pid) as handle:
        return int(handle.read().rsplit(")", 1)[1].split()[19])
def remove(part):
    try:
        os.unlink(path(part))
    except FileNotFoundError:
        pass
if os.fork():
    os._exit(0)
with open("/proc/sys/kernel/random/boot_id") as handle:
    boot = handle.read().strip()
now = time.time()
record = {
    "argv": spec["shown"], "argv_sha256": spec["argv_sha256"], "run_id": spec["run_id"], "boot": boot,
    "started": now, "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
    "supervisor": [os.getpid(), born(os.getpid())], "child": None,
    "patterns": spec["patterns"], "has_secrets": bool(spec["secrets"]),
    "note": spec["note"],
}
for part in ("exit.json", "output", "output.raw"):
    remove(part)
save("record.json", record)
raw = open(path("output.raw"), "wb")
try:
    child = subprocess.Popen(
        spec["argv"], stdin=subprocess.DEVNULL, stdout=raw, stderr=raw, env=spec["environ"], cwd="/",
        start_new_session=True,
    )
except OSError as error:
    remove("record.json")
    os.write(1, str(error.strerror).encode("utf-8"))
    os._exit(1)
record["child"] = [child.pid, born(child.pid)]
save("record.json", record)
os.close(spec["lock"])
try:
    os.write(1, b"started")
except OSError:
    pass  # the starter has died meanwhile: the operation goes on
null = os.open(os.devnull, os.O_RDWR)
for number in (0, 1, 2):
    os.dup2(null, number)
rc = child.wait()
with open(path("output.raw"), "rb") as handle:
    text = handle.read()
for secret in sorted(spec["secrets"], key=len, reverse=True):
    text = text.replace(secret.encode("utf-8"), spec["hidden"].encode("utf-8"))
for pattern in spec["patterns"]:
    text = re.sub(pattern.encode("utf-8"), spec["hidden"].encode("utf-8"), text)
with open(path("output"), "wb") as handle:
    handle.write(text)
remove("output.raw")
save("exit.json", {"rc": rc, "ended": time.time(), "reported": False})
"""


def _digest(shown: t.Sequence[str]) -> str:
    return hashlib.sha256("\x00".join(shown).encode("ascii")).hexdigest()


def _runs(record: t.Mapping[str, t.Any]) -> bool:
    """Whether the supervisor or the command itself is alive. Start times guard against process ids used again."""
    if not record or record.get("boot") != _boot_id():
        return False
    return any(_alive(identity) for identity in (record.get("supervisor"), record.get("child")))


def _alive(identity: t.Sequence[int] | None) -> bool:
    if not identity:
        return False
    try:
        with open(f"/proc/{int(identity[0])}/stat", encoding="utf-8", errors="replace") as handle:
            fields = handle.read().rsplit(")", 1)[1].split()
    except OSError:
        return False
    return fields[0] not in ("Z", "X") and int(fields[19]) == int(identity[1])


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as handle:
        return handle.read().strip()


def _lock(descriptor: int, deadline: float, name: str) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError:
            if time.monotonic() >= deadline:
                raise TimedOut(
                    f"Another process is starting the operation '{name}' and does not finish.", "OPERATION_LOCKED"
                ) from None
            time.sleep(0.05)


def _read_json(path: str) -> dict[str, t.Any] | None:
    try:
        with open(path, encoding="utf-8") as handle:
            value = json.load(handle)
    except FileNotFoundError:
        return None
    except ValueError:
        # Written by rename only, so a broken file means a broken disk: nothing in it can be relied on.
        return None
    return value if isinstance(value, dict) else None


def _write_json(path: str, value: dict[str, t.Any]) -> None:
    descriptor = os.open(f"{path}.{os.getpid()}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
        json.dump(value, handle)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(f"{path}.{os.getpid()}.new", path)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _tail(path: str) -> str:
    try:
        with open(path, "rb") as handle:
            handle.seek(0, os.SEEK_END)
            handle.seek(max(0, handle.tell() - TAIL))
            return handle.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _drain(child: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """Output of a killed group. A process that left the group may hold the pipe, so this waits no longer than 2 s."""
    try:
        return child.communicate(timeout=2.0)
    except subprocess.TimeoutExpired as rest:
        child.wait()
        return rest.stdout or b"", rest.stderr or b""
