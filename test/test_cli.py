"""The command line: verbs, help, one-line errors, exit codes, and the session without its graph."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from instructvla_ros import cli, config, graph_session, pace, resources
from instructvla_ros.commands import evaluate
from instructvla_ros.commands._progress import Progress
from instructvla_ros.errors import ConfigError, SetupError, TaskError
from instructvla_ros.graph import Interrupted
from instructvla_ros.graph_session import EpisodeRequest, GraphOptions, RunError, Session
from instructvla_ros.settings import Control


def invoke(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_every_verb_declares_what_the_registry_needs():
    found = cli.verbs()
    assert {'demo', 'doctor', 'evaluate'} <= set(found)
    assert next(iter(found)) == 'demo'
    for name, module in found.items():
        assert module.HELP and callable(module.add_arguments) and callable(module.run), name


@pytest.mark.parametrize('verb', sorted(cli.verbs()))
def test_help_of_every_verb(capsys, verb):
    code, out, err = invoke(capsys, verb, '--help')
    assert code == 0 and f'instructvla {verb}' in out and not err


@pytest.mark.parametrize('verb', ['demo', 'doctor', 'evaluate'])
def test_help_has_examples(capsys, verb):
    assert f'examples:\n  instructvla {verb}' in invoke(capsys, verb, '--help')[1]


def test_without_arguments_the_help_is_shown(capsys):
    code, out, _ = invoke(capsys)
    assert code == 0 and 'demo' in out and 'doctor' in out


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['demmo'], "unknown verb 'demmo'. Did you mean 'demo'"),
        (['demo', '--task', 'pickk'], "Did you mean 'pick'"),
        (['demo', '--policy', 'exprt'], "Did you mean 'expert'"),
        (['demo', '--policy', 'instructvla', '--checkpoint', 'nowhere/at/all'], 'no checkpoint at'),
        (['demo', '--time-limit', '-3'], 'the time limit is -3.0 s'),
        (['demo', '--instruction', 'put the rad cube in the bowl'], "Did you mean 'red'"),
        (['demo', '--task', 'pick', '--instruction', 'open the drawer'], 'open_drawer'),
        (['demo', '--seed', '-1'], 'seed -1'),
        (['demo', '--seed', 'x'], 'invalid int'),
        (['demo', '--tsk', 'pick'], '--tsk'),
        (['demo', '--embodiment', 'nobot.yaml'], 'franka.yaml'),
        (['evaluate', 'expert', '--episodes', '0'], 'at least one'),
        (['evaluate', 'graph', '--task', 'stak'], "Did you mean 'stack'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(graph_session, 'require_ros', lambda: None)
    code, out, err = invoke(capsys, *arguments)
    assert code == 2 and words in err, err
    assert len(err.strip().splitlines()) == 1 and 'Traceback' not in err and not out
    assert not (tmp_path / 'runs').exists(), 'nothing may be started or made'


def test_interrupt_and_signals_become_exit_codes(capsys, monkeypatch):
    def raising(error):
        def run(_):
            raise error

        return run

    module = cli.verbs()['demo']
    for error, code in ((KeyboardInterrupt(), 130), (Interrupted(signal.SIGTERM), 143)):
        monkeypatch.setattr(module, 'run', raising(error))
        assert invoke(capsys, 'demo')[0] == code


def test_help_is_fast_and_imports_nothing_heavy():
    script = (
        'import sys\nfrom instructvla_ros import cli\ncli.main(["demo", "--help"])\n'
        'heavy = {"numpy", "scipy", "torch", "mujoco", "rclpy", "matplotlib", "rich", "jinja2"} & set(sys.modules)\n'
        'print(sorted(heavy), file=sys.stderr)'
    )
    best = bare = 1e9
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True)
        ended = time.perf_counter()
        subprocess.run([sys.executable, '-c', 'import argparse, json'], check=True)
        best, bare = min(best, ended - began), min(bare, time.perf_counter() - ended)
        assert done.stderr.strip() == '[]'
    assert best < max(1.0, 5.0 * bare), f'{best:.2f} s, Python alone takes {bare:.2f} s'


def test_output_into_a_closed_pipe_is_quiet():
    done = subprocess.run(
        f'{sys.executable} -m instructvla_ros.cli | head -1', shell=True, capture_output=True, text=True
    )
    assert done.returncode == 0 and 'Traceback' not in done.stderr


def test_without_ros_the_reason_is_said(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(SetupError, match='rclpy is not installed.*make setup'):
        graph_session.require_ros()


# The session.


def test_episode_is_found_from_the_sentence():
    assert graph_session.check_episode(EpisodeRequest('', 3, 'put the red cube in the bowl')) == EpisodeRequest(
        'put', 3, 'put the red cube in the bowl'
    )
    assert graph_session.check_episode(EpisodeRequest('pick', 3)) == EpisodeRequest('pick', 3, '')
    with pytest.raises(TaskError, match='give a task or an instruction'):
        graph_session.check_episode(EpisodeRequest('', 0))
    other = EpisodeRequest('', 3, 'put the red cube in the bowl', 'the red one goes in there')
    assert graph_session.check_episode(other).said == other.said


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--policy', 'expert', '--say', 'get me that'], 'plain commands only'),
        (['--task', 'open_drawer', '--say', 'get me that'], "does 'open_drawer'.*plain commands only"),
        (['--say', 'get me that', '--words', 'situated'], 'not both'),
        (['--words', 'situatd'], 'situated'),
    ],
)
def test_words_that_nobody_would_understand_are_refused_before_anything_starts(monkeypatch, capsys, arguments, words):
    monkeypatch.setattr(graph_session, 'require_ros', lambda: None)
    assert cli.main(['demo', *arguments]) != 0
    assert re.search(words, ''.join(capsys.readouterr()))


def test_the_scene_finds_other_words_for_the_same():
    request = EpisodeRequest('put', 3, 'put the red cube in the bowl')
    situated = graph_session.in_other_words(request, 'situated')
    assert situated == graph_session.in_other_words(request, 'situated') and situated.key() != request.key()
    assert situated.said and 'red cube' not in situated.said
    assert (situated.task, situated.seed, situated.instruction) == ('put', 3, 'put the red cube in the bowl')
    with pytest.raises(TaskError, match='situatd.*situated'):
        graph_session.in_other_words(request, 'situatd')
    with pytest.raises(TaskError, match='another --seed'):
        graph_session.in_other_words(EpisodeRequest('open_drawer', 0), 'situated')


def test_specs_name_the_processes_and_their_parameters(tmp_path):
    options = GraphOptions(policy='hold', record=True, video=False, parameters={'sim_node': {'speed': 2.0}})
    specs = {s.name: s for s in graph_session.specs(options, tmp_path, EpisodeRequest('stack', 7))}
    assert list(specs) == ['sim_node', 'controller_node', 'policy_node', 'episode_node']
    assert specs['sim_node'].parameters['task'] == 'stack' and specs['sim_node'].parameters['speed'] == 2.0
    assert specs['policy_node'].parameters['policy'] == 'hold'
    assert specs['controller_node'].parameters['state_rate'] == 100.0
    assert specs['episode_node'].piped and specs['episode_node'].parameters['output'] == str(tmp_path)
    assert '-p' in specs['sim_node'].command() and 'seed:=7' in specs['sim_node'].command()
    assert specs['controller_node'].parameters['gripper_driver'] == 'topic', 'the simulator hears nothing else'
    with pytest.raises(ConfigError, match="Did you mean 'sim_node'"):
        graph_session.specs(GraphOptions(parameters={'simnode': {}}), tmp_path, EpisodeRequest('pick', 0))


def test_a_folder_with_the_name_of_a_checkpoint_is_not_taken_for_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert 'tiny' in resources.shipped_models()
    shipped = resources.shipped_models()['tiny']

    def policy_of(name: str) -> str:
        options = GraphOptions(policy='instructvla', checkpoint=name)
        specs = {s.name: s.parameters for s in graph_session.specs(options, tmp_path, EpisodeRequest('put', 0))}
        return specs['policy_node']['checkpoint']

    (tmp_path / 'tiny').mkdir()
    assert resources.local_checkpoint('tiny') == shipped and policy_of('tiny') == 'tiny'
    (tmp_path / 'tiny' / 'config.json').write_text('{}')
    assert resources.local_checkpoint('tiny') == Path('tiny') and policy_of('tiny') == str(tmp_path / 'tiny')
    assert resources.local_checkpoint('nothing/here') is None and policy_of('nothing/here') == 'nothing/here'


def test_slow_motion_reaches_every_node(tmp_path):
    options = GraphOptions(speed=0.25, bag=True, web_port=8765)
    specs = {s.name: s.parameters for s in graph_session.specs(options, tmp_path, EpisodeRequest('pick', 0))}
    assert len(specs) == 6 and all(values['use_sim_time'] is True for values in specs.values())
    assert specs['sim_node']['speed'] == 0.25
    assert specs['policy_node']['sim_speed'] == specs['episode_node']['sim_speed'] == 0.25
    usual = config.load(Control, resources.config_file('controller.yaml')).chunk_lease
    assert specs['controller_node']['chunk_lease'] == pytest.approx(4 * usual), 'counted in seconds of the machine'
    real = graph_session.specs(GraphOptions(), tmp_path, EpisodeRequest('pick', 0))
    assert not any('use_sim_time' in s.parameters for s in real)
    for speed in (0.0, 1.5, float('nan')):
        with pytest.raises(ConfigError, match=r'the speed is .*; give auto, or 0\.05 to 1'):
            graph_session.check_options(GraphOptions(speed=speed))


def test_speed_is_chosen_for_the_machine():
    assert pace.comfortable_speed(60e6) == 1.0
    assert pace.comfortable_speed(30e6) == 0.5
    assert pace.comfortable_speed(16e6) == 0.33
    assert pace.comfortable_speed(1.0) == pace.SPEEDS[-1]
    assert pace.comfortable_speed() in pace.SPEEDS
    assert pace.read_speed('0.5') == 0.5 and pace.read_speed('auto') in pace.SPEEDS
    for text in ('fast', 'nan', '0', '2'):
        with pytest.raises(ConfigError, match=f"the speed is '{text}'; give auto, or 0.05 to 1"):
            pace.read_speed(text)


def test_more_than_four_cores_do_not_help(monkeypatch):
    started = []
    original = subprocess.Popen
    monkeypatch.setattr(pace, 'usable_cores', lambda: 16)
    monkeypatch.setattr(pace.subprocess, 'Popen', lambda *a, **k: started.append(original(*a, **k)) or started[-1])
    assert pace.additions_per_second() > 0.0
    assert len(started) == 4 and all(process.poll() == 0 for process in started)


def test_a_busy_machine_is_a_slow_one(monkeypatch):
    quiet = pace.additions_per_second()
    busy = 4 * pace.usable_cores()
    others = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) for _ in range(busy)]
    try:
        assert pace.additions_per_second() < 0.7 * quiet
    finally:
        for other in others:
            other.kill()
            other.wait()
    monkeypatch.setattr(pace.sys, 'executable', '/nowhere/python')
    with pytest.raises(ConfigError, match='name a speed, such as 0.5'):
        pace.comfortable_speed()


class Lines:
    """A graph whose episode node says the given lines."""

    def __init__(self, *lines: str):
        self._lines = lines

    def lines(self, name: str):
        yield from self._lines

    def tail(self, name: str) -> str:
        return '  last words'


@pytest.fixture
def session(tmp_path, monkeypatch):
    monkeypatch.setattr(graph_session, 'require_ros', lambda: None)
    return Session(
        [EpisodeRequest('pick', 0), EpisodeRequest('pick', 1, 'pick up the red cube')], tmp_path / 'run', GraphOptions()
    )


def test_session_writes_what_the_episode_node_reads(session, tmp_path):
    rows = [json.loads(line) for line in (tmp_path / 'run' / graph_session.EPISODES).read_text().splitlines()]
    assert rows[1] == {
        'task': 'pick',
        'seed': 1,
        'instruction': 'pick up the red cube',
        'asked': 'pick up the red cube',
        'said': '',
        'policy': 'expert',
        'checkpoint': '',
        'speed': 1.0,
    }


def test_session_passes_events_on_and_keeps_the_results(session):
    session.graph = Lines(
        '{"event": "ready"}', 'a library talks', '', '{"event": "result", "success": true}', '{"event": "finished"}'
    )
    assert [e['event'] for e in session.events()] == ['ready', '', 'result', 'finished']
    assert session.rows == [{'event': 'result', 'success': True}]


def test_session_raises_what_the_episode_node_says(session):
    session.graph = Lines('{"event": "error", "text": "after 60 s still silent: camera wrist"}')
    with pytest.raises(RunError, match='camera wrist'):
        list(session.events())


def test_session_notices_an_end_without_finish(session):
    session.graph = Lines('{"event": "ready"}')
    with pytest.raises(RunError, match='last words'):
        list(session.events())


def test_results_survive_a_line_that_was_cut_off(tmp_path):
    file = tmp_path / 'episodes.jsonl'
    file.write_text('{"task": "pick", "success": true}\n[1]\n{"task": "pick", "succ')
    assert graph_session.read_results(file) == [{'task': 'pick', 'success': True}]
    assert graph_session.read_results(tmp_path / 'none') == []


def test_folders_of_two_runs_in_the_same_second_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, 'strftime', lambda _: '20260101-120000')
    assert [graph_session.new_folder('').name for _ in range(3)] == [
        '20260101-120000',
        '20260101-120000-1',
        '20260101-120000-2',
    ]
    assert graph_session.new_folder('mine') == tmp_path / 'mine'


def test_interrupted_evaluation_asks_only_for_what_is_missing(tmp_path, monkeypatch, capsys):
    """The second call finds the rows of the first and runs the rest."""
    asked: list[list[tuple[str, int, str, str]]] = []

    class Fake:
        def __init__(self, episodes, folder, options):
            asked.append([e.key() for e in episodes])
            self.rows = [
                {
                    'task': e.task,
                    'seed': e.seed,
                    'asked': e.instruction,
                    'policy': options.policy,
                    'success': True,
                    'outcome': 'SUCCEEDED',
                }
                for e in episodes[:2]
            ]
            with (folder / 'episodes.jsonl').open('a') as file:
                file.writelines(json.dumps(r) + '\n' for r in self.rows)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def events(self):
            yield {'event': 'finished'}

    monkeypatch.setattr(graph_session, 'Session', Fake)
    arguments = ['evaluate', 'graph', '--task', 'pick', '--episodes', '3', '--out', str(tmp_path), '--json']
    assert cli.main(arguments) == 1  # one of three is missing
    assert cli.main(arguments) == 0
    assert [len(a) for a in asked] == [3, 1] and asked[1] == [('pick', 2, '', '')]
    last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert last['tasks']['pick']['successes'] == 3
    assert json.loads((tmp_path / 'summary.json').read_text())['tasks']['pick']['episodes'] == 3


def test_another_policy_does_not_count_as_done(tmp_path, monkeypatch):
    row = {'task': 'pick', 'seed': 0, 'asked': '', 'policy': 'hold', 'success': False}
    (tmp_path / 'episodes.jsonl').write_text(json.dumps(row) + '\n')
    seen = []

    def refuse(episodes, folder, options):
        seen.extend(episodes)
        raise SetupError('enough')

    monkeypatch.setattr(graph_session, 'Session', refuse)
    with pytest.raises(SetupError):
        evaluate.run(
            SimpleNamespace(
                way='graph',
                task=['pick'],
                instruction='',
                episodes=1,
                seed=0,
                out=str(tmp_path),
                policy='expert',
                checkpoint='',
                embodiment='franka.yaml',
                record=False,
                time_limit=0.0,
                speed='1',
                json=True,
            )
        )
    assert len(seen) == 1


def test_progress_without_a_terminal_prints_plain_lines(capsys):
    with Progress() as progress:
        progress.update({'event': 'waiting', 'silent': ['camera wrist']})
        progress.update(
            {'event': 'episode', 'index': 0, 'of': 2, 'instruction': 'put [it] there', 'task': 'put', 'seed': 4}
        )
        progress.update(
            {
                'event': 'progress',
                'elapsed': 1.5,
                'progress': 0.2,
                'state': 'ACTING',
                'mode': 'TRACKING',
                'sentence': 'I will [move].',
                'verdicts': {},
            }
        )
        progress.update({'event': 'result', 'success': False, 'outcome': 'TIMEOUT', 'reason': 'too [slow]'})
    said = capsys.readouterr().err
    for words in ('waiting for camera wrist', 'put [it] there', 'I will [move].', 'not solved (TIMEOUT: too [slow])'):
        assert words in said


def test_evaluate_expert_in_process(tmp_path, capsys):
    code, out, err = invoke(
        capsys, 'evaluate', 'expert', '--task', 'pick', '--episodes', '1', '--out', str(tmp_path), '--json'
    )
    assert code == 0, err
    assert json.loads(out)['tasks']['pick']['episodes'] == 1
    row = json.loads((tmp_path / 'episodes.jsonl').read_text())
    assert row['policy'] == 'expert' and row['chunks'] > 5 and row['duration'] > 1.0


def test_progress_says_how_a_stop_drill_went(capsys):
    with Progress() as progress:
        progress.update({'event': 'result', 'success': False, 'drill': {'latched': 0.01, 'rest': 0.21, 'travel': 0.02}})
        progress.update({'event': 'result', 'success': False, 'drill': {'latched': None, 'rest': None, 'travel': 1.0}})
    said = capsys.readouterr().err
    assert 'at rest after 0.21 s' in said and 'did not come to rest' in said


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    pytest.importorskip('rclpy', reason='the demo needs ROS 2')
    occupied = tmp_path / 'file'
    occupied.write_text('')
    assert cli.main(['demo', '--no-video', '--out', str(occupied / 'run')]) == 2
    error = capsys.readouterr().err
    assert str(occupied) in error and 'Traceback' not in error


def test_names_with_values_on_the_command_line():
    from instructvla_ros.commands._pairs import changes, pairs
    from instructvla_ros.settings import PolicySettings

    assert pairs('--topic', ['a = b', 'c=d=e']) == {'a': 'b', 'c': 'd=e'}
    for wrong, reason in ((['x'], 'expected NAME=VALUE'), (['x='], 'expected NAME=VALUE'), (['a=1', 'a=2'], 'twice')):
        with pytest.raises(ConfigError, match=reason):
            pairs('--topic', wrong)
    given = ['noise=0.5', 'realtime=off', 'compile=off', 'checkpoint=', 'dataset=[', 'noise=0']
    assert changes('--set', given, PolicySettings) == {
        'noise': 0, 'realtime': 'off', 'compile': False, 'checkpoint': None, 'dataset': '['
    }  # fmt: skip
    with pytest.raises(ConfigError, match="--set 'noise': expected NAME=VALUE"):
        changes('--set', ['noise'], PolicySettings)
