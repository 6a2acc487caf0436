# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A wrong clock on one host, by libfaketime: for the stand-in's services and for every command run with sudo.

A container cannot have a clock of its own. Programs written in Go (the control plane, kubeadm) keep the right time.
"""

from __future__ import annotations

import re

from labctl.errors import UsageError
from labctl.podman import in_container
from labctl.topology import Host

UNITS = ("standin-cassandra", "standin-membership", "standin-agent", "standin-api")
_LIBRARY = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
_SUDO, _ENVIRONMENT = "/etc/sudoers.d/lab-clock", "/etc/lab-clock.env"
_DROP_IN = "lab-clock.conf"
_OFFSET = re.compile(r"[+-]\d{1,4}[smhdy]?")


def shift(host: Host, offset: str) -> None:
    """Moves the clock of a host by ``offset`` (+1d, -3h, +90s ...). Running services are restarted to see it."""
    if not _OFFSET.fullmatch(offset):
        raise UsageError(f"{offset!r} is no offset", "write +1d, -3h, +90s, or reset")
    values = [f"LD_PRELOAD={_LIBRARY}", f"FAKETIME={offset}", "FAKETIME_DONT_FAKE_MONOTONIC=1"]
    environment = "\n".join(values)
    service = "\n".join(["[Service]", *(f"Environment={value}" for value in values)])
    script = [f"cat >{_ENVIRONMENT} <<'E'\n{environment}\nE", f"echo 'Defaults env_file={_ENVIRONMENT}' >{_SUDO}"]
    script.append(f"chmod 0440 {_SUDO}")
    for unit in UNITS:
        place = f"/etc/systemd/system/{unit}.service.d"
        script.append(f"mkdir -p {place}\ncat >{place}/{_DROP_IN} <<'E'\n{service}\nE")
    _apply(host, script)


def reset(host: Host) -> None:
    drop_ins = " ".join(f"/etc/systemd/system/{unit}.service.d/{_DROP_IN}" for unit in UNITS)
    _apply(host, [f"rm -f {_SUDO} {_ENVIRONMENT} {drop_ins}"])


def _apply(host: Host, script: list[str]) -> None:
    script.append(f"systemctl daemon-reload\nsystemctl try-restart {' '.join(UNITS)}")
    in_container(host.container, ["/bin/bash", "-eus"], stdin="\n".join(script) + "\n", timeout=120)
