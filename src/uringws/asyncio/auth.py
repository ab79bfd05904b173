"""`basic_auth`: HTTP Basic authentication (RFC 7617) as a `process_request`."""

from __future__ import annotations

import binascii
import hmac
import inspect
from base64 import b64decode
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from uringws.asyncio.classes import Request, Response
    from uringws.asyncio.connection import ServerConnection

    Check = Callable[[str, str], Awaitable[bool] | bool]

__all__ = ["basic_auth"]


def basic_auth(
    realm: str = "",
    credentials: tuple[str, str] | Iterable[tuple[str, str]] | None = None,
    check_credentials: Check | None = None,
) -> Callable[[ServerConnection, Request], Awaitable[Response | None]]:
    """Return a `process_request` that accepts requests with the right user name and password; others get 401.

    Give either `credentials`, one (user name, password) or several, or `check_credentials`, a function or coroutine
    function of both that returns whether they are right. The user name becomes `connection.username`. Raises ValueError
    for none or both, TypeError for other credentials.
    """
    if (credentials is None) == (check_credentials is None):
        raise ValueError("provide either credentials or check_credentials")
    check = check_credentials if check_credentials is not None else _checker(credentials)
    challenge = "Basic realm=" + _quoted(realm) + ', charset="UTF-8"'

    async def process_request(connection: ServerConnection, request: Request) -> Response | None:
        """Let the request in, or return 401."""
        given = _parse_basic(request.headers.get_all("Authorization"))
        if isinstance(given, str):
            return _unauthorized(connection, challenge, given)
        is_right = check(*given)
        if inspect.isawaitable(is_right):
            is_right = await is_right
        if not is_right:
            return _unauthorized(connection, challenge, "Invalid credentials\n")
        connection.username = given[0]
        return None

    return process_request


def _unauthorized(connection: ServerConnection, challenge: str, text: str) -> Response:
    response = connection.respond(401, text)
    response.headers["WWW-Authenticate"] = challenge
    return response


def _is_pair(pair: Any) -> bool:
    try:
        username, password = pair
    except (TypeError, ValueError):
        return False
    return isinstance(username, str) and isinstance(password, str)


def _checker(credentials: Any) -> Check:
    """Return the function that compares with fixed credentials, in a time that does not depend on how much is right."""
    pairs = [credentials] if _is_pair(credentials) else credentials
    if not isinstance(pairs, Iterable):
        raise TypeError(f"invalid credentials argument: {credentials}")
    pairs = list(pairs)
    if not all(map(_is_pair, pairs)):
        raise TypeError(f"invalid credentials argument: {credentials}")
    passwords = dict(cast("list[tuple[str, str]]", pairs))

    def check(username: str, password: str) -> bool:
        expected = passwords.get(username)
        if expected is None:
            return False
        return hmac.compare_digest(expected.encode(errors="surrogateescape"), password.encode(errors="surrogateescape"))

    return check


def _parse_basic(values: list[str]) -> tuple[str, str] | str:
    """Return the user name and password of an Authorization header, or the text of the refusal."""
    if not values:
        return "Missing credentials\n"
    scheme, _, encoded = values[0].strip().partition(" ")
    if len(values) > 1 or scheme.lower() != "basic":
        return "Unsupported credentials\n"
    try:
        username, colon, password = b64decode(encoded.strip().encode("ascii"), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeError):
        return "Unsupported credentials\n"
    return (username, password) if colon else "Unsupported credentials\n"


def _quoted(text: str) -> str:
    """Return a quoted string, RFC 9110 5.6.4."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
