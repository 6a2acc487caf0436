# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Usage: pack.py COLLECTION [ARCHIVE]. Prints what the parts of a collection that run amount to, as one SHA-256.

With ARCHIVE they are packed as well. The same files make the same digest and the same archive on every controller.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tarfile

PARTS = ("meta", "playbooks", "plugins", "roles")
FILES = ("galaxy.yml", "MANIFEST.json")


def parts(root: str) -> list[str]:
    """Paths below ``root``, sorted: whatever Ansible may read when it runs the collection."""
    found = [name for name in FILES if os.path.isfile(os.path.join(root, name))]
    for part in PARTS:
        for directory, directories, names in os.walk(os.path.join(root, part)):
            directories[:] = sorted(name for name in directories if name[0] != "." and name != "__pycache__")
            here = os.path.relpath(directory, root)
            found += [os.path.join(here, name) for name in names if name[0] != "." and not name.endswith("~")]
    return sorted(found)


def digest(root: str, paths: list[str]) -> str:
    """SHA-256 (hex) over names and contents."""
    whole = hashlib.sha256()
    for path in paths:
        with open(os.path.join(root, path), "rb") as file:
            whole.update(f"{hashlib.sha256(file.read()).hexdigest()}  {path}\n".encode())
    return whole.hexdigest()


def pack(root: str, paths: list[str], archive: str) -> None:
    """Write a tar file that says nothing of who packed it, and when."""
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in paths:
            entry = tarfile.TarInfo(path)
            with open(os.path.join(root, path), "rb") as file:
                entry.size = os.fstat(file.fileno()).st_size
                entry.mode, entry.mtime = 0o644, 946684800  # some time that every archive can name
                tar.addfile(entry, file)


def main() -> None:
    root = os.path.realpath(sys.argv[1])
    paths = parts(root)
    if not any(path.startswith("plugins/") for path in paths):
        sys.exit(f"{root} is no collection")
    if len(sys.argv) > 2:
        pack(root, paths, sys.argv[2])
    print(digest(root, paths))


if __name__ == "__main__":
    main()
