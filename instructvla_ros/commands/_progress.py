"""What a person sees while episodes run: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, TextIO

_STATES = {
    'WAITING_INPUT': 'waiting for cameras',
    'THINKING': 'thinking',
    'ACTING': 'acting',
    'HOLDING': 'holding',
}


class Progress:
    """Shows the events of a session. On a terminal: sentence, bar, time and safety counts, updated in place.

    Args:
        quiet: show nothing. stream: where to; standard error keeps standard output free for results.
    """

    def __init__(self, quiet: bool = False, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._live: Any = None
        self._console: Any = None
        self._said = ''
        self._started = time.monotonic()

    def __enter__(self) -> Progress:
        if self._quiet:
            return self
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=self._stream, highlight=False)
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=10, transient=True)
            self._live.__enter__()
            self._show('starting the graph')
        else:
            self._line('starting the graph')
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pause()

    def pause(self) -> None:
        """Remove the live display; lines can be printed again."""
        if self._live is not None:
            self._live.__exit__(None, None, None)
            self._live = None

    def note(self, text: str) -> None:
        """One line that stays."""
        if not self._quiet and self._console is not None:
            self._line(text)

    def pace(self, speed: float) -> None:
        """Tell that the simulator is slower than the clock, if it is."""
        if speed != 1.0:
            self.note(f'in slow motion: {speed:g} simulated seconds per second (--speed)')

    def update(self, event: dict[str, Any]) -> None:
        """Show one event of :meth:`Session.events`."""
        if self._quiet or self._console is None:
            return
        kind = event.get('event', '')
        if kind == 'waiting':
            text = 'waiting for ' + ', '.join(event['silent'][:5]) + (' ...' if len(event['silent']) > 5 else '')
            self._show(text) if self._live is not None else self._line(text)
        elif kind == 'ready':
            self._line(
                f'[green]\N{CHECK MARK}[/] graph is up, {time.monotonic() - self._started:.1f} s after the start'
            )
        elif kind == 'episode':
            self._said = ''
            count = f'[{event["index"] + 1}/{event["of"]}] ' if event['of'] > 1 else ''
            self._line(
                f'[bold]{_safe(count)}\u201c{_safe(event["instruction"])}\u201d[/]  '
                f'[dim]{event["task"]}, seed {event["seed"]}[/]'
            )
        elif kind == 'progress':
            self._progress(event)
        elif kind == 'result':
            self._result(event)

    def _progress(self, event: dict[str, Any]) -> None:
        said = event.get('sentence') or ''
        if said and said != self._said:
            self._said = said
            self._line(f'[dim]{event["elapsed"]:6.1f} s[/]  [magenta]{_safe(said)}[/]')
        if self._live is None:
            return
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        row = Table.grid(padding=(0, 2))
        verdicts = ', '.join(f'{rule} {n}' for rule, n in sorted(event['verdicts'].items(), key=lambda kv: -kv[1])[:3])
        row.add_row(
            f'{event["elapsed"]:5.1f} s',
            ProgressBar(total=1.0, completed=event.get('progress') or 0.0, width=30),
            f'{100 * (event.get("progress") or 0.0):3.0f} %',
            _STATES.get(event['state'], event['state'].lower()),
            f'[dim]{event["mode"].lower()}[/]',
            f'[yellow]safety: {verdicts}[/]' if verdicts else '',
        )
        self._live.update(row)

    def _result(self, event: dict[str, Any]) -> None:
        if 'drill' in event:
            rest = event['drill']['rest']
            done = f'at rest after {rest:.2f} s' if rest is not None else '[red]the arm did not come to rest[/]'
            self._line(f'[yellow]stopped[/] in the middle, as a drill: {done}')
        elif event['success']:
            when = event.get('success_after')
            self._line('[green]\N{CHECK MARK} solved[/]' + (f' after {when:.1f} s' if when is not None else ''))
        else:
            self._line(f'[red]\N{BALLOT X} not solved[/] ({event["outcome"]}: {_safe(event["reason"])})')

    def _line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def _show(self, text: str) -> None:
        from rich.spinner import Spinner

        self._live.update(Spinner('dots', text=text))


def _safe(text: str) -> str:
    from rich.markup import escape

    return escape(text)
