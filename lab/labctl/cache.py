# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cache: what was fetched or built once stays under the hash of its recipe, whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from labctl import paths


def digest(*parts: str | Path) -> str:
    """The key of a recipe: texts as they are, files and directories with names, kinds, executable bits and content."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            for line in _describe(part):
                total.update(line)
        else:
            total.update(b"text\0" + part.encode() + b"\0")
    return total.hexdigest()[:16]


def _describe(path: Path) -> Iterator[bytes]:
    for entry in _walk(path):
        name = os.fsencode(entry.relative_to(path)) if entry != path else b""
        mode = entry.lstat().st_mode
        if stat.S_ISLNK(mode):
            yield b"link\0" + name + b"\0" + os.fsencode(os.readlink(entry)) + b"\0"
        elif stat.S_ISREG(mode):
            content = hashlib.sha256(entry.read_bytes()).digest()
            yield b"file\0" + name + b"\0" + (b"x" if mode & 0o111 else b"-") + content
        else:
            yield b"dir\0" + name + b"\0"


def _walk(path: Path) -> Iterable[Path]:
    if path.is_dir() and not path.is_symlink():
        return [path, *sorted(p for p in path.rglob("*") if "__pycache__" not in p.parts)]
    return [path]


def place(kind: str, key: str) -> Path:
    return paths.cache() / f"{kind}-{key}"


def fetch_remedy(source: str) -> str:
    """What a person does when something could not be fetched or built."""
    return (
        f"see that this machine reaches {source} and that the disk of {paths.cache()} has room, "
        "then make lab-build; what is finished is kept"
    )


@contextmanager
def building() -> Iterator[None]:
    """One build at a time on this cache."""
    paths.cache().mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(paths.cache() / "lock", "w", encoding="ascii") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def get(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """The cached directory; ``build`` fills an empty one if there is none. A half-made one never counts."""
    final = place(kind, key)
    if final.is_dir():
        return final
    draft = paths.cache() / f".{kind}-{key}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    build(draft)
    os.replace(draft, final)
    return final


def forget_older(kind: str, key: str) -> None:
    """Removes what older recipes of a kind made, except for the last one: a checkout that goes back finds it again."""
    kept = place(kind, key)
    others = [path for path in paths.cache().glob(f"{kind}-*") if path != kept]
    for path in sorted(others, key=lambda other: other.stat().st_mtime, reverse=True)[1:]:
        shutil.rmtree(path)
