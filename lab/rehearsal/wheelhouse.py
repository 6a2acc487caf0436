# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The store's paramiko as wheels, for hosts without a network. Run as a program it prints their directory."""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys

WANTED = pathlib.Path(__file__).resolve().parents[2] / "roles" / "backup_store" / "files" / "requirements.txt"
PYTHON = "3.11"  # what the lab's hosts run
PLATFORMS = ("manylinux_2_34_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


class NoWheels(Exception):
    """They are not in the cache and could not be had."""


def directory() -> pathlib.Path:
    """Where the wheels are kept, under the hash of what is asked for."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "kmsops-lab"
    wanted = hashlib.sha256(WANTED.read_bytes() + repr((PYTHON, PLATFORMS)).encode()).hexdigest()[:16]
    return cache / f"wheelhouse-{wanted}"


def provide() -> pathlib.Path:
    """Download them once, with their hashes checked; afterwards no network is needed."""
    target = directory()
    if not target.is_dir():
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        argv = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--require-hashes"]
        argv += ["--no-deps", "--only-binary", ":all:", "--implementation", "cp", "--python-version", PYTHON]
        argv += [word for platform in PLATFORMS for word in ("--platform", platform)]
        argv += ["--requirement", str(WANTED), "--dest", str(partial)]
        if subprocess.run(argv, check=False, stdin=subprocess.DEVNULL).returncode != 0:
            raise NoWheels(
                f"the wheels of {WANTED.name} could not be downloaded (pip says why above). What to do: "
                "see that this machine reaches a package index, once; afterwards no network is needed"
            )
        partial.rename(target)
    return target


if __name__ == "__main__":
    try:
        print(provide())
    except NoWheels as failure:
        sys.exit(f"wheelhouse: {failure}.")
