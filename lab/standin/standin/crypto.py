# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Key material and cryptographic operations of the stand-in's security objects.

Names of algorithms, modes, operations and fields are those of the published DSM OpenAPI description. Pure: bytes and
dictionaries in, bytes and dictionaries out. What a caller got wrong is a ``BadRequest``.
"""

from __future__ import annotations

import base64
import binascii
import os
from typing import Any

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import cmac, hashes, hmac, keywrap, padding, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, utils
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

SYMMETRIC_OPS = ("ENCRYPT", "DECRYPT", "WRAPKEY", "UNWRAPKEY", "DERIVEKEY", "MACGENERATE", "MACVERIFY", "APPMANAGEABLE")
DEFAULT_OPS = {
    "AES": SYMMETRIC_OPS,
    "HMAC": ("DERIVEKEY", "MACGENERATE", "MACVERIFY", "APPMANAGEABLE"),
    "RSA": ("SIGN", "VERIFY", "ENCRYPT", "DECRYPT", "WRAPKEY", "UNWRAPKEY", "APPMANAGEABLE"),
    "EC": ("SIGN", "VERIFY", "AGREEKEY", "APPMANAGEABLE"),
    "OPAQUE": ("EXPORT", "APPMANAGEABLE"),
    "SECRET": ("EXPORT", "APPMANAGEABLE"),
}
ALL_OPS = frozenset(SYMMETRIC_OPS) | {"SIGN", "VERIFY", "EXPORT", "AGREEKEY", "HIGHVOLUME", "TRANSFORM"}
_CURVES: dict[str, Any] = {
    "NistP192": ec.SECP192R1,
    "NistP224": ec.SECP224R1,
    "NistP256": ec.SECP256R1,
    "NistP384": ec.SECP384R1,
    "NistP521": ec.SECP521R1,
    "SecP256K1": ec.SECP256K1,
}
_HASHES: dict[str, Any] = {
    "SHA1": hashes.SHA1,
    "SHA224": hashes.SHA224,
    "SHA256": hashes.SHA256,
    "SHA384": hashes.SHA384,
    "SHA512": hashes.SHA512,
    "SHA3_224": hashes.SHA3_224,
    "SHA3_256": hashes.SHA3_256,
    "SHA3_384": hashes.SHA3_384,
    "SHA3_512": hashes.SHA3_512,
}
_AES_BITS = (128, 192, 256)
_RSA_BITS = (2048, 3072, 4096)
_BLOCK = 16
_GCM_IV_BYTES = 12
_MAX_TAG_BITS = 128


class BadRequest(Exception):
    """The caller asked for something that does not exist or does not fit together."""


def b64(data: bytes) -> str:
    """Encode as the API does."""
    return base64.b64encode(data).decode()


def unb64(body: dict[str, Any], field: str, *, required: bool = False) -> bytes:
    """Return a base64 field of a request, b"" when it is absent and may be."""
    value = body.get(field)
    if value is None:
        if required:
            raise BadRequest(f"field {field} is missing")
        return b""
    if not isinstance(value, str):
        raise BadRequest(f"field {field} is not base64")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"field {field} is not base64") from error


def digest(name: Any) -> hashes.HashAlgorithm:
    """Return the hash algorithm of an API name."""
    if name not in _HASHES:
        raise BadRequest(f"unknown or unsupported digest {name!r}")
    result: hashes.HashAlgorithm = _HASHES[name]()
    return result


# -- material ------------------------------------------------------------------------------------------------------
def _size(body: dict[str, Any], allowed: tuple[int, ...], default: int) -> int:
    size = body.get("key_size", default)
    if size not in allowed:
        raise BadRequest(f"key_size {size!r} is not one of {allowed}")
    return int(size)


def _private_der(key: Any) -> bytes:
    encoding, plain = serialization.Encoding.DER, serialization.NoEncryption()
    data: bytes = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
    return data


def _public_der(key: Any) -> bytes:
    data: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return data


def generate(body: dict[str, Any]) -> dict[str, Any]:
    """Make key material as a SobjectRequest asks; returns the fields of the object that depend on it."""
    obj_type = body.get("obj_type")
    if obj_type == "AES":
        return describe("AES", os.urandom(_size(body, _AES_BITS, 256) // 8))
    if obj_type == "HMAC":
        size = body.get("key_size", 256)
        if not isinstance(size, int) or size % 8 or not 112 <= size <= 8192:
            raise BadRequest(f"key_size {size!r} is not a multiple of 8 between 112 and 8192")
        return describe("HMAC", os.urandom(size // 8))
    if obj_type == "RSA":
        return describe("RSA", _private_der(rsa.generate_private_key(65537, _size(body, _RSA_BITS, 2048))))
    if obj_type == "EC":
        curve = body.get("elliptic_curve")
        if curve == "Ed25519":
            return describe("EC", _private_der(ed25519.Ed25519PrivateKey.generate()))
        if curve not in _CURVES:
            raise BadRequest(f"unknown or unsupported elliptic_curve {curve!r}")
        return describe("EC", _private_der(ec.generate_private_key(_CURVES[curve]())))
    raise BadRequest(f"objects of type {obj_type!r} cannot be generated")


def describe(obj_type: str, value: bytes) -> dict[str, Any]:
    """Return material, size, curve, public key and check value of an object, from its raw or DER value."""
    if obj_type in ("AES", "HMAC", "OPAQUE", "SECRET"):
        fields: dict[str, Any] = {"obj_type": obj_type, "material": b64(value), "key_size": len(value) * 8}
        if obj_type == "AES":
            if len(value) * 8 not in _AES_BITS:
                raise BadRequest(f"an AES key has 128, 192 or 256 bits, not {len(value) * 8}")
            fields["kcv"] = _ecb(value, bytes(_BLOCK)).hex()[:6].upper()
        return fields
    try:
        key = serialization.load_der_private_key(value, password=None)
    except (ValueError, TypeError) as error:
        raise BadRequest("the value is not a private key in DER form") from error
    fields = {"obj_type": obj_type, "material": b64(value), "pub_key": b64(_public_der(key.public_key()))}
    if obj_type == "RSA" and isinstance(key, rsa.RSAPrivateKey):
        return dict(fields, key_size=key.key_size)
    if obj_type == "EC" and isinstance(key, ed25519.Ed25519PrivateKey):
        return dict(fields, elliptic_curve="Ed25519")
    if obj_type == "EC" and isinstance(key, ec.EllipticCurvePrivateKey):
        names = [name for name, curve in _CURVES.items() if isinstance(key.curve, curve)]
        if names:
            return dict(fields, elliptic_curve=names[0])
    raise BadRequest(f"the value is not a key of type {obj_type}")


# -- symmetric -----------------------------------------------------------------------------------------------------
def _ecb(key: bytes, data: bytes) -> bytes:
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # check value of one block, not a message
    return encryptor.update(data) + encryptor.finalize()


def _block_mode(mode: str, iv: bytes) -> Any:
    if mode == "ECB":
        return modes.ECB()
    if len(iv) != _BLOCK:
        raise BadRequest(f"mode {mode} needs an iv of 16 bytes")
    return modes.CTR(iv) if mode == "CTR" else modes.CBC(iv)


def _run(context: Any, data: bytes) -> bytes:
    try:
        result: bytes = context.update(data) + context.finalize()
    except ValueError as error:
        raise BadRequest(f"the input does not fit the cipher mode: {error}") from error
    return result


def aes_encrypt(key: bytes, body: dict[str, Any]) -> dict[str, bytes]:
    """Encrypt by an EncryptRequest; returns cipher and, by mode, iv and tag."""
    plain, mode, iv = unb64(body, "plain", required=True), body.get("mode") or "CBC", unb64(body, "iv")
    if mode == "GCM":
        tag_bits = body.get("tag_len", _MAX_TAG_BITS)
        if tag_bits not in (96, 104, 112, 120, 128):
            raise BadRequest(f"tag_len {tag_bits!r} is not one of 96, 104, 112, 120, 128")
        iv = iv or os.urandom(_GCM_IV_BYTES)
        encryptor = Cipher(algorithms.AES(key), modes.GCM(iv)).encryptor()
        encryptor.authenticate_additional_data(unb64(body, "ad"))
        cipher = encryptor.update(plain) + encryptor.finalize()
        return {"cipher": cipher, "iv": iv, "tag": encryptor.tag[: tag_bits // 8]}
    if mode == "KW":
        return {"cipher": _wrap(keywrap.aes_key_wrap, key, plain)}
    if mode == "KWP":
        return {"cipher": _wrap(keywrap.aes_key_wrap_with_padding, key, plain)}
    if mode not in ("ECB", "CBC", "CBCNOPAD", "CTR"):
        raise BadRequest(f"unknown or unsupported mode {mode!r}")
    if mode != "ECB":
        iv = iv or os.urandom(_BLOCK)
    if mode in ("ECB", "CBC"):
        padder = padding.PKCS7(_BLOCK * 8).padder()
        plain = padder.update(plain) + padder.finalize()
    result = {"cipher": _run(Cipher(algorithms.AES(key), _block_mode(mode, iv)).encryptor(), plain)}
    return dict(result, iv=iv) if mode != "ECB" else result


def _wrap(function: Any, key: bytes, data: bytes) -> bytes:
    try:
        result: bytes = function(key, data)
    except (ValueError, keywrap.InvalidUnwrap) as error:
        raise BadRequest("key wrapping: %s" % (error or "the input is not a key wrapped under this one")) from error
    return result


def aes_decrypt(key: bytes, body: dict[str, Any]) -> bytes:
    """Decrypt by a DecryptRequest."""
    cipher, mode, iv = unb64(body, "cipher", required=True), body.get("mode") or "CBC", unb64(body, "iv")
    if mode == "GCM":
        tag = unb64(body, "tag", required=True)
        if not 12 <= len(tag) <= _BLOCK or not iv:
            raise BadRequest("GCM needs an iv and a tag of 12 to 16 bytes")
        decryptor = Cipher(algorithms.AES(key), modes.GCM(iv, tag, min_tag_length=12)).decryptor()
        decryptor.authenticate_additional_data(unb64(body, "ad"))
        try:
            return decryptor.update(cipher) + decryptor.finalize()
        except InvalidTag as error:
            raise BadRequest("the tag does not match") from error
    if mode == "KW":
        return _wrap(keywrap.aes_key_unwrap, key, cipher)
    if mode == "KWP":
        return _wrap(keywrap.aes_key_unwrap_with_padding, key, cipher)
    if mode not in ("ECB", "CBC", "CBCNOPAD", "CTR"):
        raise BadRequest(f"unknown or unsupported mode {mode!r}")
    plain = _run(Cipher(algorithms.AES(key), _block_mode(mode, iv)).decryptor(), cipher)
    if mode in ("ECB", "CBC"):
        return _run(padding.PKCS7(_BLOCK * 8).unpadder(), plain)
    return plain


# -- RSA -----------------------------------------------------------------------------------------------------------
def _mgf_hash(options: Any, default: str) -> Any:
    mgf1 = ((options or {}).get("mgf") or {}).get("mgf1") or {}
    return digest(mgf1.get("hash", default))


def _rsa_encryption_padding(mode: Any) -> Any:
    # Without a mode the key's own policy decides; which that is by default is not in the description [inferred: OAEP].
    mode = mode or {"OAEP": {"mgf": {"mgf1": {"hash": "SHA256"}}}}
    if isinstance(mode, dict) and list(mode) == ["OAEP"]:
        algorithm = _mgf_hash(mode["OAEP"], "SHA256")
        return rsa_padding.OAEP(rsa_padding.MGF1(algorithm), algorithm, None)
    if isinstance(mode, dict) and list(mode) == ["PKCS1_V15"]:
        return rsa_padding.PKCS1v15()
    raise BadRequest(f"unknown or unsupported RSA encryption mode {mode!r}")


def _load(material: bytes) -> Any:
    return serialization.load_der_private_key(material, password=None)


def rsa_encrypt(material: bytes, body: dict[str, Any]) -> dict[str, bytes]:
    """Encrypt with the public half."""
    scheme = _rsa_encryption_padding(body.get("mode"))
    try:
        return {"cipher": _load(material).public_key().encrypt(unb64(body, "plain", required=True), scheme)}
    except ValueError as error:
        raise BadRequest(f"RSA encryption: {error}") from error


def rsa_decrypt(material: bytes, body: dict[str, Any]) -> bytes:
    """Decrypt with the private half."""
    scheme = _rsa_encryption_padding(body.get("mode"))
    try:
        plain: bytes = _load(material).decrypt(unb64(body, "cipher", required=True), scheme)
    except ValueError as error:
        raise BadRequest("the cipher was not made for this key and mode") from error
    return plain


# -- signatures ----------------------------------------------------------------------------------------------------
def _message(body: dict[str, Any]) -> tuple[bytes, Any]:
    """Return what is signed and its algorithm: ``data`` to be hashed, or a ready ``hash``."""
    algorithm = digest(body.get("hash_alg", "SHA256"))
    ready, data = unb64(body, "hash"), unb64(body, "data")
    if bool(body.get("hash") is not None) == bool(body.get("data") is not None):
        raise BadRequest("exactly one of hash and data is needed")
    if body.get("hash") is not None:
        if len(ready) != algorithm.digest_size:
            raise BadRequest(f"the hash has {len(ready)} bytes, not {algorithm.digest_size} as {algorithm.name}")
        return ready, utils.Prehashed(algorithm)
    return data, algorithm


def _rsa_signature_padding(mode: Any, algorithm: Any) -> Any:
    mode = mode or {"PKCS1_V15": {}}
    if isinstance(mode, dict) and list(mode) == ["PKCS1_V15"]:
        return rsa_padding.PKCS1v15()
    if isinstance(mode, dict) and list(mode) == ["PSS"]:
        chosen = _mgf_hash(mode["PSS"], "SHA256")
        return rsa_padding.PSS(rsa_padding.MGF1(chosen), algorithm.digest_size)
    raise BadRequest(f"unknown or unsupported signature mode {mode!r}")


def sign(obj_type: str, material: bytes, body: dict[str, Any]) -> bytes:
    """Sign by a SignRequest; EC signatures are DER, as the API gives them."""
    key = _load(material) if obj_type in ("RSA", "EC") else None
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(unb64(body, "data", required=True))
    if key is None:
        raise BadRequest(f"keys of type {obj_type} do not sign")
    message, algorithm = _message(body)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(message, ec.ECDSA(algorithm))
    size = digest(body.get("hash_alg", "SHA256"))
    signature: bytes = key.sign(message, _rsa_signature_padding(body.get("mode"), size), algorithm)
    return signature


def verify(obj_type: str, material: bytes, body: dict[str, Any]) -> bool:
    """Verify by a VerifyRequest."""
    if obj_type not in ("RSA", "EC"):
        raise BadRequest(f"keys of type {obj_type} do not verify")
    public, signature = _load(material).public_key(), unb64(body, "signature", required=True)
    try:
        if isinstance(public, ed25519.Ed25519PublicKey):
            public.verify(signature, unb64(body, "data", required=True))
            return True
        message, algorithm = _message(body)
        if isinstance(public, ec.EllipticCurvePublicKey):
            public.verify(signature, message, ec.ECDSA(algorithm))
        else:
            size = digest(body.get("hash_alg", "SHA256"))
            public.verify(signature, message, _rsa_signature_padding(body.get("mode"), size), algorithm)
    except InvalidSignature:
        return False
    return True


# -- MAC -----------------------------------------------------------------------------------------------------------
def _mac_context(obj_type: str, material: bytes, body: dict[str, Any]) -> Any:
    if obj_type == "AES":
        return cmac.CMAC(algorithms.AES(material))
    if obj_type == "HMAC":
        return hmac.HMAC(material, digest(body.get("alg", "SHA256")))
    raise BadRequest(f"keys of type {obj_type} make no MAC")


def mac(obj_type: str, material: bytes, body: dict[str, Any]) -> bytes:
    """Return the HMAC (key type HMAC) or CMAC (key type AES) of ``data``."""
    context = _mac_context(obj_type, material, body)
    context.update(unb64(body, "data", required=True))
    result: bytes = context.finalize()
    return result


def mac_verify(obj_type: str, material: bytes, body: dict[str, Any]) -> bool:
    """Verify ``mac`` over ``data``."""
    context = _mac_context(obj_type, material, body)
    context.update(unb64(body, "data", required=True))
    # Older editions of the API call the field "digest".
    claimed = unb64(body, "mac", required="digest" not in body) or unb64(body, "digest")
    try:
        context.verify(claimed)
    except InvalidSignature:
        return False
    return True
