"""Who we are to the store, and what the login says of itself. Nothing here shows a secret."""

import base64
import contextlib
import datetime as dt
import getpass
import json
import os

from synapse_assets.datastore.credentials import Emulator, SasToken
from synapse_assets.datastore.tokens import bearer_token
from synapse_assets.doctor.check import Finding, Subject, failed, ok, warning

_SILENT = "a token was given; it does not say to whom"
_ENDING_SOON = dt.timedelta(hours=1)
_SAS_RIGHTS = {"r": "read", "w": "write", "d": "delete", "l": "list", "c": "create"}


def check_login(subject: Subject) -> Finding:
    """Look whether the credential is complete, and no library would take another one."""
    datastore = subject.datastore
    datastore.credential.adlfs_options(datastore.location)
    kind = datastore.credential.kind
    return ok(f"credential of kind '{kind}', and no other login in the environment")


def check_identity(subject: Subject) -> Finding:
    """Say who this is to the store."""
    datastore = subject.datastore
    if datastore.location.kind == "hdfs":
        user = os.environ.get("HADOOP_USER_NAME")
        if user:
            return ok(f"user '{user}' (HADOOP_USER_NAME)")
        return ok(f"user '{getpass.getuser()}' of this machine; HADOOP_USER_NAME names another")
    credential = datastore.credential
    cloud = datastore.location.cloud
    token_credential = credential.token_credential(cloud)
    if token_credential is not None:
        return _token(bearer_token(token_credential, cloud))
    if isinstance(credential, SasToken):
        return _sas(credential)
    if isinstance(credential, Emulator):
        return ok("the emulator's account, with the key that Microsoft publishes")
    return ok("the account's key, which may do everything")


def _token(token: str) -> Finding:
    """Return who a token of Microsoft Entra is for. It is read only, and not verified."""
    payload = token.split(".")[1] if token.count(".") == 2 else ""
    claims: object = None
    with contextlib.suppress(ValueError):
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    if not isinstance(claims, dict):
        return ok(_SILENT)
    user = claims.get("upn") or claims.get("preferred_username") or claims.get("unique_name")
    who = {
        "user": user,
        "application": claims.get("appid") or claims.get("azp"),
        "object": claims.get("oid"),
        "tenant": claims.get("tid"),
    }
    found = ", ".join(f"{name} {value}" for name, value in who.items() if value) or _SILENT
    if claims.get("exp") is None:
        return ok(found)
    end = dt.datetime.fromtimestamp(float(claims["exp"]), dt.timezone.utc)
    found = f"{found}; token until {end:%Y-%m-%d %H:%M} UTC"
    if end <= dt.datetime.now(dt.timezone.utc):
        return failed(f"{found}, which is over", "Log in again, and look at this machine's clock.")
    return ok(found)


def _sas(credential: SasToken) -> Finding:
    """Return what a SAS allows, as far as it says so itself."""
    fields, end = credential.fields, credential.expiry
    until = f"until {fields['se']}" if "se" in fields else "with no end of its own"
    if "sp" not in fields:
        return ok(f"SAS by the policy '{fields.get('si', '?')}', {until}")
    found = f"SAS with the rights '{fields['sp']}', {until}"
    missing = [name for letter, name in _SAS_RIGHTS.items() if letter not in fields["sp"]]
    if missing:
        return warning(
            f"{found}: none to {', '.join(missing)}",
            f"Make a SAS with the rights to {', '.join(_SAS_RIGHTS.values())}.",
        )
    if end is not None and end - dt.datetime.now(dt.timezone.utc) < _ENDING_SOON:
        return warning(f"{found}, which is soon", "Make one that outlives the longest run.")
    return ok(found)
