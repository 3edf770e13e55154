"""Headless Chromium over the DevTools protocol, for tests and measurements of the operator's page."""

from __future__ import annotations

import base64
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = next((p for p in map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome')) if p), '')
_FLAGS = (
    '--headless=new', '--no-sandbox', '--hide-scrollbars', '--no-first-run', '--disable-background-networking',
    '--disable-dev-shm-usage', '--disable-extensions', '--disable-component-update', '--mute-audio',
    '--disable-gpu', '--enable-unsafe-swiftshader',
    '--no-default-browser-check', '--password-store=basic', '--remote-debugging-port=0',
)  # fmt: skip


def _die_with(parent: int) -> Callable[[], None] | None:
    if not sys.platform.startswith('linux'):
        return None
    libc = ctypes.CDLL(None)

    def bind() -> None:
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a test that is killed leaves no browser behind
        if os.getppid() != parent:
            os._exit(1)

    return bind


class Browser:
    """One page in a browser of its own. Use as a context manager."""

    def __init__(self, url: str, width: int = 1440, height: int = 900) -> None:
        self._url, self._size = url, (width, height)
        self._count = 0
        self.errors: list[str] = []

    def __enter__(self) -> Browser:
        self._end = ExitStack()
        self._folder = tempfile.mkdtemp(prefix='chromium-')
        self._process = subprocess.Popen(
            [CHROMIUM, *_FLAGS, f'--user-data-dir={self._folder}', f'--window-size={self._size[0]},{self._size[1]}',
             'about:blank'],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            preexec_fn=_die_with(os.getpid()),
        )  # fmt: skip
        try:
            from websockets.sync.client import connect

            port = self._port()
            with urllib.request.urlopen(f'http://127.0.0.1:{port}/json/list', timeout=10) as answer:
                pages = [p for p in json.load(answer) if p['type'] == 'page']
            address = pages[0]['webSocketDebuggerUrl']
            self._socket = self._end.enter_context(connect(address, max_size=2**27, compression=None))
            self.call('Runtime.enable')
            self.call('Log.enable')
            self.call('Page.enable')
            width, height = self._size
            self.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1,
                      mobile=False)  # fmt: skip
            self.open(self._url)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.close()
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait(timeout=10)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _port(self) -> int:
        file, deadline = Path(self._folder) / 'DevToolsActivePort', time.monotonic() + 60.0
        while time.monotonic() < deadline:
            if file.is_file() and file.read_text().strip():
                return int(file.read_text().split()[0])
            if self._process.poll() is not None:
                raise RuntimeError(f'{CHROMIUM} ended with {self._process.returncode}')
            time.sleep(0.05)
        raise TimeoutError(f'{CHROMIUM} did not open its debugging port')

    def call(self, method: str, **params: Any) -> Any:
        """Result of a DevTools command."""
        self._count += 1
        number = self._count
        self._socket.send(json.dumps({'id': number, 'method': method, 'params': params}))
        while True:
            message = json.loads(self._socket.recv(timeout=60.0))
            if message.get('id') == number:
                if 'error' in message:
                    raise RuntimeError(f'{method}: {message["error"]}')
                return message['result']
            if message.get('method') == 'Runtime.exceptionThrown':
                details = message['params']['exceptionDetails']
                self.errors.append(str(details.get('exception', {}).get('description', details['text'])))
            if message.get('method') == 'Log.entryAdded' and message['params']['entry']['level'] == 'error':
                entry = message['params']['entry']
                self.errors.append(f'{entry["text"]} {entry.get("url", "")}')

    def open(self, url: str) -> None:
        """Go to an address."""
        self.call('Page.navigate', url=url)

    def js(self, expression: str) -> Any:
        """Value of an expression in the page; promises are waited for."""
        result = self.call('Runtime.evaluate', expression=expression, returnByValue=True, awaitPromise=True)
        if 'exceptionDetails' in result:
            raise RuntimeError(f'{expression}: {result["exceptionDetails"]}')
        return result['result'].get('value')

    def text(self, selector: str) -> str:
        """Text of the first element that fits."""
        return str(self.js(f'(document.querySelector({json.dumps(selector)}) || {{}}).textContent || ""'))

    def until(self, expression: str, timeout: float = 90.0, also: Callable[[], None] = lambda: None) -> Any:
        """Value of an expression as soon as it is true; one that fails, as before the page is there, is not."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            value = self.js(f'(() => {{ try {{ return {expression}; }} catch {{ return null; }} }})()')
            if value:
                return value
            also()
            time.sleep(0.03)
        raise AssertionError(f'not within {timeout} s: {expression}\npage: {self.js("document.body.innerText")}')

    def centre(self, selector: str) -> tuple[float, float]:
        """Where an element is [px]."""
        box = self.js(
            f'(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect();'
            ' return [b.x + b.width / 2, b.y + b.height / 2]; })()'
        )
        return float(box[0]), float(box[1])

    def press(self, selector: str) -> None:
        """Press the left button over an element, as a person would."""
        x, y = self.centre(selector)
        for kind in ('mouseMoved', 'mousePressed', 'mouseReleased'):
            extra = {} if kind == 'mouseMoved' else {'button': 'left', 'clickCount': 1}
            self.call('Input.dispatchMouseEvent', type=kind, x=x, y=y, **extra)

    def type(self, selector: str, text: str) -> None:
        """Click into a field and type."""
        self.js(f'document.querySelector({json.dumps(selector)}).value = ""')
        self.press(selector)
        self.call('Input.insertText', text=text)

    def key(self, key: str, code: int) -> None:
        """Press and release a key."""
        for kind in ('keyDown', 'keyUp'):
            self.call('Input.dispatchKeyEvent', type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def screenshot(self, file: Path) -> Path:
        """PNG of what is seen."""
        file.write_bytes(base64.b64decode(self.call('Page.captureScreenshot', format='png')['data']))
        return file
