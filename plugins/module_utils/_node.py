# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""What a node holds on its own disk: state of a cluster, the cluster's CA, and the marker of our own trial."""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import re
import socket
import stat
import typing as t

from ._core import spki
from ._core.membership import Probe
from ._errors import Unreadable

TRIAL_MARKER = "/var/lib/kmsops/trial.json"
#: Written before the service name is led to a restored cluster: from then on it is production and no trial.
OPENED_MARKER = "/var/lib/kmsops/opened.json"
#: Where Kubernetes and the database keep their state [inferred]; an option where a release differs.
STATE_PATHS = ["/etc/kubernetes", "/var/lib/etcd", "/var/lib/cassandra"]
_KUBERNETES_CA = "/etc/kubernetes/pki/ca.crt"

_CA_DATA = re.compile(r"""["']?certificate-authority-data["']?\s*:\s*["']?([A-Za-z0-9+/=]+)""")
_CA_FILE = re.compile(r"""["']?certificate-authority["']?\s*:\s*["']?([^\s"',}]+)""")


def state_paths_spec() -> dict[str, t.Any]:
    """Option ``state_paths``."""
    return {"state_paths": {"type": "list", "elements": "path", "default": STATE_PATHS}}


def present_state(paths: t.Iterable[str]) -> list[str]:
    """Those of the paths that are files, or hold any file at any depth. Empty directories are no state."""
    return [path for path in paths if _holds_file(path)]


def _holds_file(path: str) -> bool:
    """Whether it is a file or holds one. What may not be looked at is an error: it must never pass for clean."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return os.path.islink(path)
    return not stat.S_ISDIR(mode) or any(files for _root, _directories, files in os.walk(path, onerror=_raise))


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # gone while looking, as during a reset
        raise error


def local_fingerprint(kubeconfig: str, ca_path: str = _KUBERNETES_CA) -> str | None:
    """Fingerprint of the cluster whose CA lies on this host, or None when there is none.

    :raises Unreadable: there is one, but it cannot be decoded
    """
    text = _read(kubeconfig)
    pem: str | None = None
    if text is not None:
        embedded, named = _CA_DATA.search(text), _CA_FILE.search(text)
        if embedded is not None:
            try:
                pem = base64.b64decode(embedded.group(1), validate=True).decode("ascii")
            except (binascii.Error, UnicodeDecodeError):
                raise Unreadable(f"The CA in {kubeconfig} is not base64.", remedy="Restore that file.") from None
        elif named is not None:
            pem = _read(named.group(1))
    if pem is None:
        pem = _read(ca_path)
    if pem is None:
        return None
    try:
        return spki.fingerprint(pem)
    except ValueError as error:
        raise Unreadable(
            f"The Kubernetes CA on this host cannot be decoded: {error}.", remedy=f"Look at {kubeconfig} and {ca_path}."
        ) from None


def read_marker(path: str = TRIAL_MARKER) -> dict[str, t.Any] | None:
    """The marker of a trial, or None; ``opened`` tells whether clients were led to it since.

    :raises Unreadable: there is a marker, but it is not one of ours: nothing may be concluded from it
    """
    text = _read(path)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict) or value.get("schema") != 1 or not value.get("run_id") or not value.get("host"):
        raise Unreadable(
            f"{path} is not a marker of a trial.", remedy="Look at it by hand, and remove it if it is void."
        )
    return dict(value, opened=bool(value.get("opened")) or bool(present_state([OPENED_MARKER])))


def write_private(path: str, text: str) -> None:
    """Write a file of mode 0600 so that it is there whole or not at all, even after a power cut."""
    directory = os.path.dirname(path)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    staged = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(staged)
    with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(staged, path)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_marker(marker: t.Mapping[str, t.Any], path: str = TRIAL_MARKER) -> None:
    """Write the marker of a trial."""
    write_private(path, json.dumps(dict(marker, schema=1), indent=1, sort_keys=True) + "\n")


def remove_markers(*paths: str) -> None:
    """Remove markers, whether or not they are there."""
    for path in paths or (TRIAL_MARKER, OPENED_MARKER):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def try_connection(address: str, port: int, timeout: float = 3.0) -> Probe:
    """Whether a TCP connection opens, is refused, or stays without an answer."""
    try:
        with socket.create_connection((address, port), timeout=timeout):
            return Probe(address, port, "open")
    except ConnectionRefusedError:
        return Probe(address, port, "refused")
    except OSError:
        return Probe(address, port, "silent")


def resolve(name: str) -> list[str]:
    """Addresses of a name as this host resolves it; none when it does not."""
    try:
        found = socket.getaddrinfo(name, None, proto=socket.IPPROTO_TCP)
    except OSError:
        return []
    return sorted({str(entry[4][0]) for entry in found})


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            return handle.read()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
