#!/usr/bin/python
# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: canary
short_description: Write a known answer into a DSM cluster, and prove it after a restore
version_added: 0.1.0
author:
  - The kmsops.fortanix_dsm contributors (@kmsops)
description:
  - Keeps three keys in the cluster (AES, HMAC, EC) and, in the C(custom_metadata) of the first, a sequence number, the
    time, and a ciphertext, a MAC and a signature over both.
  - Written before a backup and proved after a restore, it shows that the master key opened, that the keys are the same
    ones, and how old the restored data is by its content.
  - Uses only addresses of the published API description [doc], as an app with an API key or as a local user. A user
    behind single sign-on or a second factor cannot be used, and would fail just when it matters [inferred].
options:
  endpoint:
    description: The node or service to ask.
    type: dict
    required: true
    suboptions:
      address:
        description: Address to connect to.
        type: str
        required: true
      port:
        description: Port of the API.
        type: int
        default: 443
      host:
        description: Name to ask for and to verify in the certificate. The address when absent.
        type: str
  name:
    description:
      - Name of the canary, which is the name of its first key. The others have C(-mac) and C(-sign) added.
    type: str
    default: kmsops-canary
  state:
    description:
      - V(present) makes the keys that are missing.
      - V(written) also writes the next sequence number with a new ciphertext, MAC and signature.
      - V(proved) changes nothing. It decrypts what is kept, checks the MAC and the signature, and fails unless all of
        them hold.
    type: str
    choices: [present, written, proved]
    default: proved
  api_key:
    description: API key of an app that may create, use and update keys in its default group.
    type: str
  user:
    description: Local user, when there is no app.
    type: str
  password:
    description: Password of O(user).
    type: str
  account_id:
    description: Account that O(user) selects after logging in.
    type: str
  group_id:
    description: Group for new keys. The default group of the app when absent; a user has none.
    type: str
  reference_time:
    description:
      - UTC time of the disaster, for instance V(2026-11-22T01:02:03Z). With it, RV(recovery_point_seconds) is returned.
    type: str
  minimum_sequence:
    description: With O(state=proved), the sequence number that must at least have come back.
    type: int
  run_id:
    description: Names the run. It is kept in the description of keys that this run makes.
    type: str
extends_documentation_fragment:
  - kmsops.fortanix_dsm.api
  - kmsops.fortanix_dsm.attributes
  - kmsops.fortanix_dsm.attributes.api_group
attributes:
  check_mode:
    support: full
    details: Logs in and looks at the keys, which the audit log of the account shows.
  diff_mode:
    support: full
  idempotent:
    support: partial
    details: O(state=written) writes a new value each time. V(present) and V(proved) are idempotent.
seealso:
  - module: kmsops.fortanix_dsm.health_info
  - module: kmsops.fortanix_dsm.restore
"""

EXAMPLES = r"""
- name: Write the canary before a backup
  kmsops.fortanix_dsm.canary:
    endpoint:
      address: 192.0.2.11
      host: dsm.example.com
    ca_path: /etc/ssl/certs/dsm-ca.pem
    api_key: "{{ dsm_canary_api_key }}"
    state: written
  register: canary_written

- name: Prove it on the restored node
  kmsops.fortanix_dsm.canary:
    endpoint:
      address: 203.0.113.11
      host: dsm.example.com
    ca_path: /etc/ssl/certs/dsm-ca.pem
    api_key: "{{ dsm_canary_api_key }}"
    state: proved
    minimum_sequence: "{{ canary_written.sequence }}"
    reference_time: "{{ disaster_at }}"
"""

RETURN = r"""
name:
  description: Name of the canary.
  returned: success
  type: str
  sample: kmsops-canary
sequence:
  description: Sequence number that is in the cluster (predicted in check mode). V(null) when nothing was written yet.
  returned: success
  type: int
  sample: 7
written_at:
  description: UTC time of that writing. V(null) when nothing was written yet, and in check mode with O(state=written).
  returned: success
  type: str
  sample: "2026-11-22T01:02:03Z"
known_answers:
  description: The ciphertext (with IV and tag), MAC and signature that are kept, base64. V(null) as for RV(written_at).
  returned: success
  type: dict
  sample: {cipher: 3q2+7w==, iv: AAECAwQFBgcICQoL, tag: AAECAwQFBgcICQoLDA0ODw==, mac: 3q2+7w==, signature: MEUCIQ==}
keys:
  description: Key ids by purpose (V(cipher), V(mac), V(signature)). V(null) for a key that is missing.
  returned: success
  type: dict
  sample: {cipher: 8f0c1d0a-6f3c-4d57-9b3e-3b2b1c8a6f10}
proofs:
  description: With O(state=proved), whether C(decrypt), C(mac) and C(signature) hold.
  returned: success
  type: dict
  sample: {decrypt: true, mac: true, signature: true}
recovery_point_seconds:
  description: O(reference_time) minus RV(written_at). V(null) without O(reference_time).
  returned: success
  type: float
  sample: 314.0
"""

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._api import Api, Endpoint, api_spec
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._canary import CanaryKeys
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import canary
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import Refused
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._module import Outcome, Shell, run_module

ARGUMENT_SPEC = dict(
    api_spec(),
    endpoint={
        "type": "dict",
        "required": True,
        "options": {
            "address": {"type": "str", "required": True},
            "port": {"type": "int", "default": 443},
            "host": {"type": "str"},
        },
    },
    name={"type": "str", "default": "kmsops-canary"},
    state={"type": "str", "choices": ["present", "written", "proved"], "default": "proved"},
    api_key={"type": "str", "no_log": True},
    user={"type": "str"},
    password={"type": "str", "no_log": True},
    account_id={"type": "str"},
    group_id={"type": "str"},
    reference_time={"type": "str"},
    minimum_sequence={"type": "int"},
    run_id={"type": "str"},
)
MODULE_RULES = {
    "required_one_of": [("api_key", "user")],
    "mutually_exclusive": [("api_key", "user")],
    "required_together": [("user", "password")],
}


def body(shell: Shell) -> Outcome:
    """Log in, do what ``state`` says, and always log out."""
    params = shell.params
    if params["reference_time"]:
        _reference(params["reference_time"])
    endpoint = Endpoint(params["endpoint"]["address"], params["endpoint"]["port"], params["endpoint"]["host"])
    api = Api(endpoint, params["ca_path"], params["timeout"], params["ca_pem"])
    api.log_in(params["api_key"], params["user"], params["password"], params["account_id"])
    try:
        return _canary(shell, api)
    finally:
        api.log_out()


def _canary(shell: Shell, api: Api) -> Outcome:
    params = shell.params
    keys = CanaryKeys(api, params["name"])
    keys.look()
    before = _state(keys.ids, keys.marker.sequence if keys.marker else None)
    changed = params["state"] == "written" or (params["state"] == "present" and bool(keys.missing))
    known, proofs = keys.marker, {}
    if params["state"] == "proved":
        proofs = keys.prove(params["minimum_sequence"])
        after = before
    elif shell.check_mode:
        after = dict(before)
        if changed:
            after["keys"] = {kind: kid or "(new)" for kind, kid in keys.ids.items()}
        if params["state"] == "written":
            known, after["sequence"] = None, (before["sequence"] or 0) + 1
    else:
        if changed:
            keys.create_missing(params["group_id"], params["run_id"])
        if params["state"] == "written":
            keys.write()
        known = keys.marker
        after = _state(keys.ids, known.sequence if known else None)
    point = None
    if known and params["reference_time"]:
        point = canary.recovery_point_seconds(known.written_at, params["reference_time"])
    return Outcome(
        changed,
        before,
        after,
        name=keys.name,
        sequence=after["sequence"],
        written_at=known.written_at if known else None,
        known_answers={part: getattr(known, part) for part in known._fields[2:]} if known else None,
        keys=dict(keys.ids),
        proofs=proofs,
        recovery_point_seconds=point,
    )


def _state(ids: dict, sequence: int | None) -> dict:
    return {"keys": dict(ids), "sequence": sequence}


def _reference(text: str) -> None:
    try:
        canary.parse_time(text)
    except ValueError as error:
        raise Refused(f"reference_time: {error}", "TIME_INVALID", remedy="Write it as 2026-11-22T01:02:03Z.") from error


def main() -> None:
    run_module(ARGUMENT_SPEC, body, **MODULE_RULES)


if __name__ == "__main__":
    main()
