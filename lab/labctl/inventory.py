# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory of the running lab: one literal YAML file with the groups of a real site.

One password is a template. testinfra does not render templates in connection variables, so those are written out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from labctl.topology import GROUPS, PREFIX, SERVICE_ADDRESS, SERVICE_NAME, Topology

CONFIG_PATH = "/etc/dsm/config.yaml"
LANDING_USER = "dsmbackup"
LANDING_PATH = "/home/dsmbackup/backup"
STORE_PATH = "/srv/dsm-store"
TOOLS = "/opt/fortanix/standin/bin"

RESTORE_FAMILIES: Mapping[str, list[dict[str, Any]]] = {
    "script": [{"name": "restore", "argv": [f"{TOOLS}/restore-all", "--archive", "{archive}"]}],
    "steps": [
        {"name": "stop backend", "argv": [f"{TOOLS}/stop-backend"]},
        {"name": "load database", "argv": [f"{TOOLS}/load-database", "--from", "{archive}"]},
        {"name": "check unseal", "argv": [f"{TOOLS}/check-unseal"]},
        {"name": "start backend", "argv": [f"{TOOLS}/start-backend"]},
    ],
}

# The password stands in secrets.yml, only Ansible renders it; the key lies on the members since they were installed.
DELIVERIES: Mapping[str, dict[str, str]] = {
    "password": {"authmode": "password", "password": "{{ dsm_scp_password }}"},
    "key": {"authmode": "private key"},
}


def render(
    topology: Topology,
    *,
    state: Path,
    command: Path,
    host_keys: Mapping[str, str],
    serials: Mapping[str, str],
) -> str:
    """The inventory as text. ``host_keys`` and ``serials`` are per host name; ``command`` is the path of lab/lab."""
    dr = topology.by_role("dr")
    rehearsal_host = dr[0].name if dr else ""
    everywhere: dict[str, Any] = {
        "ansible_connection": "ssh",
        "ansible_user": "administrator",
        "ansible_become": True,
        "ansible_ssh_private_key_file": str(state / "id_ed25519"),
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_ssh_common_args": f"-o UserKnownHostsFile={state}/known_hosts -o GlobalKnownHostsFile=/dev/null "
        "-o StrictHostKeyChecking=yes -o IdentitiesOnly=yes",
        "dsm_config_path": CONFIG_PATH,
        "dsm_api_ca": str(state / "tls" / "ca.crt"),
        "dsm_node_api_ca": "/etc/standin/tls/ca.crt",
        "dsm_service_name": SERVICE_NAME,
        "dsm_service_address": SERVICE_ADDRESS,
        "dsm_store_path": STORE_PATH,
        "dsm_restore_steps": RESTORE_FAMILIES[topology.restore],
        "dsm_apply_config_argv": [f"{TOOLS}/apply-config", "--config", "{config}"],
        "dsm_backup_now_argv": [f"{TOOLS}/backup-now"],
        "dsm_isolate_argv": [str(command), "isolate-host", rehearsal_host],
        "dsm_unisolate_argv": [str(command), "unisolate-host", rehearsal_host],
        "dsm_open_service_steps": [
            {"name": "lead the service address", "argv": [str(command), "service-address", rehearsal_host]}
        ],
        "dsm_backup_quiet": 1,
        "dsm_rehearsal_allowed": True,
        "dsm_rehearsal_host": rehearsal_host,
    }
    for landing in topology.by_role("landing"):
        scp = {"server_ip": landing.address, "username": LANDING_USER, "path": LANDING_PATH}
        scp.update(DELIVERIES[topology.delivery])
        everywhere["dsm_backup"] = {"cron_schedule": "17 3 * * *", "backup_mode": "snapshot", "scp": scp}
    for store in topology.by_role("store"):
        recovered = dict(everywhere["dsm_backup"]["scp"], server_ip=store.address)
        everywhere["dsm_recovery_backup"] = dict(everywhere["dsm_backup"], scp=recovered)
        everywhere["dsm_recovery_sources"] = [_source_path(topology)]
    children: dict[str, Any] = {group: {"hosts": {}} for group in GROUPS.values()}
    for host in topology.hosts:
        values: dict[str, Any] = {
            "ansible_host": host.address,
            "dsm_address": host.address,
            "dsm_prefix": PREFIX,
            "dsm_datacenter": host.site.name,
            "dsm_serial": serials[host.name],
        }
        if host.role == "landing":
            values.update(
                {
                    "dsm_source_user": LANDING_USER,
                    "dsm_source_path": LANDING_PATH,
                    "dsm_source_host_key": host_keys[host.name],
                    "dsm_source_private_key": str(state / "pull_ed25519"),
                    "dsm_backup_source": {
                        "name": host.name,
                        "address": host.address,
                        "port": 22,
                        "user": LANDING_USER,
                        **_source_path(topology),
                    },
                }
            )
        children[host.group]["hosts"][host.name] = values
    note = f"# Inventory of the lab, profile {topology.profile}. Run Ansible by `lab/lab exec`.\n"
    document = {"all": {"vars": everywhere, "children": children}}
    return note + "---\n" + yaml.safe_dump(document, sort_keys=False, width=200)


def _source_path(topology: Topology) -> dict[str, str]:
    """Where deliveries lie on the host that they are delivered to."""
    path = f"{LANDING_PATH}/*" if topology.layout == "single" else f"{LANDING_PATH}/*/*"
    return {"path": path, "layout": topology.layout}
