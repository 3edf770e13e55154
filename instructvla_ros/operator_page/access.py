"""Who may see the operator's page and use its buttons: token, origin and host of a request; no network in here.

A page on loopback is still reachable by every web site the operator visits: such a site can open a WebSocket to
127.0.0.1 and press the buttons. So the Origin and the Host of each request are checked, with and without a token
(RFC 6455 section 10.2; the Host check stops DNS rebinding).
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from ..errors import ConfigError, SetupError

SHORTEST_TOKEN = 16  # characters


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address or host name."""
    if host == 'localhost':
        return True
    try:
        return ipaddress.ip_address(host.strip('[]')).is_loopback
    except ValueError:
        return False


def read_token(file: str) -> str:
    """Token in the first line of a file; '' for no file.

    Raises:
        SetupError: the file cannot be read. ConfigError: the token is short or has characters an address cannot carry.
    """
    if not file:
        return ''
    path = Path(file).expanduser()
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise SetupError(f'cannot read the token of the operator page from {path}: {err}') from None
    token = lines[0].strip() if lines else ''
    if len(token) < SHORTEST_TOKEN or not all(c.isascii() and (c.isalnum() or c in '-_') for c in token):
        raise ConfigError(
            f'the token in {path} needs at least {SHORTEST_TOKEN} characters of A-Z a-z 0-9 - _; make one with: '
            'python3 -c "import secrets; print(secrets.token_urlsafe(24))"'
        )
    return token


class Access:
    """Decides about requests.

    Args:
        host: address the page listens on. token: secret; '' for none, which only loopback may have: elsewhere one is
            made here.
    """

    def __init__(self, host: str, token: str = '') -> None:
        self.loopback = is_loopback(host)
        self.token = token or ('' if self.loopback else secrets.token_urlsafe(24))

    def refusal(self, host: str, origin: str | None) -> str:
        """Why a request with these headers is refused, '' when it is not.

        Args:
            host: header Host. origin: header Origin; browsers send it with every WebSocket, other programs need not.
        """
        name = _name(host)
        if self.loopback and not is_loopback(name):
            return f'this page is for this machine only; open it as localhost, not as {name or "an unnamed host"}'
        if origin is not None:
            parts = urlsplit(origin)
            if parts.scheme not in ('http', 'https') or parts.netloc.lower() != host.lower():
                return 'another web site must not use this page'
        return ''

    def admits(self, given: str) -> bool:
        """Whether a token is right; takes the same time for every wrong one."""
        return not self.token or hmac.compare_digest(given.encode('utf-8', 'replace'), self.token.encode())


def cookie_name(port: int) -> str:
    """Cookies do not know ports: two pages on one machine need two names."""
    return f'instructvla_{port}'


def token_in_query(path: str) -> str:
    """Value of ``token`` in the query of a request path, '' without one."""
    return parse_qs(urlsplit(path).query).get('token', [''])[0]


def token_in_cookie(header: str, name: str) -> str:
    """Value of a cookie, '' without it."""
    try:
        found = SimpleCookie(header).get(name)
    except CookieError:
        return ''
    return found.value if found is not None else ''


def _name(host: str) -> str:
    try:
        return (urlsplit(f'//{host}').hostname or '').lower()
    except ValueError:
        return ''
