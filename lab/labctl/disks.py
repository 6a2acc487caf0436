# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks of their own for the directories that backups land in, so that one can be full without filling the machine.

Each is a sparse file with a file system, mounted while the lab runs and seen by its host under the directory's name.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from labctl import inventory, paths
from labctl.errors import UsageError
from labctl.process import run
from labctl.topology import Host

SIZE = 16 * 1024**3
FILLER = ".disk-full"
IMAGES = Path("/var/tmp/kmsops-lab")  # a sparse file of 16 GiB does not belong on a /run that is memory
_DIRECTORIES = {"landing": inventory.LANDING_PATH, "store": inventory.STORE_PATH}


def directory_of(host: Host) -> str | None:
    """The directory of a host that is a disk of its own, or None."""
    return _DIRECTORIES.get(host.role)


def mount_point(host: Host) -> Path:
    return paths.STATE / "disks" / host.name


def create(host: Host) -> None:
    IMAGES.mkdir(mode=0o700, exist_ok=True)
    image = IMAGES / f"{host.name}.img"
    with open(image, "wb") as handle:
        handle.truncate(SIZE)
    run(["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "nodiscard,lazy_itable_init=1", str(image)])
    mount_point(host).mkdir(parents=True)
    run(["mount", "-o", "loop", str(image), str(mount_point(host))])
    (mount_point(host) / "lost+found").rmdir()


def mounted() -> list[str]:
    """Everything that is mounted inside the lab's state directory, the deepest first."""
    lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    points = [line.split()[1] for line in lines]
    return sorted((point for point in points if point.startswith(f"{paths.STATE}/")), reverse=True)


def remove() -> None:
    for point in mounted():
        run(["umount", point])
    if IMAGES.is_dir():
        for image in IMAGES.iterdir():
            image.unlink()
        IMAGES.rmdir()


def fill(host: Host, leave: int) -> None:
    """Fills a host's disk until ``leave`` bytes are free; repeated, it fills what has become free since."""
    where = _filler(host)
    room = os.statvfs(where.parent)
    more = room.f_bavail * room.f_frsize - leave
    if more > 0:
        have = where.stat().st_size if where.exists() else 0
        # The file system needs some of the space for itself: then what there is was given, and the disk is full.
        with open(where, "ab") as handle, contextlib.suppress(OSError):
            os.posix_fallocate(handle.fileno(), have, more)


def empty(host: Host) -> None:
    _filler(host).unlink(missing_ok=True)


def is_full(host: Host) -> bool:
    return directory_of(host) is not None and _filler(host).exists()


def _filler(host: Host) -> Path:
    if directory_of(host) is None:
        raise UsageError(f"{host.name} has no disk of its own", f"take a host of role {' or '.join(_DIRECTORIES)}")
    return mount_point(host) / FILLER
