# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the machine itself must have. Missing Debian packages are named, and installed only when asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable

from labctl import cache, cassandra, image, paths
from labctl.errors import MissingPrerequisite
from labctl.podman import image_exists

# command -> Debian package
RUN = {
    "podman": "podman",
    "runc": "runc",
    "nft": "nftables",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "sysctl": "procps",
    "openssl": "openssl",
    "ssh": "openssh-client",
    "zstd": "zstd",
}
BUILD_IMAGE = {"mmdebstrap": "mmdebstrap"}
BUILD_CASSANDRA = {"mvn": "maven", "java": "default-jre-headless"}
NETAVARK = ("/usr/lib/podman/netavark", "/usr/libexec/podman/netavark", "/usr/local/libexec/podman/netavark")


def missing(commands: Iterable[str], which: Callable[[str], str | None] = shutil.which) -> list[str]:
    """The packages of those commands that the machine does not have."""
    table = {**RUN, **BUILD_IMAGE, **BUILD_CASSANDRA}
    return sorted({table[command] for command in commands if which(command) is None})


def needed() -> list[str]:
    """The missing packages for what is still to be done: what is in the cache needs no tools to build it."""
    lacking = missing(RUN)
    if not any(os.path.exists(path) for path in NETAVARK):
        lacking.append("netavark")
    if not cache.place("base", image.base_key()).is_dir() and (
        "podman" in lacking or not image_exists(image.base_name())
    ):
        lacking += missing(BUILD_IMAGE)
    if not cache.place("cassandra", cassandra.key()).is_dir():
        lacking += missing(BUILD_CASSANDRA)
    return sorted(set(lacking))


def require() -> None:
    lacking = needed()
    if lacking:
        raise MissingPrerequisite(f"Debian packages are missing: {' '.join(lacking)}", "lab/lab prerequisites")


def install() -> list[str]:
    """Installs what is missing, in the words of requirements/system, and returns what that was."""
    lacking = needed()
    if lacking:
        done = subprocess.run([str(paths.CHECKOUT / "requirements" / "system"), *lacking], check=False)
        if done.returncode != 0:
            raise MissingPrerequisite(
                f"Debian packages could not be installed: {' '.join(lacking)}", "install them by hand, then try again"
            )
    return lacking
