# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""SSH connections with pinned host keys. The only place that imports paramiko, and only its public interfaces."""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import select
import socket
import stat
import sys
import threading
import time
import typing as t
from dataclasses import dataclass, field

from ansible.module_utils.basic import missing_required_lib

from .._errors import DsmError, Refused
from ._known_hosts import HostKey, Pinned, fingerprint, host_pattern, lookup, parse_key
from ._sftp import Channel, ProtocolError, Sftp

if t.TYPE_CHECKING:
    import paramiko

MINIMUM_PYTHON = (3, 9)
MINIMUM_PARAMIKO = (3, 5)
GCM = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
WINDOW = 16 << 20
#: Seconds for which a connection may wait that nobody speaks over; sshd hangs up after 120 by default.
STALE = 20.0
#: Bytes of what a server prints that are taken at a time.
_PRINTED = 64 << 20
_RSA = ("rsa-sha2-512", "rsa-sha2-256")


@dataclass(frozen=True)
class SshTarget:
    """Where to connect, as whom, and which host key is expected. Times in seconds."""

    host: str
    user: str
    port: int = 22
    key_file: str = ""
    passphrase: str = field(default="", repr=False)
    host_key: str = ""
    known_hosts: str = ""
    connect_timeout: float = 30.0
    stall_timeout: float = 60.0

    @property
    def label(self) -> str:
        """``user@host:port`` for messages."""
        return f"{self.user}@{host_pattern(self.host, self.port)}"


class ConnectionLost(DsmError):
    """The connection ended or stalled; the same transfer may be tried again."""

    default_code = "CONNECTION_LOST"


def require_python() -> None:
    """The store's interpreter is 3.9 or newer. Raises :class:`Refused` (code PYTHON_TOO_OLD)."""
    if sys.version_info < MINIMUM_PYTHON:
        raise Refused(
            f"Python {sys.version_info[0]}.{sys.version_info[1]} is too old on the store; 3.9 is needed.",
            "PYTHON_TOO_OLD",
            "Point ansible_python_interpreter at the virtual environment that role backup_store makes.",
        )


def _load_light() -> None:
    """Load paramiko without invoke, which it takes if it is there and needs for commands in ssh's own configuration
    files only; nothing here reads those, and loading it costs a third of what paramiko costs, in time and in memory."""
    if "paramiko" in sys.modules or "invoke" in sys.modules:
        return
    sys.modules["invoke"] = None  # type: ignore[assignment]
    try:
        with contextlib.suppress(ImportError):
            importlib.import_module("paramiko")
    finally:
        del sys.modules["invoke"]


def load_paramiko() -> t.Any:
    """paramiko, or :class:`Refused` (code NO_PARAMIKO) with Ansible's own words about a missing library."""
    require_python()
    try:
        _load_light()
        import paramiko
    except ImportError as error:
        raise Refused(
            missing_required_lib("paramiko>=3.5", reason="to pull backups over SFTP"),
            "NO_PARAMIKO",
            "Run role backup_store, and point ansible_python_interpreter at the virtual environment that it makes.",
            cause=str(error),
        ) from None
    version = tuple(int(part) for part in paramiko.__version__.split(".")[:2])
    if version < MINIMUM_PARAMIKO:
        raise Refused(
            f"paramiko {paramiko.__version__} is too old; 3.5 is needed.",
            "NO_PARAMIKO",
            "Run role backup_store again: it installs a newer one.",
        )
    # Without a handler paramiko's own warnings would land on stderr, in the middle of a module's result.
    logging.getLogger("paramiko").addHandler(logging.NullHandler())
    return paramiko


class Dialled:
    """A TCP connection that was begun and not waited for (:func:`dial`)."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._since = time.monotonic()

    def take(self, timeout: float) -> socket.socket | None:
        """The connection when it is up; None if it has waited for so long that the server may be about to hang up.
        Raises OSError, as connecting does."""
        if time.monotonic() - self._since > STALE:
            self.close()
            return None
        try:
            waiting = select.poll()
            waiting.register(self._sock, select.POLLOUT)
            if not waiting.poll(timeout * 1000):
                raise TimeoutError("timed out")
            number = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                raise OSError(number, os.strerror(number))
        except BaseException:
            self.close()
            raise
        self._sock.settimeout(timeout)
        return self._sock

    def close(self) -> None:
        """Nobody here needs it."""
        self._sock.close()


def dial(target: SshTarget) -> Dialled | None:
    """Begin to connect to a host that will be asked something in a moment.

    None where that cannot be begun, or where the host has several addresses, of which only the next may answer;
    :func:`connect` then does all of it, and tells what is wrong.
    """
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        if len(found) != 1:
            return None
        family, kind, protocol, _name, address = found[0]
        sock = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError):
        return None
    sock.setblocking(False)
    try:
        sock.connect(address)
    except BlockingIOError:
        pass
    except OSError:
        sock.close()
        return None
    return Dialled(sock)


class _Buffered:
    """A socket that is asked for many bytes at once. paramiko takes each packet in two or more calls, the first of 16
    bytes, and between any two of them another thread may take its turn.

    As long as ``prompt``, what comes is acknowledged at once. Until a session begins sshd holds each small answer back
    until the one before is acknowledged, and the kernel would take 40 ms for that.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.prompt = True
        self._buffer = bytearray(256 << 10)
        self._view = memoryview(self._buffer)
        self._at = self._end = 0

    def recv(self, count: int) -> bytes:
        """At most so many bytes, as a socket's; only one thread may ask."""
        if self._at == self._end:
            if self.prompt:
                # The kernel forgets it whenever something is sent.
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            # Both at once: an exception leaves them as they are.
            self._at, self._end = 0, self._sock.recv_into(self._buffer)
        end = min(self._at + count, self._end)
        piece = bytes(self._view[self._at : end])
        self._at = end
        return piece

    def __getattr__(self, name: str) -> t.Any:
        return getattr(self._sock, name)


class _Quiet:
    """A channel without what the other side prints beside the answers: kept, it would fill the memory and use up what
    the server may send, until no answer came any more."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel

    def recv(self, count: int) -> bytes:
        """As the channel's own, its timeout included."""
        timeout = self._channel.gettimeout()
        deadline = time.monotonic() + (math.inf if timeout is None else timeout)
        try:
            while True:
                if self._channel.recv_stderr_ready():
                    self._channel.recv_stderr(_PRINTED)
                left = deadline - time.monotonic()
                self._channel.settimeout(max(0.0, min(1.0, left)))
                try:
                    return self._channel.recv(count)
                except socket.timeout:
                    if left <= 1:
                        raise
        finally:
            self._channel.settimeout(timeout)

    def __getattr__(self, name: str) -> t.Any:
        return getattr(self._channel, name)


class Connection:
    """One authenticated SSH connection."""

    def __init__(self, target: SshTarget, transport: paramiko.Transport) -> None:
        self.target = target
        self._transport = transport

    def open_sftp(self, meanwhile: t.Callable[[], None] | None = None) -> Sftp:
        """A new SFTP session. Raises :class:`Refused` (code SFTP_MISSING) or :class:`ConnectionLost`.

        ``meanwhile`` is called when the server has given it a channel and still has to begin the session: what else is
        asked of that host may go along from there on, and is what it refuses where it allows one channel only.
        """
        library = load_paramiko()
        remedy = (
            "Add 'Subsystem sftp internal-sftp' to /etc/ssh/sshd_config of that host, reload sshd, and see that the "
            "user's shell prints nothing when it is not interactive."
        )
        message = f"{self.target.label} lets us in, but has no working SFTP subsystem."
        began = time.monotonic()
        try:
            channel = self._transport.open_session(window_size=WINDOW, timeout=self.target.connect_timeout)
            channel.settimeout(self.target.stall_timeout)
            if meanwhile is not None:
                meanwhile()
            began = time.monotonic()
            with _given_up_after(channel, self.target.connect_timeout):
                channel.invoke_subsystem("sftp")
            # From here on it costs more packets than it is worth.
            t.cast(_Buffered, self._transport.sock).prompt = False
            return Sftp(t.cast(Channel, _Quiet(channel)))
        except ProtocolError as error:
            raise Refused(f"{message} ({error})", "SFTP_MISSING", remedy) from None
        except (library.SSHException, EOFError) as error:
            if time.monotonic() - began >= self.target.connect_timeout:
                raise _silent(self.target) from None
            if not self._transport.is_active():
                raise self.lost(error) from None
            raise Refused(message, "SFTP_MISSING", remedy) from None
        except OSError as error:
            raise self.lost(error) from None

    def clock(self) -> float | None:
        """The other host's clock (s since the epoch) by ``date +%s``; None where commands are not allowed, and for
        what is no time."""
        library = load_paramiko()
        try:
            channel = self._transport.open_session(timeout=self.target.connect_timeout)
        except (library.SSHException, EOFError, OSError):
            return None
        with contextlib.closing(channel):
            try:
                channel.settimeout(10)
                with _given_up_after(channel, 10):
                    channel.exec_command("LC_ALL=C date -u +%s")
                text = b""
                while len(text) < 64:
                    piece = channel.recv(64)
                    if not piece:
                        break
                    text += piece
            except (library.SSHException, EOFError, OSError):
                return None
        said = text.strip()
        # More digits are no time of any clock, and nobody could reckon with it.
        return float(said) if said.isdigit() and len(said) <= 11 else None

    def lost(self, error: BaseException) -> ConnectionLost:
        """The error for a connection that broke during a transfer."""
        if isinstance(error, (socket.timeout, TimeoutError)):
            return ConnectionLost(
                f"{self.target.label} sent nothing for {self.target.stall_timeout:g} s.",
                "STALLED",
                "Check the link, then run again: what has landed is kept and checked before it is used.",
            )
        return ConnectionLost(
            f"The connection to {self.target.label} broke ({type(error).__name__}).",
            "CONNECTION_LOST",
            "Check the link and sshd's log, then run again: what has landed is kept and checked before it is used.",
        )

    def close(self) -> None:
        """End the connection."""
        self._transport.close()


@contextlib.contextmanager
def _given_up_after(channel: paramiko.Channel, seconds: float) -> t.Iterator[None]:
    """Whoever asks for a subsystem or a command waits for ever; a channel that is closed meanwhile ends that."""
    timer = threading.Timer(seconds, channel.close)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _silent(target: SshTarget) -> ConnectionLost:
    return ConnectionLost(
        f"{target.label} did not answer for {target.connect_timeout:g} s while the connection was being made.",
        "STALLED",
        "Check the link and the load of that host, then run again: what has landed is kept and checked before use.",
    )


def connect(target: SshTarget, dialled: Dialled | None = None) -> Connection:
    """Connect, check the pinned host key before anything is sent, authenticate by key file or agent.

    With ``dialled``, over a connection that :func:`dial` began.

    Raises :class:`Refused`: NO_PARAMIKO, PYTHON_TOO_OLD, SSH_REFUSED, SSH_UNREACHABLE, UNKNOWN_HOST, HOST_KEY_CHANGED,
    HOST_KEY_REVOKED, KEY_UNREADABLE, KEY_PERMISSIONS, PASSPHRASE, AUTH_REFUSED.
    """
    library = load_paramiko()
    try:
        pinned = _pinned(target)
        keys = _identities(library, target)
    except BaseException:
        if dialled is not None:
            dialled.close()
        raise
    transport = _negotiate(library, target, _algorithms(pinned), dialled)
    if transport is None:
        transport = _negotiate(library, target, ())
    if transport is None:
        raise Refused(
            f"{target.label} and this host have no SSH algorithm in common.",
            "SSH_REFUSED",
            "Update OpenSSH there or paramiko here; do not weaken either of them.",
        )
    try:
        shown = transport.get_remote_server_key()
        _check_host_key(target, pinned, HostKey(shown.get_name(), shown.asbytes()))
        _authenticate(library, target, transport, keys)
    except BaseException:
        transport.close()
        raise
    transport.set_keepalive(15)
    return Connection(target, transport)


def _pinned(target: SshTarget) -> Pinned:
    if target.host_key:
        try:
            return Pinned((parse_key(target.host_key),), (), ())
        except ValueError as error:
            raise Refused(
                f"The host_key for {target.label} cannot be used: {error}.",
                "HOST_KEY_UNREADABLE",
                "Give the line that 'cat /etc/ssh/ssh_host_ed25519_key.pub' prints on that host.",
            ) from None
    if not target.known_hosts:
        raise Refused(
            f"Nothing says which host key {target.label} must show.",
            "UNKNOWN_HOST",
            "Give host_key or known_hosts for it.",
        )
    try:
        with open(target.known_hosts, encoding="utf-8", errors="surrogateescape") as file:
            return lookup(file.read(), target.host, target.port)
    except OSError as error:
        raise Refused(
            f"known_hosts {target.known_hosts} cannot be read: {error.strerror}.",
            "HOST_KEY_UNREADABLE",
            "Create it on the store with the host's key, or give host_key.",
        ) from None


def _algorithms(pinned: Pinned) -> tuple[str, ...]:
    """Host key algorithms to ask for, so that a host with several keys shows one that is pinned."""
    wanted: list[str] = []
    for key in pinned.keys:
        wanted.extend(_RSA if key.kind == "ssh-rsa" else (key.kind,))
    return tuple(dict.fromkeys(wanted))


def _negotiate(
    library: t.Any, target: SshTarget, algorithms: tuple[str, ...], dialled: Dialled | None = None
) -> paramiko.Transport | None:
    """An encrypted but not yet authenticated transport; None when the two sides have no algorithm in common."""
    deadline = time.monotonic() + target.connect_timeout
    try:
        sock = dialled.take(target.connect_timeout) if dialled is not None else None
        sock = sock or socket.create_connection((target.host, target.port), target.connect_timeout)
    except ConnectionRefusedError:
        raise Refused(
            f"Nothing listens for SSH at {target.host} port {target.port}.",
            "SSH_REFUSED",
            "Check the address and port, and that sshd runs there.",
        ) from None
    except (OSError, UnicodeError) as error:
        # A name with an empty or an endless part is no name, and is not even asked for.
        raise Refused(
            f"{target.host!r} port {target.port} cannot be reached: {error}.",
            "SSH_UNREACHABLE",
            "Check the name, the route and the firewall between the store and that host.",
        ) from None
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    transport: paramiko.Transport = library.Transport(_Buffered(sock))
    try:
        options = transport.get_security_options()
        ciphers = tuple(options.ciphers)
        options.ciphers = (*(name for name in GCM if name in ciphers), *(name for name in ciphers if name not in GCM))
        usable = tuple(name for name in algorithms if name in options.key_types)
        if usable:
            options.key_types = usable
        transport.banner_timeout = transport.auth_timeout = target.connect_timeout
        transport.start_client(timeout=max(1.0, deadline - time.monotonic()))
        transport.get_remote_server_key()
    except library.IncompatiblePeer:
        transport.close()
        return None
    except (library.SSHException, EOFError, OSError) as error:
        transport.close()
        raise Refused(
            f"{target.host} port {target.port} answers, but the SSH handshake failed: {error}.",
            "SSH_REFUSED",
            "Check that it is an SSH server, that it is not overloaded (MaxStartups), and its log.",
        ) from None
    return transport


def _check_host_key(target: SshTarget, pinned: Pinned, shown: HostKey) -> None:
    name = host_pattern(target.host, target.port)
    where = "the option host_key" if target.host_key else target.known_hosts
    look = (
        "On that host's console run 'ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub' (or _rsa_, _ecdsa_) and compare."
    )
    if any(shown.blob == key.blob for key in pinned.revoked):
        raise Refused(
            f"{name} shows the key {shown.fingerprint}, which {where} marks as revoked.",
            "HOST_KEY_REVOKED",
            f"Somebody may be in between. {look}",
            shown=shown.fingerprint,
        )
    if any(shown.blob == key.blob for key in pinned.keys):
        return
    unread = f" ({', '.join(pinned.unread)} of it could not be read)" if pinned.unread else ""
    if not pinned.keys:
        raise Refused(
            f"{name} is unknown: {where} pins no key for it{unread}, it shows {shown.kind} {shown.fingerprint}.",
            "UNKNOWN_HOST",
            f"{look} If they are equal, add its line to {where}.",
            shown=shown.fingerprint,
        )
    expected = ", ".join(f"{key.kind} {key.fingerprint}" for key in pinned.keys)
    raise Refused(
        f"The host key of {name} has changed: {where} pins {expected}; it shows {shown.kind} {shown.fingerprint}.",
        "HOST_KEY_CHANGED",
        f"Somebody may be in between, or the host was reinstalled. {look} Only if they are equal, replace the pin.",
        shown=shown.fingerprint,
        expected=[fingerprint(key.blob) for key in pinned.keys],
    )


class _AgentKey:
    """A key of the agent, and whether the agent owes a signature: for the library that is a host that hangs up."""

    def __init__(self, key: t.Any) -> None:
        self._key = key
        self.unsigned = False

    def sign_ssh_data(self, data: bytes, algorithm: str | None = None) -> t.Any:
        """Let the agent sign."""
        self.unsigned = True
        signature = self._key.sign_ssh_data(data, algorithm)
        self.unsigned = False
        return signature

    def __getattr__(self, name: str) -> t.Any:
        return getattr(self._key, name)


def _agent_keys(library: t.Any, target: SshTarget) -> list[_AgentKey]:
    """What the agent offers; nothing if there is none. Whoever asks it waits for ever, so that a thread does that."""
    answers: list[t.Any] = []

    def ask() -> None:
        try:
            answers.append([_AgentKey(key) for key in library.Agent().get_keys()])
        except Exception as error:
            # What listens there may answer anything, and each kind of nonsense is another error.
            answers.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(target.connect_timeout)
    if not answers:
        raise _refused_by_agent(target, f"did not answer for {target.connect_timeout:g} s")
    (answer,) = answers
    if isinstance(answer, Exception):
        raise _refused_by_agent(target, f"does not tell its keys ({str(answer) or type(answer).__name__})")
    return t.cast("list[_AgentKey]", answer)


def _refused_by_agent(target: SshTarget, why: str) -> Refused:
    return Refused(
        f"There is no key to authenticate at {target.label}: the agent at {os.environ.get('SSH_AUTH_SOCK')} {why}.",
        "AUTH_REFUSED",
        "As the user that runs this on the store try 'ssh-add -l' and 'ssh-add -T' with the public key; start the "
        "agent again and load the key without -c, or give key_file.",
    )


def _identities(library: t.Any, target: SshTarget) -> list[t.Any]:
    """The keys to authenticate with: the key file, or those of the agent."""
    if not target.key_file:
        keys = _agent_keys(library, target)
        if not keys:
            raise Refused(
                f"There is no key to authenticate at {target.label}: no key_file is given and no agent offers one.",
                "AUTH_REFUSED",
                "Give key_file, or run an agent with the key and let SSH_AUTH_SOCK name it.",
            )
        return list(keys)
    path = target.key_file
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise Refused(
            f"The key {path} cannot be read: {error.strerror}.", "KEY_UNREADABLE", "Check key_file on the store."
        ) from None
    if stat.S_IMODE(mode) & 0o077:
        raise Refused(
            f"The key {path} has mode {stat.S_IMODE(mode):04o}: others may read it.",
            "KEY_PERMISSIONS",
            f"chmod 0600 {path}, and think about making a new key.",
        )
    try:
        return [library.PKey.from_path(path, target.passphrase.encode("utf-8") or None)]
    except (TypeError, library.PasswordRequiredException):
        raise Refused(
            f"The key {path} is encrypted and "
            + ("no passphrase was given." if not target.passphrase else "the passphrase does not fit."),
            "PASSPHRASE",
            "Give passphrase, or load the key into an agent and leave key_file out.",
        ) from None
    except (ValueError, OSError, library.SSHException, library.UnknownKeyType) as error:
        if target.passphrase:
            raise Refused(
                f"The key {path} cannot be opened with the passphrase that was given.",
                "PASSPHRASE",
                "Check passphrase; 'ssh-keygen -y -f KEY' asks for it and shows whether it fits.",
            ) from None
        raise Refused(
            f"The key {path} cannot be used ({type(error).__name__}).",
            "KEY_UNREADABLE",
            "Give a private key of type Ed25519, ECDSA or RSA ('ssh-keygen -t ed25519').",
        ) from None
    except Exception as error:
        # The library below has errors of its own for a cipher that it does not know.
        raise Refused(
            f"The key {path} cannot be used ({type(error).__name__}).",
            "KEY_UNREADABLE",
            f"Encrypt it with a usual cipher: 'ssh-keygen -p -Z aes256-ctr -f {path}'.",
        ) from None


def _authenticate(library: t.Any, target: SshTarget, transport: paramiko.Transport, keys: t.Sequence[t.Any]) -> None:
    offered = []
    for key in keys:
        began = time.monotonic()
        offered.append(f"{key.get_name()} {fingerprint(key.asbytes())}")
        try:
            if not transport.auth_publickey(target.user, key):
                return
        except library.BadAuthenticationType as error:
            raise _refused_login(target, offered, f"it allows only {', '.join(error.allowed_types)}") from None
        except (library.SSHException, EOFError, OSError) as error:
            if isinstance(key, _AgentKey) and key.unsigned:
                raise _refused_by_agent(target, f"does not sign ({error})") from None
            if time.monotonic() - began >= target.connect_timeout:
                # Nobody refused the key.
                raise _silent(target) from None
            if transport.is_active() and isinstance(error, library.AuthenticationException):
                continue
            if len(offered) > 1:
                # It has refused keys before: it had enough of them (MaxAuthTries).
                raise _refused_login(target, offered, f"it hung up ({type(error).__name__})") from None
            raise ConnectionLost(
                f"{target.label} hung up while we logged in.",
                "CONNECTION_LOST",
                "Check sshd's log of that host: it died, or it is overloaded (MaxStartups).",
            ) from None
    raise _refused_login(target, offered, "it refused every key")


def _refused_login(target: SshTarget, offered: t.Sequence[str], why: str) -> Refused:
    return Refused(
        f"{target.label} does not let us in: {why}. Offered: {', '.join(offered)}.",
        "AUTH_REFUSED",
        f"Put the public key into ~{target.user}/.ssh/authorized_keys there, and read sshd's log of that host.",
        offered=list(offered),
    )
