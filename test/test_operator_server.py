"""The web server of the operator's page over real sockets, without ROS and without a browser."""

from __future__ import annotations

import http.client
import json
import math
import re
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from instructvla_ros.errors import SetupError
from instructvla_ros.operator_page import access, intents
from instructvla_ros.operator_page.server import ASSETS, Server
from instructvla_ros.settings import Web

TOKEN = 'a-token_of-16-plus'


@contextmanager
def serving(on_intent: Callable[[intents.Intent], None] = lambda _: None, **settings: Any) -> Iterator[Server]:
    server = Server(Web(**{'port': 0, **settings}), lambda: {'robot': 'fr3'}, on_intent)
    server.start()
    try:
        yield server
    finally:
        server.close()


def get(server: Server, path: str = '/', **headers: str) -> tuple[int, dict[str, str], str]:
    link = http.client.HTTPConnection('127.0.0.1', server.port, timeout=10)
    link.request('GET', path, headers={k.replace('_', '-'): v for k, v in headers.items()})
    answer = link.getresponse()
    out = answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode()
    link.close()
    return out


def browser(server: Server, **options: Any) -> Any:
    return connect(f'ws://127.0.0.1:{server.port}/ws', compression=None, **options)


def eventually(condition: Callable[[], Any], timeout: float = 10.0) -> Any:
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return value


def test_files_and_headers():
    with serving() as server:
        status, headers, text = get(server)
        assert status == 200 and '/page.js' in text and headers['content-type'].startswith('text/html')
        assert "default-src 'none'" in headers['content-security-policy']
        assert "frame-ancestors 'none'" in headers['content-security-policy']
        for name in re.findall(r'(?:src|href)="(/[^"]+)"', text):
            assert get(server, name)[0] == 200
        for name in ('/../server.py', '/server.py', '/assets/page.js', '/%2e%2e/server.py', '//etc/passwd'):
            assert get(server, name)[0] == 404
        assert get(server, Host='evil.org')[0] == 403
        assert 'token' not in server.url


def test_other_web_sites_are_refused():
    with serving() as server:
        for origin in ('https://evil.org', f'http://localhost:{server.port + 1}', 'null'):
            with pytest.raises(InvalidStatus) as refused:
                browser(server, origin=origin)
            assert refused.value.response.status_code == 403
        with browser(server, origin=f'http://127.0.0.1:{server.port}') as own:
            assert json.loads(own.recv(10))['t'] == 'hello'


def test_without_the_token_nothing_is_shown(tmp_path):
    file = tmp_path / 'token'
    file.write_text(TOKEN)
    heard: list[intents.Intent] = []
    with serving(heard.append, token_file=str(file)) as server:
        assert server.url.endswith(f'/?token={TOKEN}')
        cookie = f'{access.cookie_name(server.port)}='
        wrong = ('/', '/page.js', '/page.css', '/ws', '/none', '/?token=', '/?token=wrong', f'/?token={TOKEN[:-1]}')
        for path in wrong:
            status, _, text = get(server, path)
            assert status == 403 and 'script' not in text and TOKEN not in text
        assert get(server, Cookie=f'{cookie}wrong')[0] == 403
        for options in ({}, {'additional_headers': {'Cookie': f'{cookie}wrong'}}):
            with pytest.raises(InvalidStatus) as refused:
                browser(server, **options)
            assert refused.value.response.status_code == 403
        status, headers, _ = get(server, f'/?token={TOKEN}')
        assert status == 303 and headers['location'] == '/'
        given = headers['set-cookie']
        assert 'HttpOnly' in given and 'SameSite=Strict' in given
        crumb = given.split(';')[0]
        assert get(server, Cookie=crumb)[0] == 200
        with browser(server, additional_headers={'Cookie': crumb}) as own:
            own.send('{"do": "stop"}')
            eventually(lambda: heard)


def test_a_page_for_others_has_a_token_without_being_asked():
    with serving(host='0.0.0.0') as server:
        assert 'token=' in server.url
        assert get(server)[0] == 403


def test_a_busy_port_is_said():
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        with pytest.raises(SetupError, match='another port'):
            Server(Web(port=taken.getsockname()[1]), dict, lambda _: None).start()


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'websockets.asyncio.server', None)
    with pytest.raises(SetupError, match='websockets'):
        Server(Web(port=0), dict, lambda _: None)


def test_of_a_slot_only_the_newest_waits_and_the_next_goes_when_the_last_was_shown():
    with serving() as server, browser(server) as own:
        assert json.loads(own.recv(10))['robot'] == 'fr3'
        for k in range(5):
            server.latest('state', 'state', {'n': k})
            time.sleep(0.02)
        first = json.loads(own.recv(10))
        assert first['n'] == 0 and first['echo'] == 0
        with pytest.raises(TimeoutError):
            own.recv(0.2)
        own.send(json.dumps({'ack': 'state', 'at': 77.5}))
        second = json.loads(own.recv(10))
        assert second['n'] == 4 and second['echo'] == 77.5
        assert second['held'] >= 0.2  # it waited here, and says so
        server.latest('image a', 'image', {'view': 'a', 'age': math.nan}, b'\xff\xd8jpeg')
        packed = own.recv(10)
        length = struct.unpack('>I', packed[:4])[0]
        head = json.loads(packed[4 : 4 + length])
        assert head['view'] == 'a' and head['age'] is None and packed[4 + length :] == b'\xff\xd8jpeg'


def test_events_come_in_order_past_what_waits():
    with serving() as server, browser(server) as own:
        own.recv(10)
        server.latest('state', 'state', {'n': 1})
        own.recv(10)
        server.latest('state', 'state', {'n': 2})  # waits: nobody said that the first was shown
        for k in range(50):
            server.event('thought', {'n': k, 'text': '<script>alert(1)</script> "quoted" \u2028'})
        got = [json.loads(own.recv(10)) for _ in range(50)]
        assert [m['n'] for m in got] == list(range(50)) and got[0]['text'].startswith('<script>')


def test_wishes_arrive_and_nonsense_is_answered_without_ending_the_connection():
    heard: list[intents.Intent] = []

    def on_intent(wish: intents.Intent) -> None:
        heard.append(wish)
        if wish.do is intents.Do.RESET:
            raise SetupError('reset: the service is not there')

    with serving(on_intent) as server, browser(server) as own:
        own.recv(10)
        for message in ('nonsense', '{"do": "fly"}', '{"do": "reset"}'):
            own.send(message)
            answer = json.loads(own.recv(10))
            assert answer['t'] == 'note' and answer['level'] == 'error'
        own.send('{"do": "stop"}')
        eventually(lambda: [w.do for w in heard] == [intents.Do.RESET, intents.Do.STOP])
        own.send('x' * 70_000)  # too long: this connection ends, the server does not
        with pytest.raises(ConnectionClosed):
            own.recv(10)
        with browser(server) as another:
            assert json.loads(another.recv(10))['t'] == 'hello'


def test_browsers_are_counted_and_limited():
    with serving(viewers=1) as server:
        assert server.viewers == 0
        with browser(server) as own:
            own.recv(10)
            assert server.viewers == 1
            with pytest.raises(InvalidStatus) as refused:
                browser(server)
            assert refused.value.response.status_code == 503
        eventually(lambda: server.viewers == 0)
    server.event('late', {})  # nobody listens any more, nothing fails


def test_settings_say_what_they_are():
    for name, declared in Web.__dataclass_fields__.items():
        assert declared.metadata['doc'], name
    assert (ASSETS / 'page.html').is_file()
