# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Apache Cassandra from Maven Central, checked jar by jar, with a class archive made by the image's own Java.

The cached directory is mounted at /opt/cassandra: ``lib/``, ``daemon.args``, ``nodetool`` and both class archives.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from labctl import cache, image, paths
from labctl.errors import LabError
from labctl.podman import LABEL, podman
from labctl.process import await_condition, run
from labctl.progress import Progress

SOURCES = paths.LAB / "cassandra"
HOME = "/opt/cassandra"
_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:2.8:copy-dependencies"
_OTHER_MACHINES = "osx-x86_64,osx-aarch_64,windows-x86_64,linux-aarch_64,linux-riscv64"


def key() -> str:
    return cache.digest("cassandra", image.base_key(), SOURCES)


def build(progress: Progress) -> Path:
    return cache.get("cassandra", key(), lambda draft: _build(draft, progress))


def pinned() -> dict[str, str]:
    """The checksums that the repository trusts: jar name -> SHA-256."""
    lines = (SOURCES / "SHA256SUMS").read_text(encoding="ascii").splitlines()
    return {jar: total for total, jar in (line.split() for line in lines)}


def compare(found: dict[str, str], trusted: dict[str, str]) -> list[str]:
    """Everything that is wrong with a set of jars, one sentence each; empty if it is exactly the trusted set."""
    wrong = [f"{jar} is missing" for jar in sorted(trusted.keys() - found.keys())]
    wrong += [f"{jar} is not in lab/cassandra/SHA256SUMS" for jar in sorted(found.keys() - trusted.keys())]
    wrong += [
        f"{jar} has another checksum" for jar in sorted(found.keys() & trusted.keys()) if found[jar] != trusted[jar]
    ]
    return wrong


def _build(draft: Path, progress: Progress) -> None:
    progress.say("cassandra: fetching the jars with Maven (70 MB)")
    library = draft / "lib"
    shutil.copy(SOURCES / "pom.xml", draft)
    run(
        ["mvn", "-q", "-B", "-f", str(draft / "pom.xml"), _PLUGIN, f"-DoutputDirectory={library}",
         f"-DexcludeClassifiers={_OTHER_MACHINES}"],
        timeout=900,
        remedy=cache.fetch_remedy("Maven's repository"),
    )  # fmt: skip
    found = {jar.name: hashlib.sha256(jar.read_bytes()).hexdigest() for jar in sorted(library.iterdir())}
    wrong = compare(found, pinned())
    if wrong:
        raise LabError(f"Cassandra's jars are not the pinned ones: {'; '.join(wrong)}", "do not use them, ask why")
    for tool in ("nodetool", "nodetool-logback.xml"):
        shutil.copy(SOURCES / tool, draft)
    options = (SOURCES / "daemon.args").read_text(encoding="ascii")
    path = ":".join(f"{HOME}/lib/{jar}" for jar in sorted(found))
    (draft / "daemon.args").write_text(
        f"{options}-XX:SharedArchiveFile={HOME}/cassandra.jsa\n-cp {path}\n", encoding="ascii"
    )
    (draft / "nodetool.args").write_text(f"-cp {path}\n", encoding="ascii")
    _archive_classes(draft, f"{options}-XX:ArchiveClassesAtExit={HOME}/cassandra.jsa\n-cp {path}\n", progress)


def _archive_classes(draft: Path, arguments: str, progress: Progress) -> None:
    """Runs a node of its own once, without any network, and lets the JVM write down the classes that it loaded."""
    progress.say("cassandra: archiving its classes (a later start is a third faster)")
    (draft / "archive.args").write_text(arguments, encoding="ascii")
    shutil.copy(SOURCES / "archive-classes", draft)
    name = f"lab-build-{draft.name.rpartition('-')[2]}"
    podman("rm", "--force", "--time", "0", name, check=False)
    podman(
        "run", "--detach", "--name", name, "--label", f"{LABEL}-build", "--network", "none", "--pull=never",
        "--volume", f"{draft}:{HOME}", image.base_name(), f"{HOME}/archive-classes",
    )  # fmt: skip
    try:
        await_condition(
            "the class archive of Cassandra",
            lambda: podman("inspect", "--format", "{{.State.Status}}", name).stdout.strip() == "exited",
            timeout=180,
            interval=1.0,
        )
        if not all((draft / archive).exists() for archive in ("cassandra.jsa", "nodetool.jsa")):
            words = podman("logs", name).stdout[-2000:]
            raise LabError(f"Cassandra did not leave a class archive: {words}")
    finally:
        podman("rm", "--force", "--time", "0", name, check=False)
    for leftover in ("archive.args", "archive-classes", "pom.xml"):
        (draft / leftover).unlink()
