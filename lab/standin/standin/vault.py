# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in's accounts, users, groups, apps, sessions and security objects over an encrypted store.

Everything here works on a ``Store`` (Cassandra's, or a double with the same methods in tests) and a ``RowCipher``;
nothing is kept in memory that another member of the cluster would have to know.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import time
import uuid
from typing import Any, NamedTuple

from standin import crypto
from standin.crypto import BadRequest, b64
from standin.sealing import RowCipher

SESSION_S = 600
_ALL = "all"
_SCRYPT = {"n": 2**13, "r": 8, "p": 1}
_ADMIN = ["ACCOUNTADMINISTRATOR", "STATEENABLED"]
_MEMBER_OPS = ("EXPORT", "ENCRYPT", "DECRYPT", "SIGN", "VERIFY", "MACGENERATE", "MACVERIFY", "APPMANAGEABLE")


class NotAllowed(Exception):
    """Known, but not allowed to do this."""


class NotAuthenticated(Exception):
    """Not known, or no longer."""


class NotFound(Exception):
    """There is no such thing, or not for this caller."""


class Conflict(Exception):
    """The name is taken."""


class Caller(NamedTuple):
    """Who asks: an app or a user, with the account that is in use ("" for a user who selected none)."""

    kind: str
    entity_id: str
    account: str
    session: str


def now_text(seconds: float | None = None) -> str:
    """Return a time the way the API writes it, e.g. 20260102T030405Z."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() if seconds is None else seconds))


def _text(body: dict[str, Any], field: str, default: str | None = None) -> str:
    value = body.get(field, default)
    if not isinstance(value, str) or not value:
        raise BadRequest(f"field {field} is missing")
    return value


def _metadata(body: dict[str, Any]) -> dict[str, str]:
    metadata = body.get("custom_metadata") or {}
    if not isinstance(metadata, dict) or not all(
        isinstance(key, str) and isinstance(value, str) for key, value in metadata.items()
    ):
        raise BadRequest("custom_metadata is not a map of strings")
    return metadata


class Vault:
    """What the API does, without HTTP."""

    def __init__(self, store: Any, cipher: RowCipher) -> None:
        self._store = store
        self._cipher = cipher

    # -- rows -------------------------------------------------------------------------------------------------------
    def _close(self, table: str, owner: str, row_id: str, row: dict[str, Any]) -> bytes:
        return self._cipher.close_row(table, owner, row_id, json.dumps(row, separators=(",", ":")).encode())

    def _open(self, table: str, owner: str, row_id: str, blob: bytes) -> dict[str, Any]:
        row: dict[str, Any] = json.loads(self._cipher.open_row(table, owner, row_id, blob))
        return row

    def _get(self, table: str, owner: str, row_id: str) -> dict[str, Any] | None:
        blob = self._store.get(table, owner, row_id)
        return None if blob is None else self._open(table, owner, row_id, blob)

    def _require(self, table: str, owner: str, row_id: str, what: str) -> dict[str, Any]:
        row = self._get(table, owner, row_id)
        if row is None:
            raise NotFound(f"there is no {what} {row_id} here")
        return row

    def _put(self, table: str, owner: str, row_id: str, row: dict[str, Any], ttl_s: int = 0) -> None:
        self._store.put(table, owner, row_id, self._close(table, owner, row_id, row), ttl_s)

    def _list(self, table: str, owner: str) -> list[dict[str, Any]]:
        return [self._open(table, owner, row_id, blob) for row_id, blob in self._store.scan(table, owner)]

    def _claim(self, kind: str, name: str, target: dict[str, Any]) -> None:
        """Take a name for good, or say that it is taken; decided by a Paxos round of the database."""
        index = self._cipher.lookup(kind, name)
        if not self._store.put_new("lookups", kind, index, self._close("lookups", kind, index, target)):
            raise Conflict(f"{kind.partition(':')[0]} {name} exists already")

    def _find(self, kind: str, name: str) -> dict[str, Any] | None:
        return self._get("lookups", kind, self._cipher.lookup(kind, name))

    def _release(self, kind: str, name: str) -> None:
        self._store.delete("lookups", kind, self._cipher.lookup(kind, name))

    def audit(self, caller: Caller | None, action: str) -> None:
        """Append one audit record; the day and the account are the partition."""
        account = caller.account if caller else ""
        record = {
            "time": now_text(),
            "action": action,
            "actor_type": caller.kind if caller else "unauthenticated",
            "actor_id": caller.entity_id if caller else "",
        }
        self._put("audit_log", f"{account or _ALL}/{record['time'][:8]}", str(uuid.uuid1()), record)

    # -- users and log-in -------------------------------------------------------------------------------------------
    def sign_up(self, body: dict[str, Any]) -> dict[str, Any]:
        """Create a user; the first one of a cluster administers the system [inferred]."""
        email, password = _text(body, "user_email").lower(), _text(body, "user_password")
        if len(password) < 8:
            raise BadRequest("the password has fewer than 8 characters")
        first = not self._store.scan("users", _ALL)
        user_id, salt = str(uuid.uuid4()), os.urandom(16)
        self._claim("user", email, {"user_id": user_id})
        row: dict[str, Any] = {
            "user_id": user_id,
            "user_email": email,
            "first_name": body.get("first_name"),
            "last_name": body.get("last_name"),
            "created_at": now_text(),
            "salt": b64(salt),
            "password": b64(hashlib.scrypt(password.encode(), salt=salt, **_SCRYPT)),
            "sysadmin": first,
            "accounts": {},
        }
        self._put("users", _ALL, user_id, row)
        return self._user_view(row, "")

    @staticmethod
    def _user_view(row: dict[str, Any], account: str) -> dict[str, Any]:
        view = {key: row[key] for key in ("user_id", "user_email", "first_name", "last_name", "created_at")}
        view.update(
            account_role=row["accounts"].get(account, []),
            email_verified=True,
            has_account=bool(row["accounts"]),
            has_password=True,
            mfa_devices=[],
            u2f_devices=[],
        )
        return view

    def log_in(self, name: str, secret: str) -> Caller:
        """Check a user's password or an app's secret."""
        try:
            app_id = str(uuid.UUID(name))
        except ValueError:
            return self._log_in_user(name.lower(), secret)
        place = self._find("app", app_id)
        app = self._get("apps", place["acct_id"], app_id) if place else None
        if app is None or not hmac.compare_digest(app["secret"], secret):
            raise NotAuthenticated("unknown app or wrong secret")
        if not app["enabled"]:
            raise NotAuthenticated("the app is disabled")
        return Caller("app", app_id, app["acct_id"], "")

    def _log_in_user(self, email: str, password: str) -> Caller:
        place = self._find("user", email)
        user = self._get("users", _ALL, place["user_id"]) if place else None
        salt = base64.b64decode(user["salt"]) if user else bytes(16)
        derived = b64(hashlib.scrypt(password.encode(), salt=salt, **_SCRYPT))
        if user is None or not hmac.compare_digest(user["password"], derived):
            raise NotAuthenticated("unknown user or wrong password")
        return Caller("user", user["user_id"], "", "")

    def open_session(self, caller: Caller) -> dict[str, Any]:
        """Return an AuthResponse. The token holds its claims, so that a log-in needs no write."""
        claims = {"s": str(uuid.uuid4()), "k": caller.kind, "e": caller.entity_id, "a": caller.account}
        claims["x"] = str(int(time.time()) + SESSION_S)
        token = base64.urlsafe_b64encode(self._cipher.close_token(json.dumps(claims).encode())).decode().rstrip("=")
        return {
            "token_type": "Bearer",
            "expires_in": SESSION_S,
            "access_token": token,
            "entity_id": caller.entity_id,
        }

    def caller_of_token(self, token: str) -> Caller:
        """Return who holds a bearer token, or refuse it."""
        try:
            blob = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except (binascii.Error, ValueError):
            blob = b""
        plain = self._cipher.open_token(blob)
        if plain is None:
            raise NotAuthenticated("the bearer token is not one of this cluster")
        claims = json.loads(plain)
        state = self._get("sessions", claims["s"], "state") or {}
        if state.get("ended") or int(state.get("expires", claims["x"])) < time.time():
            raise NotAuthenticated("the session has ended")
        return Caller(claims["k"], claims["e"], state.get("account", claims["a"]), claims["s"])

    def _session_write(self, caller: Caller, **changes: Any) -> None:
        if not caller.session:
            raise BadRequest("this request carries no session")
        state = self._get("sessions", caller.session, "state") or {"account": caller.account}
        state.setdefault("expires", int(time.time()) + SESSION_S)
        self._put("sessions", caller.session, "state", dict(state, **changes), SESSION_S * 2)

    def refresh(self, caller: Caller) -> None:
        """Let the session live on."""
        self._session_write(caller, expires=int(time.time()) + SESSION_S)

    def terminate(self, caller: Caller) -> None:
        """End the session for every member of the cluster."""
        self._session_write(caller, ended=True)

    def select_account(self, caller: Caller, body: dict[str, Any]) -> dict[str, Any]:
        """Let a user work in one of their accounts."""
        account = _text(body, "acct_id")
        if caller.kind != "user" or account not in self._user(caller)["accounts"]:
            raise NotAllowed("the account is not one of yours")
        self._session_write(caller, account=account)
        return {}

    def _user(self, caller: Caller) -> dict[str, Any]:
        if caller.kind != "user":
            raise NotAllowed("only a user may do this")
        return self._require("users", _ALL, caller.entity_id, "user")

    def _account(self, caller: Caller) -> str:
        if not caller.account:
            raise NotAllowed("select an account first")
        return caller.account

    def _administer(self, caller: Caller) -> str:
        account = self._account(caller)
        if caller.kind != "user" or "ACCOUNTADMINISTRATOR" not in self._user(caller)["accounts"].get(account, []):
            raise NotAllowed("only an administrator of the account may do this")
        return account

    def user(self, caller: Caller, user_id: str) -> dict[str, Any]:
        """Return one user of the selected account, or the caller."""
        row = self._require("users", _ALL, user_id, "user")
        if caller.entity_id != user_id and self._account(caller) not in row["accounts"]:
            raise NotFound(f"there is no user {user_id} here")
        return self._user_view(row, caller.account)

    def users(self, caller: Caller) -> list[dict[str, Any]]:
        """Return the users of the selected account; a system administrator without an account sees all."""
        rows = self._list("users", _ALL)
        if not caller.account and self._user(caller)["sysadmin"]:
            return [self._user_view(row, "") for row in rows]
        account = self._account(caller)
        return [self._user_view(row, account) for row in rows if account in row["accounts"]]

    def user_accounts(self, caller: Caller) -> dict[str, list[str]]:
        """Return the caller's accounts with the role in each."""
        accounts: dict[str, list[str]] = self._user(caller)["accounts"]
        return accounts

    # -- accounts ---------------------------------------------------------------------------------------------------
    def create_account(self, caller: Caller, body: dict[str, Any]) -> dict[str, Any]:
        """Create an account that the calling user administers."""
        user, name = self._user(caller), _text(body, "name")
        acct_id = str(uuid.uuid4())
        self._claim("account", name, {"acct_id": acct_id})
        row: dict[str, Any] = {
            "acct_id": acct_id,
            "name": name,
            "description": body.get("description"),
            "custom_metadata": _metadata(body),
            "created_at": now_text(),
            "enabled": True,
            "logging_configs": {},
            "mark_key_disable_when_deactivated": False,
            "original_purpose": {"$type": "Standard"},
            "purpose": {"$type": "Standard"},
            "subscription": {"on_prem": {}},
        }
        self._put("accounts", _ALL, acct_id, row)
        user["accounts"][acct_id] = _ADMIN
        self._put("users", _ALL, user["user_id"], user)
        return row

    def accounts(self, caller: Caller) -> list[dict[str, Any]]:
        """Return the accounts of the caller; a system administrator sees all."""
        rows = self._list("accounts", _ALL)
        if caller.kind == "app":
            return [row for row in rows if row["acct_id"] == caller.account]
        user = self._user(caller)
        return [row for row in rows if user["sysadmin"] or row["acct_id"] in user["accounts"]]

    def account(self, caller: Caller, acct_id: str) -> dict[str, Any]:
        """Return one account."""
        for row in self.accounts(caller):
            if row["acct_id"] == acct_id:
                return row
        raise NotFound(f"there is no account {acct_id} here")

    # -- groups -----------------------------------------------------------------------------------------------------
    def create_group(self, caller: Caller, body: dict[str, Any]) -> dict[str, Any]:
        """Create a group in the selected account."""
        account, name, group_id = self._administer(caller), _text(body, "name"), str(uuid.uuid4())
        self._claim(f"group:{account}", name, {"group_id": group_id})
        row = {
            "group_id": group_id,
            "acct_id": account,
            "name": name,
            "description": body.get("description"),
            "custom_metadata": _metadata(body),
            "created_at": now_text(),
            "creator": {caller.kind: caller.entity_id},
            "client_configurations": {},
        }
        self._put("groups", account, group_id, row)
        return row

    def groups(self, caller: Caller) -> list[dict[str, Any]]:
        """Return the groups that the caller may see."""
        rows = self._list("groups", self._account(caller))
        allowed = self._app_groups(caller)
        return [row for row in rows if allowed is None or row["group_id"] in allowed]

    def group(self, caller: Caller, group_id: str) -> dict[str, Any]:
        """Return one group."""
        for row in self.groups(caller):
            if row["group_id"] == group_id:
                return row
        raise NotFound(f"there is no group {group_id} here")

    # -- apps -------------------------------------------------------------------------------------------------------
    def create_app(self, caller: Caller, body: dict[str, Any]) -> dict[str, Any]:
        """Create an app with a random secret."""
        account, name, app_id = self._administer(caller), _text(body, "name"), str(uuid.uuid4())
        groups = body.get("add_groups") or {}
        members = list(groups)
        default = body.get("default_group") or (members[0] if members else None)
        known = {row["group_id"] for row in self._list("groups", account)}
        unknown = (set(members) | ({default} if default else set())) - known
        if unknown:
            raise BadRequest(f"unknown groups: {', '.join(sorted(unknown))}")
        size = body.get("secret_size") or 64
        if not isinstance(size, int) or not 16 <= size <= 128:
            raise BadRequest("secret_size is not between 16 and 128")
        self._claim(f"app:{account}", name, {"app_id": app_id})
        self._claim("app", app_id, {"acct_id": account})
        permissions = {group: list(groups[group]) for group in members} if isinstance(groups, dict) else {}
        row = {
            "app_id": app_id,
            "acct_id": account,
            "name": name,
            "description": body.get("description"),
            "app_type": body.get("app_type", "default"),
            "interface": body.get("interface"),
            "auth_type": "Secret",
            "client_configurations": {},
            "created_at": now_text(),
            "creator": {caller.kind: caller.entity_id},
            "default_group": default,
            "enabled": True,
            "groups": {group: permissions.get(group) or list(_MEMBER_OPS) for group in members},
            "ip_address_policy": "allow_all",
            "last_operations": {},
            "legacy_access": False,
            "role": body.get("role", "crypto"),
            "secret": b64(os.urandom(size)).rstrip("="),
        }
        self._put("apps", account, app_id, row)
        return self._app_view(row)

    @staticmethod
    def _app_view(row: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in row.items() if key != "secret"}

    def apps(self, caller: Caller) -> list[dict[str, Any]]:
        """Return the apps of the account; an app sees itself."""
        rows = self._list("apps", self._account(caller))
        return [self._app_view(row) for row in rows if caller.kind == "user" or row["app_id"] == caller.entity_id]

    def app(self, caller: Caller, app_id: str) -> dict[str, Any]:
        """Return one app."""
        for row in self.apps(caller):
            if row["app_id"] == app_id:
                return row
        raise NotFound(f"there is no app {app_id} here")

    def app_credential(self, caller: Caller, app_id: str) -> dict[str, Any]:
        """Return the secret of an app; the API key is base64("app id:secret")."""
        row = self._require("apps", self._administer(caller), app_id, "app")
        return {"app_id": app_id, "credential": {"secret": row["secret"]}}

    def delete_app(self, caller: Caller, app_id: str) -> None:
        """Delete an app; its API key is refused from now on."""
        account = self._administer(caller)
        row = self._require("apps", account, app_id, "app")
        self._release("app", app_id)
        self._release(f"app:{account}", row["name"])
        self._store.delete("apps", account, app_id)

    def _app_groups(self, caller: Caller) -> dict[str, Any] | None:
        """Return the groups of an app; None for a user, who sees the whole account."""
        if caller.kind != "app":
            return None
        groups: dict[str, Any] = self._require("apps", caller.account, caller.entity_id, "app")["groups"]
        return groups

    # -- security objects -------------------------------------------------------------------------------------------
    def create_key(self, caller: Caller, body: dict[str, Any], *, imported: bool = False) -> dict[str, Any]:
        """Generate (POST) or import (PUT) a security object."""
        account, name = self._account(caller), _text(body, "name")
        group = body.get("group_id")
        allowed = self._app_groups(caller)
        if allowed is not None:
            group = group or self._require("apps", account, caller.entity_id, "app")["default_group"]
            if group not in allowed:
                raise NotAllowed("the app is not in that group")
        if not group or self._get("groups", account, group) is None:
            raise BadRequest("group_id is missing or names no group of this account")
        material = (
            crypto.describe(_text(body, "obj_type"), crypto.unb64(body, "value", required=True))
            if imported
            else crypto.generate(body)
        )
        default_ops = crypto.DEFAULT_OPS[material["obj_type"]]
        ops = body.get("key_ops") or list(default_ops)
        if not isinstance(ops, list) or set(ops) - crypto.ALL_OPS:
            raise BadRequest(f"unknown key_ops {ops!r}")
        metadata, kid = _metadata(body), str(uuid.uuid4())
        row = {
            "kid": kid,
            "acct_id": account,
            "group_id": group,
            "name": name,
            "description": body.get("description"),
            "custom_metadata": metadata,
            "created_at": now_text(),
            "creator": {caller.kind: caller.entity_id},
            "enabled": body.get("enabled", True),
            "key_ops": ops,
            "origin": "External" if imported else "FortanixHSM",
            "public_only": False,
            "never_exportable": "EXPORT" not in ops,
            "state": "Active",
            **material,
        }
        self._claim(f"sobject:{account}", name, {"kid": kid})
        self._put("security_objects", account, kid, row)
        return self._key_view(row)

    @staticmethod
    def _key_view(row: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in row.items() if key != "material"}

    def _key(self, caller: Caller, descriptor: Any) -> dict[str, Any]:
        """Return the stored object that a SobjectDescriptor (kid or name) means."""
        account = self._account(caller)
        if not isinstance(descriptor, dict) or not ({"kid", "name"} & set(descriptor)):
            raise BadRequest("a key is given by kid or by name")
        kid = descriptor.get("kid")
        if kid is None:
            place = self._find(f"sobject:{account}", _text(descriptor, "name"))
            if place is None:
                raise NotFound(f"there is no security object {descriptor['name']} here")
            kid = place["kid"]
        row = self._require("security_objects", account, str(kid), "security object")
        allowed = self._app_groups(caller)
        if allowed is not None and row["group_id"] not in allowed:
            raise NotFound(f"there is no security object {kid} here")
        return row

    def key(self, caller: Caller, descriptor: Any) -> dict[str, Any]:
        """Return one security object without its material."""
        return self._key_view(self._key(caller, descriptor))

    def keys(self, caller: Caller, query: dict[str, str]) -> Any:
        """Return the security objects that match a query, ordered by name then id."""
        rows = self._list("security_objects", self._account(caller))
        allowed = self._app_groups(caller)
        rows = [row for row in rows if allowed is None or row["group_id"] in allowed]
        total = len(rows)
        for field in ("group_id", "name", "obj_type"):
            if field in query:
                rows = [row for row in rows if row.get(field) == query[field]]
        for field, value in query.items():
            if field.startswith("custom_metadata."):
                key = field.partition(".")[2]
                rows = [row for row in rows if row["custom_metadata"].get(key) == value]
        rows.sort(key=lambda row: (row["name"], row["kid"]))
        matched = len(rows)
        try:
            offset, limit = int(query.get("offset", 0)), int(query.get("limit", 1001))
        except ValueError as error:
            raise BadRequest("limit and offset are numbers") from error
        items = [self._key_view(row) for row in rows[offset : offset + limit]]
        if query.get("with_metadata") == "true":
            return {"metadata": {"total_count": total, "filtered_count": matched}, "items": items}
        return items

    def update_key(self, caller: Caller, kid: str, body: dict[str, Any]) -> dict[str, Any]:
        """Change description, custom_metadata or enabled; what is not given stays."""
        row = self._key(caller, {"kid": kid})
        unknown = set(body) - {"description", "custom_metadata", "enabled"}
        if unknown:
            raise BadRequest(f"the stand-in cannot change {', '.join(sorted(unknown))}")
        if "custom_metadata" in body:
            row["custom_metadata"] = _metadata(body)
        row.update({field: body[field] for field in ("description", "enabled") if field in body})
        self._put("security_objects", row["acct_id"], kid, row)
        return self._key_view(row)

    def delete_key(self, caller: Caller, kid: str) -> None:
        """Delete one security object."""
        row = self._key(caller, {"kid": kid})
        self._release(f"sobject:{row['acct_id']}", row["name"])
        self._store.delete("security_objects", row["acct_id"], kid)

    def export_key(self, caller: Caller, descriptor: Any) -> dict[str, Any]:
        """Return an object with its value, where its operations allow that."""
        row = self._for(caller, descriptor, "EXPORT")
        return dict(self._key_view(row), value=row["material"])

    # -- cryptography -----------------------------------------------------------------------------------------------
    def _for(self, caller: Caller, descriptor: Any, operation: str) -> dict[str, Any]:
        row = self._key(caller, descriptor)
        if not row["enabled"]:
            raise NotAllowed("the key is disabled")
        if operation not in row["key_ops"]:
            raise NotAllowed(f"the key does not allow {operation}")
        return row

    @staticmethod
    def _bytes(row: dict[str, Any]) -> bytes:
        return base64.b64decode(row["material"])

    @staticmethod
    def _check_algorithm(row: dict[str, Any], body: dict[str, Any], *, required: bool) -> None:
        if required and "alg" not in body:
            raise BadRequest("field alg is missing")
        if body.get("alg", row["obj_type"]) != row["obj_type"] or row["obj_type"] not in ("AES", "RSA"):
            raise BadRequest(f"a key of type {row['obj_type']} does not do {body.get('alg', 'encryption')}")

    def encrypt(self, caller: Caller, body: dict[str, Any]) -> dict[str, Any]:
        """EncryptRequest to EncryptResponse."""
        row = self._for(caller, body.get("key"), "ENCRYPT")
        self._check_algorithm(row, body, required=True)
        function = crypto.aes_encrypt if row["obj_type"] == "AES" else crypto.rsa_encrypt
        return {"kid": row["kid"], **{name: b64(value) for name, value in function(self._bytes(row), body).items()}}

    def decrypt(self, caller: Caller, body: dict[str, Any]) -> dict[str, Any]:
        """DecryptRequest to DecryptResponse."""
        row = self._for(caller, body.get("key"), "DECRYPT")
        self._check_algorithm(row, body, required=False)
        function = crypto.aes_decrypt if row["obj_type"] == "AES" else crypto.rsa_decrypt
        return {"kid": row["kid"], "plain": b64(function(self._bytes(row), body))}

    def sign(self, caller: Caller, body: dict[str, Any]) -> dict[str, Any]:
        """SignRequest to SignResponse."""
        row = self._for(caller, body.get("key"), "SIGN")
        return {"kid": row["kid"], "signature": b64(crypto.sign(row["obj_type"], self._bytes(row), body))}

    def verify(self, caller: Caller, body: dict[str, Any]) -> dict[str, Any]:
        """VerifyRequest to VerifyResponse."""
        row = self._for(caller, body.get("key"), "VERIFY")
        return {"kid": row["kid"], "result": crypto.verify(row["obj_type"], self._bytes(row), body)}

    def mac(self, caller: Caller, body: dict[str, Any]) -> dict[str, Any]:
        """MacRequest to MacResponse."""
        row = self._for(caller, body.get("key"), "MACGENERATE")
        return {"kid": row["kid"], "mac": b64(crypto.mac(row["obj_type"], self._bytes(row), body))}

    def mac_verify(self, caller: Caller, body: dict[str, Any]) -> dict[str, Any]:
        """VerifyMacRequest to VerifyResponse."""
        row = self._for(caller, body.get("key"), "MACVERIFY")
        return {"kid": row["kid"], "result": crypto.mac_verify(row["obj_type"], self._bytes(row), body)}
