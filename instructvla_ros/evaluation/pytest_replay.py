"""pytest plugin: ``pytest --bag DIR --checkpoint C`` turns recordings into tests of a deployment.

Installed with the package, silent without recordings. With them, every recording gives one test per limit of the limits
file, and any test of your own may ask for the fixture ``replayed``: it runs once per recording and gets the
:class:`~instructvla_ros.evaluation.replay_session.Outcome`.

    def test_it_never_touches_the_table(replayed):
        assert not [v for v in replayed.metrics['safety'] if v['rule'] == 'table']

The options are ``--replay-bag``, ``--replay-checkpoint``, ...; ``--bag`` and ``--checkpoint`` are short for two of them
and exist only in a run that uses ``--bag`` on its command line: they are names that other people's tests have too.
Nothing of the package is imported before a recording is replayed, so that other test runs stay as fast as they were.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

GROUP = 'instructvla replay'
_OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ('--replay-bag', {'action': 'append', 'default': [], 'metavar': 'DIR', 'help': 'a recording, or a folder of them'}),
    ('--replay-checkpoint', {'default': '', 'metavar': 'C', 'help': 'run directory or hub id'}),
    ('--replay-policy', {'default': '', 'help': 'instructvla (default), hold, expert or recorded'}),
    ('--replay-limits', {'default': 'replay.yaml', 'metavar': 'FILE', 'help': 'YAML with limits'}),
    ('--replay-embodiment', {'default': 'franka.yaml', 'metavar': 'FILE', 'help': 'robot'}),
    ('--replay-instruction', {'default': '', 'metavar': 'TEXT', 'help': 'instead of the recorded instructions'}),
)
_SHORT = {'--bag': '--replay-bag', '--checkpoint': '--replay-checkpoint'}
_HINT = 'give recordings with --bag DIR'


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare the options; a short name that another plugin has taken is left to that plugin."""
    group = parser.getgroup(GROUP)
    for name, about in _OPTIONS:
        group.addoption(name, dest=_dest(name), **about)
    config = pluginmanager.get_plugin('pytestconfig')
    given = {str(a).partition('=')[0] for a in config.invocation_params.args} if config is not None else set()
    for short, name in _SHORT.items():
        if '--bag' in given and short in given:
            with contextlib.suppress(argparse.ArgumentError, ValueError):
                group.addoption(short, dest=_dest(name), **dict(_OPTIONS)[name])


def pytest_configure(config: pytest.Config) -> None:
    """Make the store of finished replays."""
    config.stash[_STORE] = _Store(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for ``replayed`` once per recording; without recordings it is skipped."""
    if 'replayed' in metafunc.fixturenames and not _has_own(metafunc):
        places = metafunc.config.stash[_STORE].places
        values: list[Any] = [pytest.param(p, id=p.name) for p in places]
        if not values:
            values = [pytest.param(None, marks=pytest.mark.skip(reason=_HINT), id='no-bag')]
        metafunc.parametrize('replayed', values, indirect=True, scope='session')


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the tests of the limits file."""
    store = config.stash[_STORE]
    for place in store.places:
        items.extend(_Recording.from_parent(session, name=place.name, place=place).collect())


@pytest.fixture(scope='session')
def replayed(request: pytest.FixtureRequest) -> Any:
    """Outcome of a recording given with ``--bag``; replayed once per session."""
    outcome = request.config.stash[_STORE].outcome(request.param)
    if isinstance(outcome, Exception):
        pytest.fail(f'{request.param.name} cannot be replayed: {outcome}', pytrace=False)
    return outcome


class _Store:
    """Finished replays by path, and what is needed to make them."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._done: dict[Path, Any] = {}
        self._replayer: Any = None
        self._limits: Any = None
        self._places: list[Path] | None = None

    def _option(self, name: str) -> Any:
        return self._config.getoption(_dest(name), default=dict(_OPTIONS)[name]['default'])

    @property
    def places(self) -> list[Path]:
        """Recordings: the folders given, or those inside them.

        Raises:
            pytest.UsageError: nothing of that kind there.
        """
        if self._places is None:
            self._places = [p for given in self._option('--replay-bag') for p in _recordings(Path(given))]
        return self._places

    def names(self) -> list[str]:
        """What is tested of each recording."""
        from .replay_limits import Limits, load_limits

        if self._limits is None:
            from ..errors import InstructVLAError
            from ..resources import config_file

            try:
                self._limits = load_limits(config_file(self._option('--replay-limits')))
            except InstructVLAError as err:
                raise pytest.UsageError(str(err)) from None
        limits: Limits = self._limits
        return ['replay', *limits.limits, *limits.faults]

    def outcome(self, place: Path) -> Any:
        """Outcome of one recording, or the error why there is none."""
        if place not in self._done:
            try:
                self._done[place] = self._replay(place)
            except Exception as err:  # every check of this recording fails with it; the others go on
                self._done[place] = err
        return self._done[place]

    def _replay(self, place: Path) -> Any:
        from . import replay_session as session
        from .replay import ReplayOptions

        self.names()
        if self._replayer is None:
            plan = session.deployment(
                self._option('--replay-policy'),
                self._option('--replay-checkpoint'),
                self._option('--replay-embodiment'),
                ReplayOptions(instruction=self._option('--replay-instruction')),
            )
            self._replayer = session.Replayer(plan)
        with session.open_recording(place, self._replayer.plan.embodiment) as recording:
            return self._replayer.run(recording, self._limits)


class _Recording(pytest.Collector):
    """One recording; its tests are the checks of the limits file."""

    def __init__(self, *, place: Path, **more: Any) -> None:
        super().__init__(**more)
        self.place = place

    def collect(self) -> Iterable[pytest.Item]:
        """One test per check."""
        for name in self.config.stash[_STORE].names():
            yield _Check.from_parent(self, name=name)


class _CheckFailed(Exception):
    """A limit was not kept; its text is the whole report."""


class _Check(pytest.Item):
    """One check of one recording."""

    def runtest(self) -> None:
        """Replay when nobody has yet, and look at this check."""
        parent = self.parent
        assert isinstance(parent, _Recording)
        outcome = self.config.stash[_STORE].outcome(parent.place)
        if isinstance(outcome, Exception):
            # Said in full once; the other checks of this recording depend on it.
            if self.name != 'replay':
                pytest.skip('the recording could not be replayed')
            raise _CheckFailed(f'{parent.place} cannot be replayed: {outcome}')
        if self.name == 'replay':
            return
        check = next(c for c in outcome.checks if c.name == self.name)
        if check.result == 'failed':
            raise _CheckFailed(f'{self.name}: {check.text}')
        if check.result == 'skipped':
            pytest.skip(check.text)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The sentence alone for a limit, the traceback for a defect."""
        if isinstance(excinfo.value, _CheckFailed):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Where the test comes from."""
        parent = self.parent
        assert isinstance(parent, _Recording)
        return parent.place, None, f'{parent.place.name}: {self.name}'


_STORE: pytest.StashKey[_Store] = pytest.StashKey()


def _dest(option: str) -> str:
    return 'instructvla_' + option.strip('-').replace('-', '_')


def _has_own(metafunc: pytest.Metafunc) -> bool:
    """Whether somebody else's fixture has this name: it is theirs then."""
    found = metafunc._arg2fixturedefs.get('replayed', ())
    return bool(found) and found[-1].func.__module__ != __name__


def _recordings(given: Path) -> list[Path]:
    if _is_recording(given):
        return [given]
    if not given.is_dir():
        raise pytest.UsageError(f'--bag {given}: there is no such file or folder')
    inside = sorted(p for p in given.iterdir() if _is_recording(p))
    if not inside:
        raise pytest.UsageError(f'--bag {given}: neither a bag nor a dataset, nor a folder of them')
    return inside


def _is_recording(place: Path) -> bool:
    if place.is_file():
        return place.name.removesuffix('.zstd').endswith(('.mcap', '.db3'))
    if not place.is_dir():
        return False
    names = {p.name for p in place.iterdir()}
    return bool(names & {'metadata.yaml', 'meta.json'}) or any(_is_recording(place / n) for n in names if '.' in n)
