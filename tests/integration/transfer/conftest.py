# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures: a real sshd, a store and a source, and a proxy that damages what flows between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer import _policy
from ansible_collections.kmsops.fortanix_dsm.tests.integration.transfer.helpers import SSHD, Proxy, Site, Sshd


def pytest_exception_interact(call: pytest.CallInfo[Any], report: pytest.TestReport) -> None:
    """A refusal that no test expected is shown with all its reasons."""
    reasons = getattr(call.excinfo.value, "reasons", ()) if call.excinfo else ()
    if reasons and isinstance(report, pytest.TestReport):
        report.sections.append(("reasons", "\n".join(str(reason) for reason in reasons)))


@pytest.fixture(autouse=True)
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """How far a busy machine seems to be from itself is chance: a transfer begins as from a near host."""
    monkeypatch.setattr(_policy, "AT_ONCE", _policy.FEWEST)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    if not SSHD:
        pytest.fail("sshd is missing: apt-get install openssh-server")
    sshd = Sshd(tmp_path_factory.mktemp("sshd")).start()
    yield sshd
    sshd.stop()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Callable[..., Sshd]]:
    """Servers that a test may bend; all are stopped at the end."""
    made: list[Sshd] = []

    def make(*options: str) -> Sshd:
        made.append(Sshd(tmp_path / f"sshd{len(made)}", options=list(options)).start())
        return made[-1]

    yield make
    for sshd in made:
        sshd.stop()


@pytest.fixture
def site(server: Sshd, tmp_path: Path) -> Site:
    source, store = tmp_path / "backup", tmp_path / "store"
    source.mkdir()
    store.mkdir()
    return Site(server, source, store)


@pytest.fixture
def proxy() -> Iterator[Callable[..., Proxy]]:
    made: list[Proxy] = []

    def make(port: int, treat: Callable[[int, bytes], bytes | None]) -> Proxy:
        made.append(Proxy(port, treat))
        return made[-1]

    yield make
    for item in made:
        item.close()
