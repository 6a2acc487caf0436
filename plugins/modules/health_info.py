#!/usr/bin/python
# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: health_info
short_description: Ask every DSM endpoint by itself how it is
version_added: 0.1.0
author:
  - The kmsops.fortanix_dsm contributors (@kmsops)
description:
  - Asks the health address of every endpoint the three questions that the vendor documents (plain,
    C(consistency=quorum), C(consistency=all)) and says what the answers mean. No other question is ever sent.
  - Each node is asked by its own address, because a load balancer hides a node that is down and a data centre that is
    read-only [inferred]. The service name is asked as clients would reach it.
  - C(204) means yes and C(5xx) means no [seed] [doc]. Anything else comes from something between, and gives V(unknown).
  - A missing quorum alone is not called V(read_only). A request that reads has to be answered as well, and the quorum
    question has to fail again after it.
options:
  endpoints:
    description: The endpoints, each one node by its own address.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: How to call it in the result, for instance the name of the node.
        type: str
        required: true
      address:
        description: Address to connect to.
        type: str
        required: true
      host:
        description:
          - Name to ask for and to verify in the certificate, normally the service name. The address when absent.
        type: str
      port:
        description: Port of the API.
        type: int
        default: 443
      cluster:
        description:
          - Fingerprint of the cluster that this endpoint is known to belong to, as M(kmsops.fortanix_dsm.cluster_info)
            returns it. Two clusters that serve at the same time are a V(split_brain).
        type: str
  service_name:
    description: Service name of the cluster. It is resolved here, and every address it has is asked.
    type: str
  service_port:
    description: Port of the service.
    type: int
    default: 443
  api_key:
    description:
      - API key of an app. With it the request that reads is a log-in; without it, the version.
      - Only used for an endpoint that looks V(read_only).
    type: str
extends_documentation_fragment:
  - kmsops.fortanix_dsm.api
  - kmsops.fortanix_dsm.attributes
  - kmsops.fortanix_dsm.attributes.api_group
attributes:
  check_mode:
    support: full
  diff_mode:
    support: N/A
    details: Only reads.
  idempotent:
    support: full
seealso:
  - name: Read-Only Mode of Operation
    description: The vendor's article on read-only mode and the quorum health check.
    link: https://support.fortanix.com/v1/docs/fortanix-data-security-manager-read-only-mode-of-operation
"""

EXAMPLES = r"""
- name: Ask each node and the service name
  kmsops.fortanix_dsm.health_info:
    ca_path: /etc/ssl/certs/dsm-ca.pem
    service_name: dsm.example.com
    endpoints:
      - name: dc1-n1
        address: 192.0.2.11
        host: dsm.example.com
      - name: dc2-n1
        address: 198.51.100.11
        host: dsm.example.com
  register: health

- name: Stop unless the cluster takes writes
  ansible.builtin.assert:
    that: health.summary.writable
    fail_msg: "The cluster is {{ health.summary.state }}"
"""

RETURN = r"""
endpoints:
  description: One entry for each endpoint, in the order given, and then one for each address of the service name.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Name of the endpoint; the service name for an address of the service.
      type: str
      sample: dc1-n1
    address:
      description: The address that was asked.
      type: str
      sample: 192.0.2.11
    port:
      description: The port that was asked.
      type: int
      sample: 443
    service:
      description: Whether this is an address of the service name.
      type: bool
    cluster:
      description: The cluster as it was given, or V(null).
      type: str
    state:
      description: V(full), V(degraded), V(read_only), V(down), V(unreachable) or V(unknown).
      type: str
      sample: full
    reason:
      description: Why, in one sentence.
      type: str
      sample: all replicas answer
    answers:
      description: The answers to V(plain), V(quorum) and V(all), each with RV(ignore:status), failure and seconds.
      type: dict
      sample: {plain: {status: 204, failure: null, seconds: 0.01}}
    confirmed_by:
      description: The request that decided for V(read_only), V(login) or V(version). V(null) when none was needed.
      type: str
summary:
  description: All endpoints together.
  returned: success
  type: dict
  contains:
    state:
      description: V(full), V(degraded), V(read_only), V(down), V(unreachable), V(split_brain) or V(unknown).
      type: str
    serving:
      description: How many endpoints serve, V(read_only) included.
      type: int
    endpoints:
      description: How many endpoints were asked.
      type: int
    writable:
      description: Whether at least one endpoint takes writes, and there is no split brain.
      type: bool
    clusters:
      description: The clusters of the endpoints that serve.
      type: list
      elements: str
    states:
      description: How many endpoints are in each state.
      type: dict
"""

import socket
from concurrent.futures import ThreadPoolExecutor

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._api import Api, ApiError, Endpoint, api_spec
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import health
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._module import Outcome, Shell, run_module

ARGUMENT_SPEC = dict(
    api_spec(),
    endpoints={
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "address": {"type": "str", "required": True},
            "host": {"type": "str"},
            "port": {"type": "int", "default": 443},
            "cluster": {"type": "str"},
        },
    },
    service_name={"type": "str"},
    service_port={"type": "int", "default": 443},
    api_key={"type": "str", "no_log": True},
)


def body(shell: Shell) -> Outcome:
    """Ask all endpoints at once: those that do not answer would otherwise add up their time limits."""
    params = shell.params
    wanted = [dict(endpoint, service=False) for endpoint in params["endpoints"]]
    if params["service_name"]:
        wanted.extend(_service(params["service_name"], params["service_port"]))
    with ThreadPoolExecutor(max_workers=16) as pool:
        endpoints = list(pool.map(lambda endpoint: _probe(endpoint, params), wanted))
    return Outcome(False, endpoints=endpoints, summary=health.summarise(endpoints))


def _service(name: str, port: int) -> list[dict]:
    entry = {"name": name, "host": name, "port": port, "cluster": None, "service": True}
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return [dict(entry, address=name)]
    return [dict(entry, address=address) for address in sorted({str(one[4][0]) for one in found})]


def _probe(endpoint: dict, params: dict) -> dict:
    api = Api(
        Endpoint(endpoint["address"], endpoint["port"], endpoint["host"]),
        params["ca_path"],
        params["timeout"],
        params["ca_pem"],
    )
    answers = api.health_answers()
    reading, confirmed_by = None, None
    if health.wants_second_reading(answers):
        reading, confirmed_by = _second_reading(api, params["api_key"])
    verdict = health.classify(answers, reading)
    return {
        "name": endpoint["name"],
        "address": endpoint["address"],
        "port": endpoint["port"],
        "service": endpoint["service"],
        "cluster": endpoint["cluster"],
        "state": verdict.state,
        "reason": verdict.reason,
        "answers": {name: answer.as_dict() for name, answer in answers.items()},
        "confirmed_by": confirmed_by if verdict.state == "read_only" else None,
    }


def _second_reading(api: Api, api_key: str | None) -> tuple[bool, str]:
    """Whether a request that reads is answered while the quorum question fails again, and which request it was."""
    kind = "login" if api_key else "version"
    try:
        if api_key:
            api.log_in(api_key=api_key)
            api.log_out()
        else:
            api.version()
    except ApiError:
        return False, kind
    return api.ask_health("quorum").status != 204, kind


def main() -> None:
    run_module(ARGUMENT_SPEC, body)


if __name__ == "__main__":
    main()
