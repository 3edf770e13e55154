"""The web server of the operator's page: pages and WebSockets on one port, on a thread of its own; no ROS.

Three kinds of messages go to a browser. Events (a sentence, an answer, a notice) go at once and in order. Of each slot
(the state, each picture) only the newest waits, and the next goes when the browser has shown the last: a slow browser
gets fewer, never older ones. Each message says how long it waited here (``held``) and the newest time of the browser's
own clock that had arrived before it left (``echo``): from these the page knows a bound of its age without equal clocks.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import InstructVLAError, SetupError
from ..settings import Web
from . import access, intents

ASSETS = Path(__file__).resolve().parent / 'assets'
_FILES = {
    '/': ('page.html', 'text/html; charset=utf-8'),
    '/page.css': ('page.css', 'text/css; charset=utf-8'),
    **{
        f'/{n}.js': (f'{n}.js', 'text/javascript; charset=utf-8')
        for n in ('page', 'link', 'scene', 'solids', 'timeline', 'marks')
    },
}
_HEADERS = {
    # Nothing but our own files is ever run or loaded, and nobody frames the page to steal clicks.
    'Content-Security-Policy': "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'no-referrer',
    'Cache-Control': 'no-store',
}
_MOST_EVENTS = 200  # waiting for one browser
_LOST = 3.0  # silence after which a browser no longer counts as there [s]


def plain(value: Any) -> Any:
    """Value as JSON can say it: numbers that are not finite become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


@dataclass
class _Message:
    head: str  # JSON object without its closing brace
    body: bytes = b''
    made: float = field(default_factory=time.monotonic)

    def wire(self, echo: float) -> str | bytes:
        """Text, or with a body: length of the head as four bytes, head, body."""
        held = time.monotonic() - self.made
        text = f'{self.head}, "held": {held:.4f}, "echo": {echo:.2f}}}'
        if not self.body:
            return text
        head = text.encode()
        return struct.pack('>I', len(head)) + head + self.body


def _message(kind: str, content: Mapping[str, Any], body: bytes = b'') -> _Message:
    text = json.dumps({'t': kind, **plain(content)}, allow_nan=False, separators=(',', ':'))
    return _Message(text[:-1], body)


class _Viewer:
    """One browser."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.wake = asyncio.Event()
        self.events: deque[_Message] = deque(maxlen=_MOST_EVENTS)
        self.slots: dict[str, _Message] = {}
        self.unseen: set[str] = set()
        self.echo = 0.0
        self.heard = time.monotonic()

    async def send(self) -> None:
        """Send what there is, until the connection ends."""
        while True:
            await self.wake.wait()
            self.wake.clear()
            while self.events:
                await self.socket.send(self.events.popleft().wire(self.echo))
            for name in [n for n in self.slots if n not in self.unseen]:
                self.unseen.add(name)
                await self.socket.send(self.slots.pop(name).wire(self.echo))


class Server:
    """Serves the page. Every method may be called from any thread; none of them blocks for a browser.

    Args:
        web: settings.
        greet: content of the first message of each browser.
        on_intent: called with each wish, on the server's thread; must return at once. What it raises of this
            package's errors is shown on the page.

    Raises:
        ConfigError, SetupError: websockets is not installed, or the token file is not usable.
    """

    def __init__(
        self, web: Web, greet: Callable[[], Mapping[str, Any]], on_intent: Callable[[intents.Intent], None]
    ) -> None:
        try:
            import websockets.asyncio.server  # noqa: F401
        except ImportError:
            raise SetupError(
                'the operator page needs the Python package websockets (13 or newer): pip install "websockets>=13"'
            ) from None
        self._web, self._greet, self._on_intent = web, greet, on_intent
        self._access = access.Access(web.host, access.read_token(web.token_file))
        self._viewers: set[_Viewer] = set()
        self._loop = asyncio.new_event_loop()
        self._stop: asyncio.Event | None = None
        self._port = 0
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._ready = threading.Event()

    @property
    def port(self) -> int:
        """TCP port in use."""
        return self._port

    @property
    def url(self) -> str:
        """Address for a browser, with the token."""
        host = self._web.host
        if host in ('0.0.0.0', '::', ''):
            host = socket.gethostname()
        host = f'[{host}]' if ':' in host else host
        secret = f'?token={self._access.token}' if self._access.token else ''
        return f'http://{host}:{self._port}/{secret}'

    @property
    def viewers(self) -> int:
        """Browsers that were heard lately."""
        now = time.monotonic()
        return sum(now - v.heard < _LOST for v in list(self._viewers))

    def start(self) -> None:
        """Listen.

        Raises:
            SetupError: the address is taken or not of this machine.
        """
        self._thread = threading.Thread(target=self._run, name='web', daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self._thread.join()
            raise SetupError(
                f'the operator page cannot listen on {self._web.host}:{self._web.port}: {self._failure}. '
                'Choose another port, or 0 for any free one'
            )

    def close(self) -> None:
        """End every connection and the thread."""
        if self._thread is not None and self._thread.is_alive():
            self._call(lambda: self._stop.set() if self._stop is not None else None)
            self._thread.join(timeout=3.0)

    def event(self, kind: str, content: Mapping[str, Any]) -> None:
        """Send to every browser, at once and in order."""
        message = _message(kind, content)
        self._call(lambda: self._offer(message, ''))

    def latest(self, slot: str, kind: str, content: Mapping[str, Any], body: bytes = b'') -> None:
        """Send to every browser as soon as it has shown the last of this slot; replaces what still waits."""
        message = _message(kind, content, body)
        self._call(lambda: self._offer(message, slot))

    # -- the server's thread --------------------------------------------------------------------------------------

    def _call(self, work: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(work)
        except RuntimeError:
            pass  # it was closed meanwhile: nobody is left to be told

    def _offer(self, message: _Message, slot: str) -> None:
        for viewer in self._viewers:
            if slot:
                viewer.slots[slot] = message
            else:
                viewer.events.append(message)
            viewer.wake.set()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except (OSError, OverflowError) as err:
            self._failure = err
        finally:
            self._ready.set()
            self._loop.close()

    async def _serve(self) -> None:
        from websockets.asyncio.server import serve

        # Port scanners and preconnecting browsers are no errors of ours.
        quiet = logging.getLogger('instructvla_ros.operator_page')
        quiet.setLevel(logging.CRITICAL)
        self._stop = asyncio.Event()
        async with serve(
            self._on_viewer,
            self._web.host,
            self._web.port,
            process_request=self._on_request,
            compression=None,
            max_size=intents.MAX_BYTES,
            open_timeout=5.0,
            ping_interval=5.0,
            ping_timeout=10.0,
            close_timeout=1.0,
            logger=quiet,
        ) as server:
            self._port = next(iter(server.sockets)).getsockname()[1]
            self._ready.set()
            await self._stop.wait()

    def _on_request(self, connection: Any, request: Any) -> Any:
        """Answer of a plain request; None lets a WebSocket begin."""
        hosts, origins = request.headers.get_all('Host'), request.headers.get_all('Origin')
        if len(hosts) != 1 or len(origins) > 1:
            return _response(HTTPStatus.BAD_REQUEST, 'one Host header is needed')
        problem = self._access.refusal(hosts[0], origins[0] if origins else None)
        if problem:
            return _response(HTTPStatus.FORBIDDEN, problem)
        path = urlsplit(request.path).path
        name = access.cookie_name(self._port)
        given = access.token_in_query(request.path)
        if given and self._access.token and self._access.admits(given) and path == '/':
            # The secret moves from the address, which browsers remember and show, into a cookie of this page only.
            cookie = f'{name}={self._access.token}; HttpOnly; SameSite=Strict; Path=/'
            return _response(HTTPStatus.SEE_OTHER, '', {'Location': '/', 'Set-Cookie': cookie})
        crumbs = '; '.join(request.headers.get_all('Cookie'))
        if not self._access.admits(given or access.token_in_cookie(crumbs, name)):
            return _response(HTTPStatus.FORBIDDEN, 'a token is needed: open the address that web_node printed')
        if path == '/ws':
            if len(self._viewers) >= self._web.viewers:
                return _response(HTTPStatus.SERVICE_UNAVAILABLE, f'{self._web.viewers} browsers look already')
            return None
        if path not in _FILES:
            return _response(HTTPStatus.NOT_FOUND, 'there is no such page')
        file, kind = _FILES[path]
        return _response(HTTPStatus.OK, (ASSETS / file).read_text(encoding='utf-8'), {'Content-Type': kind})

    async def _on_viewer(self, connection: Any) -> None:
        from websockets.exceptions import ConnectionClosed

        viewer = _Viewer(connection)
        viewer.events.append(_message('hello', self._greet()))
        viewer.wake.set()
        self._viewers.add(viewer)
        sender = asyncio.create_task(viewer.send())
        try:
            async for said in connection:
                viewer.heard = time.monotonic()
                self._hear(viewer, said)
        except ConnectionClosed:
            pass  # the ordinary end of a browser
        finally:
            self._viewers.discard(viewer)
            sender.cancel()
            try:
                await sender
            except (asyncio.CancelledError, ConnectionClosed):
                pass

    def _hear(self, viewer: _Viewer, said: str | bytes) -> None:
        try:
            wish = intents.parse(said)
            if isinstance(wish, intents.Ack):
                viewer.echo = max(viewer.echo, wish.at)
                viewer.unseen.discard(wish.slot)
                viewer.wake.set()
            else:
                self._on_intent(wish)
        except InstructVLAError as err:
            viewer.events.append(_message('note', {'level': 'error', 'about': 'page', 'text': str(err)}))
            viewer.wake.set()


def _response(status: HTTPStatus, text: str, headers: Mapping[str, str] | None = None) -> Any:
    from websockets.datastructures import Headers
    from websockets.http11 import Response

    body = text.encode()
    fields = {'Content-Type': 'text/plain; charset=utf-8', **_HEADERS, **(headers or {})}
    fields |= {'Content-Length': str(len(body)), 'Connection': 'close'}
    return Response(int(status), status.phrase, Headers(fields), body)
