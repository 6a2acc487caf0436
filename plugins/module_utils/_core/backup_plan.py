# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the ``backup:`` and ``auditBackup:`` blocks should say, and what is wrong with them.

PRIVATE to the collection.
"""

from __future__ import annotations

import re
from typing import Any, Mapping

from . import cron
from .reasons import Reason

#: Option -> key in config.yaml [doc: Backup for Audit Log].
BLOCKS = {"backup": "backup", "audit_backup": "auditBackup"}
HIDDEN = "(hidden)"
HIDDEN_NEW = "(hidden, new)"

_PLAIN = ("cron_schedule", "backup_mode", "exclude_auditlog")
_SCP = ("server_ip", "authmode", "username", "password", "path")
_SECRET = re.compile(
    r"pass|secret|token|credential|private|api_?key|access_?key|account_?key|(^|_)(key|pin|sas)$", re.I
)
#: First release that knows a setting [doc: Backup for Audit Log].
_SINCE = {"exclude_auditlog": (3, 27), "auditBackup": (3, 27), "authmode": (4, 6)}


def desired(current: Mapping[str, Any] | None, option: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The block as the option wants it. What the option does not name stays, because the vendor knows more keys than
    anybody outside; ``None`` means no block."""
    if option is None:
        return None if current is None else dict(current)
    if option["state"] == "absent":
        return None
    block = dict(current or {})
    for key in option.get("remove") or ():
        block.pop(key, None)
    for key in _PLAIN:
        if option.get(key) is not None:
            block[key] = option[key]
    scp = option.get("scp")
    if scp is not None:
        known = {key: scp[key] for key in _SCP if scp.get(key) is not None}
        block["scp"] = {**_mapping(block.get("scp")), **known}
    for extra in (option.get("settings"), option.get("secret_settings")):
        block = _merged(block, extra or {})
    return block


def lint(
    blocks: Mapping[str, Mapping[str, Any] | None], version: str | None = None, exposed: bool = False
) -> list[Reason]:
    """Everything wrong with the two blocks together.

    :param blocks: ``backup`` and ``auditBackup``, as they would be
    :param version: the DSM version of the cluster, when known
    :param exposed: a password stands in the file now, and others than its owner can read it
    """
    reasons = [
        reason for key, block in blocks.items() if block is not None for reason in _lint_one(key, block, version)
    ]
    backup = blocks.get("backup")
    if backup is not None and backup.get("exclude_auditlog") is True and blocks.get("auditBackup") is None:
        reasons.append(
            Reason(
                "AUDIT_LOG_LOST",
                "exclude_auditlog leaves the audit log out of the backup, and there is no auditBackup that keeps it",
                "Configure audit_backup, or accept that a restored cluster has no audit history.",
                hard=False,
            )
        )
    if exposed:
        reasons.append(
            Reason(
                "PASSWORD_EXPOSED",
                "the file holds a password and others than its owner can read it",
                "Change that password at the destination, then accept this: the file gets mode 0600.",
                hard=False,
            )
        )
    return reasons


def secrets(block: Mapping[str, Any] | None) -> list[str]:
    """The values in the block that nobody may see."""
    found: list[str] = []
    for key, value in (block or {}).items():
        if isinstance(value, Mapping):
            found.extend(secrets(value))
        elif _SECRET.search(key) and value not in (None, ""):
            found.append(str(value))
    return found


def shown(block: Mapping[str, Any] | None, other: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """The block without its secrets. A secret that differs from the one in ``other`` is marked as new."""
    if block is None:
        return None
    out: dict[str, Any] = {}
    for key, value in block.items():
        before = (other or {}).get(key)
        if isinstance(value, Mapping):
            out[key] = shown(value, None if other is None else _mapping(before))
        elif _SECRET.search(key) and value is not None:
            out[key] = HIDDEN_NEW if other is not None and value != before else HIDDEN
        else:
            out[key] = value
    return out


def _lint_one(key: str, block: Mapping[str, Any], version: str | None) -> list[Reason]:
    reasons = []
    schedule = block.get("cron_schedule")
    try:
        cron.parse("" if schedule is None else str(schedule))
    except cron.CronError as error:
        reasons.append(Reason("CRON_INVALID", f"{key}.cron_schedule: {error}", "Write it as 10 * * * *, in UTC."))
    if not isinstance(block.get("exclude_auditlog", False), bool):
        reasons.append(
            Reason("EXCLUDE_INVALID", f"{key}.exclude_auditlog is neither true nor false", "Write true or false.")
        )
    scp = block.get("scp")
    if scp is not None:
        required = ["server_ip", "username", "path"]
        if _mapping(scp).get("authmode", "password") == "password":
            required.append("password")
        missing = [name for name in required if not _mapping(scp).get(name)]
        if missing:
            reasons.append(Reason("SCP_INCOMPLETE", f"{key}.scp lacks {', '.join(missing)}", "Give what is missing."))
    used = [key, *block, *_mapping(scp)]
    for name, since in _SINCE.items():
        if name in used and _older(version, since):
            reasons.append(
                Reason(
                    "VERSION_TOO_OLD",
                    f"{name} needs DSM {since[0]}.{since[1]}, this cluster runs {version}",
                    "Leave it out, or upgrade first.",
                )
            )
    return reasons


def _older(version: str | None, than: tuple[int, int]) -> bool:
    match = re.match(r"^(\d+)\.(\d+)", version or "")
    return match is not None and (int(match.group(1)), int(match.group(2))) < than


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _merged(block: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(block)
    for key, value in extra.items():
        out[key] = _merged(_mapping(out.get(key)), value) if isinstance(value, Mapping) else value
    return out
