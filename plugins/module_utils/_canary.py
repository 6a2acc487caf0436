# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The three keys of a canary, through the published API [doc]: keys, encrypt, decrypt, mac, macverify, sign, verify.

PRIVATE to the collection.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, Mapping

from ._api import Api
from ._core import canary
from ._errors import DsmError, Reason

_SIGN = {"hash_alg": "SHA256"}
_MAC = {"alg": "SHA256"}
_GCM = {"alg": "AES", "mode": "GCM"}
#: A wrong key is answered with a 4xx: that is a proof that failed, not a service that failed.
_NOT_HELD = (400, 403, 404, 409, 422)

_OTHER_BACKUP = "What was restored is not what the canary was written into. Restore another backup."


class CanaryKeys:
    """The keys of one canary on one endpoint; :meth:`look` first."""

    def __init__(self, api: Api, name: str) -> None:
        self._api = api
        self.name = name
        self.ids: dict[str, str | None] = {}
        self.marker: canary.Marker | None = None

    def look(self) -> None:
        """Reads which keys are there, and the marker. Raises :class:`DsmError` when the marker is not one of ours."""
        found = {kind: self._api.call("POST", "/crypto/v1/keys/info", self._key(kind), (404,)) for kind in canary.KEYS}
        self.ids = {kind: str(key["kid"]) if key else None for kind, key in found.items()}
        try:
            self.marker = canary.marker_of((found["cipher"] or {}).get("custom_metadata"))
        except canary.CanaryError as error:
            raise DsmError(
                f"The marker of the canary {self.name} cannot be used: {error}",
                "CANARY_UNREADABLE",
                remedy="Another tool or a newer release wrote it. Use another name for the canary.",
            ) from error

    @property
    def missing(self) -> list[str]:
        """Kinds of keys that are not there."""
        return [kind for kind, kid in self.ids.items() if kid is None]

    def create_missing(self, group_id: str | None, run_id: str | None) -> None:
        """Makes the keys that are not there."""
        for kind in self.missing:
            request: dict[str, Any] = {**canary.KEYS[kind][1], **self._key(kind)}
            request["description"] = f"kmsops recovery canary {run_id or ''}".strip()
            if group_id:
                request["group_id"] = group_id
            self.ids[kind] = str(self._api.call("POST", "/crypto/v1/keys", request)["kid"])

    def write(self) -> None:
        """Makes the next known answers and puts them into the cluster in one request."""
        sequence = self.marker.sequence + 1 if self.marker else 1
        written_at = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        plain = canary.plain_text(self.name, sequence, written_at)
        sealed = self._use("encrypt", "cipher", tag_len=128, plain=plain, **_GCM)
        mac = self._use("mac", "mac", data=plain, **_MAC)["mac"]
        signature = self._use("sign", "signature", data=plain, **_SIGN)["signature"]
        marker = canary.Marker(sequence, written_at, sealed["cipher"], sealed["iv"], sealed["tag"], mac, signature)
        self._api.call("PATCH", f"/crypto/v1/keys/{self.ids['cipher']}", {"custom_metadata": marker.as_metadata()})
        self.marker = marker

    def prove(self, minimum_sequence: int | None = None) -> dict[str, bool]:
        """Whether each known answer still holds. Raises :class:`DsmError` with every reason unless all do."""
        reasons = [
            Reason("CANARY_KEY_MISSING", f"the key {self._key(kind)['name']} is not there", _OTHER_BACKUP)
            for kind in self.missing
        ]
        proofs: dict[str, bool] = {}
        if not reasons and self.marker is None:
            reasons.append(
                Reason(
                    "CANARY_NEVER_WRITTEN",
                    "its keys are there, but nothing was ever written",
                    "Write it on production (state: written) before the next backup.",
                )
            )
        elif not reasons and self.marker is not None:
            proofs = self._proofs(self.marker)
            reasons.extend(
                Reason("CANARY_NOT_PROVED", f"{proof} does not hold", _OTHER_BACKUP)
                for proof in canary.failed_proofs(proofs)
            )
            if minimum_sequence is not None and self.marker.sequence < minimum_sequence:
                reasons.append(
                    Reason(
                        "CANARY_TOO_OLD",
                        f"sequence {self.marker.sequence} came back, at least {minimum_sequence} was expected",
                        "This is an older backup than the one that was expected. Restore a newer one.",
                    )
                )
        if reasons:
            raise DsmError(
                f"The canary {self.name} is not proved.",
                "CANARY_NOT_PROVED",
                remedy="Stop: leave the node as it is, keep its logs, and try another backup only on a person's word.",
                reasons=reasons,
                proofs=proofs,
            )
        return proofs

    def _proofs(self, marker: canary.Marker) -> dict[str, bool]:
        plain = canary.plain_text(self.name, marker.sequence, marker.written_at)
        sealed = {"cipher": marker.cipher, "iv": marker.iv, "tag": marker.tag, **_GCM}
        return {
            "decrypt": self._use("decrypt", "cipher", **sealed).get("plain") == plain,
            "mac": self._use("macverify", "mac", data=plain, mac=marker.mac, **_MAC).get("result") is True,
            "signature": self._use("verify", "signature", data=plain, signature=marker.signature, **_SIGN).get("result")
            is True,
        }

    def _key(self, kind: str) -> dict[str, str]:
        return {"name": self.name + canary.KEYS[kind][0]}

    def _use(self, operation: str, kind: str, **request: Any) -> Mapping[str, Any]:
        allow = _NOT_HELD if operation in ("decrypt", "macverify", "verify") else ()
        answer = self._api.call("POST", f"/crypto/v1/{operation}", {"key": self._key(kind), **request}, allow)
        return answer if isinstance(answer, dict) else {}
