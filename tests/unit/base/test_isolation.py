# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every endpoint of production is probed, and all of them at once."""

from __future__ import annotations

import threading

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils import _isolation
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.membership import Probe

ADDRESSES = ("192.0.2.11", "192.0.2.12", "192.0.2.13")
ISOLATION = {"production_endpoints": [{"address": address, "port": 443} for address in ADDRESSES], "timeout": 3}


@pytest.mark.parametrize("alive", ADDRESSES)
def test_one_endpoint_that_answers_is_enough_to_refuse(monkeypatch, alive):
    def probe(address, port, _seconds):
        return Probe(address, port, "open" if address == alive else "silent")

    monkeypatch.setattr(_isolation, "try_connection", probe)
    reasons = _isolation.probe_isolation(ISOLATION, ["198.51.100.7"])
    assert [reason.code for reason in reasons] == ["NOT_ISOLATED"]
    assert alive in reasons[0].message


def test_no_probe_waits_for_another(monkeypatch):
    """A dead endpoint is silent until its timeout; three of them may not take three times as long."""
    together = threading.Barrier(len(ADDRESSES))

    def probe(address, port, _seconds):
        together.wait(timeout=30)  # broken, and so an error, unless all of them are being probed
        return Probe(address, port, "silent")

    monkeypatch.setattr(_isolation, "try_connection", probe)
    assert _isolation.probe_isolation(ISOLATION, ["198.51.100.7"]) == []
