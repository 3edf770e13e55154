"""Training on two processes (CPU, gloo): DDP and FSDP make the steps that one makes, and leave the same files."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip('torch')

from training_doubles import SMALL, dataset  # noqa: E402

from instructvla_ros.cli import main as cli  # noqa: E402
from instructvla_ros.errors import ConfigError  # noqa: E402
from instructvla_ros.model.checkpoint import load  # noqa: E402
from instructvla_ros.training import launching  # noqa: E402
from instructvla_ros.training.settings import Training  # noqa: E402
from instructvla_ros.training.state import load_state, read_log  # noqa: E402

COMMON = [
    'steps=4', 'lr=0.001', 'ema=0.9', 'held_out=0.2', 'validate_every=2', 'validation_frames=8', 'save_every=2',
    'seed=3', 'weight_decay=0.01', 'precision="no"', 'checkpoint_activations=false',
]  # fmt: skip
WHOLE = ['batch=8', 'general_batch=4', 'accumulate=2']
HALF = ['batch=4', 'general_batch=2', 'accumulate=1']
CASES = {
    'stage1': ['recipe=stage1'],
    # Dropout, no pictures in some dialogues, activations computed twice: what sharding has to survive.
    'stage2': ['recipe=stage2', 'checkpoint_activations=true'],
    'stage0': ['recipe=stage0', 'grounding={pointing: 0.5, patches: 0.2, latent: 0.2}'],
}


LOOP = 'import json, sys; from instructvla_ros.cli import main; sys.exit(sum(main(a) for a in json.load(sys.stdin)))'
HERE = [sys.executable, '-c', LOOP]


def words(made: Path, case: str, out: str, *changes: str) -> list[str]:
    """Command line of a run; stage 2 starts from the checkpoint of another one."""
    init = ['--init', str(made / 'start' / 'checkpoint')] if case == 'stage2' else []
    options = [*COMMON, f'model={made / "small.yaml"}', *CASES[case], *changes]
    places = ['--data', str(made / 'data'), '--out', str(made / out), *init]
    return ['train', 'stage1', *places, '--json', '--set', *options]


def alone(*runs: list[str]) -> None:
    for arguments in runs:
        assert cli(arguments) == 0


def together(*runs: list[str], **environment: str) -> None:
    """Runs one after the other in two processes, which are started as torchrun and ``accelerate launch`` do."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, **environment, 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port, 'OMP_NUM_THREADS': '1'}
    shared['WORLD_SIZE'] = shared['LOCAL_WORLD_SIZE'] = '2'
    running = []
    for k in range(2):
        own = {**shared, 'RANK': str(k), 'LOCAL_RANK': str(k)}
        pipe = subprocess.PIPE
        running.append(subprocess.Popen(HERE, env=own, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True))
    for process in running:
        assert process.stdin is not None
        process.stdin.write(json.dumps(runs))
        process.stdin.close()
        process.stdin = None
    try:
        told = [p.communicate(timeout=540)[0] for p in running]
    finally:
        for process in running:
            process.kill()
    assert all(p.returncode == 0 for p in running), '\n'.join(told)


@pytest.fixture(scope='module')
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case in one process and in two; ``mixed`` begins sharded, goes on alone, and ends sharded."""
    folder = tmp_path_factory.mktemp('parallel')
    (folder / 'small.yaml').write_text(SMALL)
    dataset(folder / 'data')
    alone(words(folder, 'stage1', 'start', 'steps=1'))
    alone(*[words(folder, case, f'{case}-one', *WHOLE) for case in CASES])
    # The verb shares a batch out; torchrun and accelerate are given the part of one process.
    alone([*words(folder, 'stage1', 'stage1-ddp', *WHOLE, 'accumulate=1'), '--processes', '2'])
    together(
        *[words(folder, case, f'{case}-fsdp', *HALF, 'sharded=true') for case in CASES],
        words(folder, 'stage1', 'mixed', *HALF, 'steps=2', 'sharded=true'),
    )
    alone(words(folder, 'stage1', 'mixed', *WHOLE, 'steps=3'))
    together(words(folder, 'stage1', 'mixed', *HALF), ACCELERATE_USE_FSDP='true')
    return folder


def logged(out: Path) -> dict[tuple[str, int, str], float]:
    """Losses of a run by kind, step and name."""
    skipped = ('step', 'kind', 'seconds', 'samples_per_s', 'memory_gb', 'lr')
    return {(e['kind'], e['step'], n): v for e in read_log(out / 'log.jsonl') for n, v in e.items() if n not in skipped}


def assert_same(one: Path, two: Path, tolerance: float = 2e-4) -> None:
    """Losses, weights, averages, optimiser and step of two runs agree."""
    first, second = logged(one), logged(two)
    assert first and first.keys() == second.keys()
    for key, value in first.items():
        if key[2] not in ('named', 'gripper'):  # counts, which jump
            assert second[key] == pytest.approx(value, rel=2e-3, abs=1e-4), key
    a, b = load_state(one), load_state(two)
    assert a is not None and b is not None and a['step'] == b['step'] and a['average_steps'] == b['average_steps']
    for part in ('weights', 'average'):
        assert a[part].keys() == b[part].keys()
        for name, value in a[part].items():
            torch.testing.assert_close(b[part][name], value, atol=tolerance, rtol=1e-3, msg=f'{part} {name}')
    assert a['optimizer']['state'].keys() == b['optimizer']['state'].keys()
    for folder in ('checkpoint', 'best'):
        left, right = load(one / folder).model.state_dict(), load(two / folder).model.state_dict()
        for name, value in left.items():
            torch.testing.assert_close(right[name], value, atol=tolerance, rtol=1e-3, msg=f'{folder} {name}')
    assert (two / 'report.html').stat().st_size > 1000 and json.loads((two / 'run.json').read_text())


@pytest.mark.parametrize('case', ['stage1-ddp', *(f'{case}-fsdp' for case in CASES)])
def test_two_processes_train_as_one(case, made):
    assert_same(made / f'{case.split("-")[0]}-one', made / case)


def test_ctrl_c_ends_all_processes_after_a_whole_step(made):
    out = made / 'interrupted'
    arguments = [*words(made, 'stage1', 'interrupted', *WHOLE, 'steps=100000'), '--processes', '2']
    run = subprocess.Popen(
        [sys.executable, '-m', 'instructvla_ros.cli', *arguments], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 200.0
        while not (out / 'state.pt').is_file():
            assert run.poll() is None and time.monotonic() < deadline, run.communicate()
            time.sleep(0.1)
        workers = Path(f'/proc/{run.pid}/task/{run.pid}/children').read_text().split()
        assert len(workers) == 2
        run.send_signal(signal.SIGINT)
        told, complaints = run.communicate(timeout=120)
    finally:
        run.kill()
    assert run.returncode == 130, complaints
    (line,) = [json.loads(text) for text in told.splitlines()]  # one of them speaks
    state = load_state(out)
    assert state is not None and line['interrupted'] and state['step'] == line['steps'] >= 2
    assert not any(Path(f'/proc/{pid}').exists() for pid in workers)


def test_when_one_process_fails_the_others_do_not_wait_for_it(monkeypatch):
    monkeypatch.setattr(launching, '_GRACE', 0.3)
    codes = [[sys.executable, '-c', f'import sys, time; time.sleep({s}); sys.exit({c})'] for s, c in ((60, 0), (0, 3))]
    running = [subprocess.Popen(code) for code in codes]
    try:
        assert launching._outcome(running) == 3
        assert running[0].poll() is None, 'launch ends it'
    finally:
        running[0].kill()
        running[0].wait()


def test_a_batch_is_shared_or_the_way_out_is_named(monkeypatch):
    options = Training(batch=32, general_batch=2)
    assert launching.share(options, 2) == ['batch=16', 'general_batch=1']
    with pytest.raises(ConfigError, match='general_batch 2 cannot be shared by 4 processes; --set general_batch=4'):
        launching.share(options, 4)
    monkeypatch.setenv('RANK', '0')
    with pytest.raises(ConfigError, match='torchrun'):
        launching.share(options, 2)


def test_no_processes_are_refused(made, capsys):
    assert cli([*words(made, 'stage1', 'none'), '--processes', '0']) == 2
    assert 'at least one' in capsys.readouterr().err


def test_what_is_not_trained_stays_to_the_bit(made):
    before = load(made / 'start' / 'checkpoint').model.state_dict()
    after = load(made / 'stage2-fsdp' / 'checkpoint').model.state_dict()
    still = [n for n in before if 'lora' not in n and 'query' not in n]
    assert len(still) > 40 and all(torch.equal(before[n], after[n]) for n in still)
    assert any(not torch.equal(before[n], after[n]) for n in before if 'query' in n)


def test_a_run_goes_on_with_another_number_of_processes(made):
    one, mixed = load_state(made / 'stage1-one'), load_state(made / 'mixed')
    assert one is not None and mixed is not None and mixed['step'] == 4
    for name, value in one['weights'].items():
        torch.testing.assert_close(mixed['weights'][name], value, atol=2e-4, rtol=1e-3, msg=name)
    for index, entry in one['optimizer']['state'].items():
        mine = mixed['optimizer']['state'][index]['exp_avg']
        torch.testing.assert_close(mine, entry['exp_avg'], atol=1e-4, rtol=1e-2)


def test_sharding_alone_is_refused(made, capsys):
    assert cli(words(made, 'stage1', 'refused', 'sharded=true')) == 2
    assert 'several processes' in capsys.readouterr().err
