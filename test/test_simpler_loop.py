"""SimplerEnv: the task lists, the loop against a stand-in, the numbers and the page."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import simpler_doubles
from simpler_doubles import Scripted

from instructvla_ros import cli
from instructvla_ros.errors import ConfigError, SetupError, TaskError
from instructvla_ros.evaluation import simpler, simpler_report
from instructvla_ros.evaluation.benchmark_page import published
from instructvla_ros.evaluation.simpler_policy import SETUPS, SimplerPolicy
from instructvla_ros.evaluation.simpler_tasks import column_rates, plain_mean, read_suite, resolve_env, robot_mean

GOOGLE = SETUPS['google_robot']


# -- the task lists ---------------------------------------------------------------------------------------------


def test_task_lists_have_the_published_counts():
    suite = read_suite('simplerenv_instruct')
    counts = {c.name: [len(x.trials()) for x in suite.of(c.name)] for c in suite.columns}
    assert (len(counts['aggregation']), sum(counts['aggregation'])) == (50, 745)
    assert (len(counts['situated']), sum(counts['situated'])) == (30, 393)
    classic = read_suite('simplerenv')
    trials = {c.name: sum(len(x.trials()) for x in classic.of(c.name)) for c in classic.columns}
    # Visual matching as SimplerEnv's paper counts it; WidowX 24 each.
    assert [trials[c] for c in ('coke_vm', 'near_vm', 'drawer_vm', 'put_vm')] == [300, 240, 216, 108]
    assert [trials[c] for c in ('spoon', 'carrot', 'stack', 'eggplant')] == [24] * 4
    steps = {x.max_steps for x in classic.launches if x.setup == 'google_robot'}
    assert steps == {80, 113, 200} and {x.max_steps for x in classic.of('spoon')} == {120}


def test_robot_start_by_hand():
    """Base quaternion wxyz (0, 0, 0, 1) is a half turn about z; a yaw of -0.09 on top leaves pi - 0.09."""
    near = read_suite('simplerenv').of('near_vm')[0].trials()[0]
    np.testing.assert_allclose(near.robot_quat, [math.cos((math.pi - 0.09) / 2), 0, 0, math.sin((math.pi - 0.09) / 2)])
    options = near.reset_options()
    assert options['obj_init_options'] == {'episode_id': 0}
    np.testing.assert_allclose(options['robot_init_options']['init_xy'], [0.35, 0.21])


def test_environments_are_found_by_their_stem():
    suite = read_suite('simplerenv_instruct')
    by = {x.env: x for x in suite.launches}
    ids = ['AltOpenTopDrawerCustomInScene-v0', 'AltOpenTopDrawer2CustomInScene-v0', 'FreeGraspSinglePearInScene-v1']
    assert resolve_env(by['AltOpenTopDrawer'], ids) == ids[0]
    assert resolve_env(by['AltOpenTopDrawer2'], ids) == ids[1]
    pears = [x for x in suite.launches if x.env == 'FreeGraspSinglePear']
    assert resolve_env(pears[1], ids) == ids[2]
    with pytest.raises(TaskError, match='FreeGraspSinglePear'):
        resolve_env(pears[0], ids)
    with pytest.raises(TaskError, match='several'):
        resolve_env(by['AltOpenTopDrawer'], [*ids, 'AltOpenTopDrawerOther-v0'])
    exact = read_suite('simplerenv').launches[0]
    assert resolve_env(exact, [exact.env, exact.env + '0']) == exact.env


def test_a_suite_file_is_checked(tmp_path):
    file = tmp_path / 'mine.yaml'
    for text, what in (
        ('a: [', 'not YAML'),
        ('name: x', 'not a suite'),
        ('name: x\ntitle: x\ncolumns: {}\ntasks: [{name: a, steps: 3}]', 'unknown key'),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=what):
            read_suite(file)
    with pytest.raises(ConfigError, match='cannot read'):
        read_suite(tmp_path / 'none.yaml')
    with pytest.raises(TaskError, match='drawer_vm'):
        read_suite('simplerenv').choose(['drawer'])


def test_published_means_are_reproduced():
    """The averages that the paper prints, from its own columns, by the rule that fits each row."""
    suite, source = read_suite('simplerenv'), published()['simplerenv']
    columns = source['columns']
    rows = {r['name']: (dict(zip(columns, r['values'], strict=True)), r['printed_mean']) for r in source['rows']}
    for name in ('RT-1-X', 'OpenVLA-7B', 'SpatialVLA-3B', 'GR00T-N1.5-3B (S)'):
        assert plain_mean(suite, rows[name][0]) == pytest.approx(rows[name][1], abs=0.1)
    for name in ('OpenVLA (FT)', 'Magma-8B (sampling)', 'InstructVLA-Generalist'):
        assert robot_mean(suite, rows[name][0]) == pytest.approx(rows[name][1], abs=0.1)
    assert robot_mean(suite, rows['RT-2-X'][0]) is None
    instruct = read_suite('simplerenv_instruct')
    for row in published()['simplerenv_instruct']['rows']:
        scores = dict(zip(('aggregation', 'situated'), row['values'], strict=True))
        assert plain_mean(instruct, scores) == pytest.approx(row['printed_mean'], abs=0.21)


def test_a_column_is_the_mean_of_its_launches_not_of_its_trials():
    suite = read_suite('simplerenv_instruct')
    rates = {x.name: 0.5 for x in suite.launches}
    first = suite.of('aggregation')[0].name
    rates[first] = 1.0
    assert column_rates(suite, rates)['aggregation'] == pytest.approx(100 * (49 * 0.5 + 1) / 50)
    del rates[first]
    assert column_rates(suite, rates) == {'aggregation': None, 'situated': 50.0}


# -- the loop ---------------------------------------------------------------------------------------------------


@pytest.fixture
def coke(monkeypatch, tmp_path):
    """SimplerEnv's stand-in with the coke can, and the suite cut to one launch of four trials and six steps."""
    gym = simpler_doubles.Gym(['GraspSingleOpenedCokeCanInScene-v0'])
    gym.install(monkeypatch, tmp_path / 'assets')
    suite = read_suite('simplerenv')
    launch = replace(suite.of('coke_vm')[0], object_x=(0.0, 0.1), object_y=(0.2, 0.3), max_steps=6)
    return gym, replace(suite, launches=(launch,))


def forward(speed):
    def chunk(n):
        steps = np.zeros((4, 7))
        steps[:, 0], steps[:, 6] = speed, 1.0
        return steps

    return chunk


def test_the_loop_asks_the_environment_what_simplerenv_asks(coke, tmp_path):
    gym, suite = coke
    inner = Scripted(forward(0.01))
    policy = SimplerPolicy(inner, GOOGLE, sentence_period=4)
    job = simpler.Run(suite, tmp_path / 'run', lambda setup, seed: policy, {'policy': 'x'}, simpler.SimplerEnv().make,
                      simpler.Options(videos='none'))  # fmt: skip
    rows = list(job.run())
    assert len(rows) == job.total == 4 and all(r['success'] for r in rows) and not job.missing()
    kind, env_id, arguments = gym.log[0]
    assert (kind, env_id) == ('make', 'GraspSingleOpenedCokeCanInScene-v0')
    assert arguments['obs_mode'] == 'rgbd' and arguments['robot'] == 'google_robot_static'
    assert arguments['control_freq'] == 3 and arguments['sim_freq'] == 513 and arguments['max_episode_steps'] == 6
    assert arguments['lr_switch'] is True and arguments['urdf_version'] is None
    assert arguments['rgb_overlay_path'].endswith('real_inpainting/google_coke_can_real_eval_1.png')
    assert arguments['rgb_overlay_cameras'] == ['overhead_camera']
    resets = [e for e in gym.log if e[0] == 'reset']
    spots = [tuple(e[2]['obj_init_options']['init_xy']) for e in resets]
    assert spots == [(0.0, 0.2), (0.0, 0.3), (0.1, 0.2), (0.1, 0.3)]
    np.testing.assert_allclose(resets[0][2]['robot_init_options']['init_rot_quat'], [0, 0, 0, 1])
    steps = [e for e in gym.log if e[0] == 'step']
    assert len(steps) == 4 * 6  # solved or not, until the environment truncates
    np.testing.assert_allclose(steps[0][1], [0.01, 0, 0, 0, 0, 0, 0])
    assert gym.log[-1] == ('close', env_id)
    row = rows[0]
    assert row['steps'] == 6 and row['solved_at'] == 6 and row['stats']['moved'] is True
    assert row['instructions'] == ['open top drawer', 'place the apple into the drawer']
    assert [s[0] for s in row['sentences']] == [0, 3]  # the new instruction starts over
    np.testing.assert_allclose(inner.seen[1].proprio[:3], [0.51, 0.1, 0.9])  # the arm's state of that moment


def test_success_is_what_holds_at_the_end(coke, tmp_path):
    gym, suite = coke
    gym.goal = 0.025

    def there_and_back(n):
        steps = np.zeros((1, 7))
        steps[0, 0] = 0.01 if n < 3 else -0.01
        return steps

    policy = SimplerPolicy(Scripted(there_and_back), GOOGLE, sentence_period=0)
    env = simpler.SimplerEnv().make(suite.launches[0])
    # The stand-in renames its task after three steps, which resets the policy: keep one instruction here.
    env.unwrapped.get_language_instruction = lambda: 'pick coke can'
    result = simpler.run_episode(env, policy, suite.launches[0], suite.launches[0].trials()[0])
    assert not result.success and result.solved_at == 3


def test_a_run_continues_where_it_was_killed(coke, tmp_path):
    gym, suite = coke
    policy = SimplerPolicy(Scripted(forward(0.01)), GOOGLE, sentence_period=0)

    def job():
        return simpler.Run(suite, tmp_path / 'run', lambda setup, seed: policy, {'policy': 'x'},
                           simpler.SimplerEnv().make, simpler.Options(seeds=(0, 1), videos='none'))  # fmt: skip

    first = job().run()
    done = [next(first)['trial'] for _ in range(3)]
    first.close()
    file = tmp_path / 'run' / simpler.RESULTS
    with file.open('a') as out:
        out.write('{"launch": "pick co')  # the line that a kill cut short
    again = job()
    assert len(again.rows) == 3 and len(again.missing()) == 5
    rest = list(again.run())
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rest) == 5 and len({simpler.row_key(r) for r in lines}) == len(lines) == 8
    assert [r['trial'] for r in lines[:3]] == done and not job().missing()
    with pytest.raises(ConfigError, match="policy was 'x', is 'y'"):
        simpler.Run(suite, tmp_path / 'run', lambda a, b: policy, {'policy': 'y'}, simpler.SimplerEnv().make,
                    simpler.Options())  # fmt: skip


def test_a_failure_leaves_a_video_that_plays(coke, tmp_path):
    pytest.importorskip('imageio_ffmpeg')
    import imageio.v2 as imageio

    gym, suite = coke
    gym.goal = 1.0
    policy = SimplerPolicy(Scripted(forward(0.01)), GOOGLE, sentence_period=0)
    job = simpler.Run(suite, tmp_path / 'run', lambda a, b: policy, {}, simpler.SimplerEnv().make,
                      simpler.Options(limit=1))  # fmt: skip
    (row,) = job.run()
    assert not row['success'] and row['video']
    with imageio.get_reader(tmp_path / 'run' / row['video']) as reader:
        assert sum(1 for _ in reader) == 7  # six steps and the last picture


def test_an_environment_that_is_not_there_does_not_end_the_run(coke, tmp_path):
    gym, suite = coke
    odd = replace(suite.launches[0], name='pick coke can: gone', env='NoSuchScene')
    suite = replace(suite, launches=(odd, suite.launches[0]))
    policy = SimplerPolicy(Scripted(forward(0.01)), GOOGLE, sentence_period=0)
    job = simpler.Run(suite, tmp_path / 'run', lambda a, b: policy, {}, simpler.SimplerEnv().make,
                      simpler.Options(videos='none'))  # fmt: skip
    assert len(list(job.run())) == 4 and len(job.missing()) == 4
    assert 'NoSuchScene' in job.unavailable['pick coke can: gone']


def test_without_simpler_env_it_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, 'simpler_env', None)
    with pytest.raises(SetupError, match='git clone --recurse-submodules'):
        simpler.SimplerEnv()


def test_pictures_that_are_missing_are_named():
    with pytest.raises(SetupError, match='image/overhead_camera/rgb, only: other'):
        simpler.image_of({'image': {'other': {}}}, 'overhead_camera')


# -- the numbers and the page -----------------------------------------------------------------------------------


def rows_of(suite, success, seed=0, launches=None):
    return [
        {'launch': x.name, 'column': x.column, 'trial': t.key, 'seed': seed, 'success': success(x, k)}
        for x in (launches if launches is not None else suite.launches)
        for k, t in enumerate(x.trials())
    ]


def test_summary_counts_only_complete_columns():
    suite = read_suite('simplerenv_instruct')
    rows = rows_of(suite, lambda x, k: k % 2 == 0, launches=suite.of('situated'))
    rows += rows_of(suite, lambda x, k: True, launches=suite.of('aggregation')[:3])
    got = simpler_report.summarize(suite, rows)
    assert got['columns']['aggregation']['score'] is None and got['means']['plain'] is None
    # Even counts give 50 %, nine trials 5 of 9: 12 + 3 + 2 launches of the former, 13 of the latter.
    expected = 100 * (17 * 0.5 + 13 * 5 / 9) / 30
    assert got['columns']['situated']['score'] == pytest.approx(expected)
    assert got['columns']['aggregation']['trials'] == 48 and got['columns']['aggregation']['wanted'] == 745
    assert got['columns']['situated']['deviation'] is None


def test_summary_over_seeds_has_the_deviation():
    suite = read_suite('simplerenv_instruct')
    rows = [r for s, good in ((0, 1), (1, 0), (2, 1)) for r in rows_of(suite, lambda x, k, g=good: bool(g), seed=s)]
    got = simpler_report.summarize(suite, rows)
    assert got['seeds'] == [0, 1, 2] and got['columns']['situated']['score'] == pytest.approx(200 / 3)
    assert got['columns']['situated']['deviation'] == pytest.approx(100 * math.sqrt(1 / 3))
    low, high = got['columns']['situated']['interval']
    assert low < 200 / 3 < high and high - low < 6


def test_page_has_every_system_and_says_what_was_not_measured(tmp_path):
    suite = read_suite('simplerenv_instruct')
    summary = simpler_report.summarize(suite, rows_of(suite, lambda x, k: True, launches=suite.of('situated')))
    page = simpler_report.write(tmp_path, {suite.name: summary}, name='mine <1>', unavailable={'a': 'not there'})
    text = page.read_text()
    for system in ('OpenVLA-7B', 'OpenVLA (FT)', 'OpenVLA (FT &amp; GPT-4o)', 'SpatialVLA-3B', 'Magma-8B',
                   'InstructVLA-Expert (S)', 'InstructVLA-Generalist', 'mine &lt;1&gt;'):  # fmt: skip
        assert f'<td>{system}' in text, system
    row = [line for line in text.splitlines() if 'mine &lt;1&gt;' in line]
    assert row[0].count('not measured') == 14  # SimplerEnv: twelve columns and two means
    assert row[1].count('not measured') == 2 and '100.0' in row[1]
    assert 'http' not in text.split('<main', 1)[1]
    assert json.loads((tmp_path / 'summary.json').read_text())['unavailable'] == {'a': 'not there'}


def test_command_line_lists_runs_and_continues(coke, tmp_path, capsys, monkeypatch):
    assert cli.main(['evaluate', 'simpler', '--list', '--json']) == 0
    listed = json.loads(capsys.readouterr().out)
    assert sum(listed['simplerenv_instruct'].values()) == 1138
    out = str(tmp_path / 'out')
    command = ['evaluate', 'simpler', '--policy', 'hold', '--only', 'coke_vm', '--limit', '1', '--videos', 'none']
    command += ['--out', out]
    assert cli.main([*command, '--json']) == 0
    got = json.loads(capsys.readouterr().out)
    column = got['suites']['simplerenv']['columns']['coke_vm']
    assert column['trials'] == 12 and column['score'] is None and column['wanted'] == 300
    gym, _ = coke
    made = len(gym.made)
    assert cli.main(command) == 0 and len(gym.made) == made  # nothing left to do
    assert 'not measured' in capsys.readouterr().out
    assert cli.main(['evaluate', 'simpler', '--policy', 'hold', '--only', 'teapot', '--out', out]) == 2
    assert 'teapot' in capsys.readouterr().err
    assert cli.main(['evaluate', 'simpler', '--out', out]) == 2
    assert '--checkpoint' in capsys.readouterr().err
