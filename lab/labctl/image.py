# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The image of a lab host: Debian bookworm made by mmdebstrap (apt checks the signatures), then a layer.

The base changes seldom and takes about a minute; it is kept as a compressed archive. The layer carries lab/image/rootfs
and lab/standin/rootfs, takes two seconds and is made again from the base without network.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from labctl import cache, paths
from labctl.podman import BASE_IMAGE, IMAGE, image_exists, podman
from labctl.process import run
from labctl.progress import Progress

SOURCES = paths.LAB / "image"
STANDIN_ROOTFS = paths.LAB / "standin" / "rootfs"


def _packages() -> list[str]:
    lines = (SOURCES / "packages").read_text(encoding="ascii").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def base_key() -> str:
    return cache.digest("base", ",".join(_packages()), SOURCES / "mkbase")


def key() -> str:
    parts: list[str | Path] = ["image", base_key(), SOURCES / "Containerfile", SOURCES / "rootfs"]
    if STANDIN_ROOTFS.is_dir():
        parts.append(STANDIN_ROOTFS)
    return cache.digest(*parts)


def base_name() -> str:
    return f"{BASE_IMAGE}:{base_key()}"


def name() -> str:
    return f"{IMAGE}:{key()}"


def build(progress: Progress) -> str:
    """Makes sure that the image is there, and returns its name."""
    if image_exists(name()):
        return name()
    if not image_exists(base_name()):
        archive = cache.get("base", base_key(), lambda draft: _build_base(draft, progress)) / "image.tar.zst"
        progress.say("image: reading the base into podman")
        with tempfile.TemporaryDirectory(prefix=".import-", dir=paths.cache()) as directory:
            # podman 5 takes the checksum of a compressed archive for that of its content, and fails.
            plain = Path(directory) / "image.tar"
            run(["zstd", "-q", "-d", str(archive), "-o", str(plain)], timeout=300)
            podman("import", "--quiet", str(plain), base_name(), timeout=300)
    progress.say("image: making the layer with the stand-in's commands")
    with tempfile.TemporaryDirectory(prefix="kmsops-lab-image-") as directory:
        context = Path(directory)
        rootfs = context / "rootfs"
        for source in (SOURCES / "rootfs", STANDIN_ROOTFS):
            if source.is_dir():
                shutil.copytree(
                    source, rootfs, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
                )
        shutil.copy(SOURCES / "Containerfile", context)
        podman(
            "build", "--quiet", "--network", "none", "--pull=never", "--build-arg", f"BASE={base_name()}",
            "--tag", name(), str(context), timeout=300,
        )  # fmt: skip
    _forget_older(IMAGE, name())
    _forget_older(BASE_IMAGE, base_name())
    return name()


def _build_base(draft: Path, progress: Progress) -> None:
    progress.say("image: Debian bookworm by mmdebstrap (about a minute, 200 MB of packages)")
    archive = draft / "image.tar"
    run(
        [str(SOURCES / "mkbase"), ",".join(_packages()), str(archive)],
        timeout=1200,
        remedy=cache.fetch_remedy("the Debian mirror"),
    )
    run(["zstd", "-q", "-3", "-T0", "--rm", str(archive)], timeout=300)


def _forget_older(repository: str, keep: str) -> None:
    """Removes images of the lab's own name that no recipe makes any more; one that a container still uses stays."""
    listed = podman("images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", f"reference={repository}").stdout
    for old in listed.split():
        if old != keep and old.startswith(f"{repository}:"):
            podman("rmi", old, check=False)
