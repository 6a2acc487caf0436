# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The store's paramiko as wheels, for hosts without a network. Run as a program it prints their directory.

With --timers: ansible-core too, for a store that works by itself.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys

LISTS = pathlib.Path(__file__).resolve().parents[2] / "roles" / "backup_store" / "files"
WANTED = (LISTS / "requirements.txt",)
WITH_TIMERS = (*WANTED, LISTS / "timers.txt")
PYTHON = "3.11"  # what the lab's hosts run
PLATFORMS = ("manylinux_2_34_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


class NoWheels(Exception):
    """They are not in the cache and could not be had."""


def directory(wanted: tuple[pathlib.Path, ...]) -> pathlib.Path:
    """Where the wheels of these lists are kept, under the hash of what is asked for."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "kmsops-lab"
    asked = b"".join(path.read_bytes() for path in wanted) + repr((PYTHON, PLATFORMS)).encode()
    return cache / f"wheelhouse-{hashlib.sha256(asked).hexdigest()[:16]}"


def provide(wanted: tuple[pathlib.Path, ...] = WANTED) -> pathlib.Path:
    """Download them once, with their hashes checked; afterwards no network is needed."""
    target = directory(wanted)
    if not target.is_dir():
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        argv = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--require-hashes"]
        argv += ["--no-deps", "--only-binary", ":all:", "--implementation", "cp", "--python-version", PYTHON]
        argv += [word for platform in PLATFORMS for word in ("--platform", platform)]
        argv += [word for path in wanted for word in ("--requirement", str(path))] + ["--dest", str(partial)]
        if subprocess.run(argv, check=False, stdin=subprocess.DEVNULL).returncode != 0:
            names = " and ".join(path.name for path in wanted)
            raise NoWheels(
                f"the wheels of {names} could not be downloaded (pip says why above). What to do: "
                "see that this machine reaches a package index, once; afterwards no network is needed"
            )
        partial.rename(target)
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Prints a directory of wheels, which is filled at the first time.")
    parser.add_argument("--timers", action="store_true", help="ansible-core too, for a store that works by itself")
    try:
        print(provide(WITH_TIMERS if parser.parse_args().timers else WANTED))
    except NoWheels as failure:
        sys.exit(f"wheelhouse: {failure}.")
