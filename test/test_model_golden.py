"""Parity with the reference: every golden array, both inference paths, both masks, after conversion, and in a batch."""

from __future__ import annotations

import argparse
import json
import shutil

import model_doubles as doubles
import numpy as np
import pytest
import training_doubles

doubles.needs_model()

import torch  # noqa: E402

from instructvla_ros.commands import checkpoint as command  # noqa: E402
from instructvla_ros.commands._checkpoint_samples import from_episodes  # noqa: E402
from instructvla_ros.data.episodes import Dataset  # noqa: E402
from instructvla_ros.errors import ConfigError, DataError  # noqa: E402
from instructvla_ros.model.checkpoint import convert, load, save  # noqa: E402
from instructvla_ros.model.choose import choose_mask  # noqa: E402
from instructvla_ros.model.fast import FastPath, lay_out_weights, merge_adapters  # noqa: E402
from instructvla_ros.model.images import dino_pixels, join_views, siglip_pixels  # noqa: E402
from instructvla_ros.model.verify import EXACT, GRADIENT, TOLERANCES, verify  # noqa: E402


def wrong(report):
    return [f'{c.array}: {c.difference:.3g} > {c.tolerance:.3g}' for c in report.checks if not c.ok]


@pytest.mark.parametrize('case', doubles.CASES)
def test_every_array_of_the_plain_path(case):
    report = verify(doubles.golden(case))
    assert not wrong(report)
    names = {c.array for c in report.checks}
    assert {'velocities', 'velocities_blockwise', 'batch_total_loss', 'batch_ce_loss_blockwise', 'latent'} <= names
    stored = [k for k in np.load(doubles.golden(case) / 'golden.npz') if k.startswith('grad:')]
    assert set(stored) <= names and len(stored) >= 8


@pytest.mark.parametrize('case', doubles.CASES)
def test_every_array_of_the_fast_path(case):
    assert not wrong(verify(doubles.golden(case), fast=True, training=False))


@pytest.mark.parametrize('case', ['wrist_stage1', 'state_stage2_reason'])
def test_every_array_with_weights_packed_for_serving(case, monkeypatch):
    doubles.needs_packing()

    def packed(path, **options):
        bundle = load(path, **options)
        lay_out_weights(bundle.model, pack_from=0)
        assert bundle.model.vlm.decoder.layers[0].mlp.up_proj.weight is None
        return bundle

    monkeypatch.setattr('instructvla_ros.model.verify.load', packed)
    assert not wrong(verify(doubles.golden(case), fast=True, training=False))


@pytest.mark.parametrize('case', ['wrist_stage1', 'state_stage2_reason'])
def test_every_array_after_conversion(case, tmp_path):
    out = convert(doubles.golden(case), tmp_path / 'own', views=2 if 'wrist' in case else 1)
    shutil.copy(doubles.golden(case) / 'golden.npz', out)
    assert not wrong(verify(out))


def test_tolerances_are_those_of_the_vectors_readme():
    assert TOLERANCES['image_tokens'] == (5e-6, '') and TOLERANCES['latent'] == (5e-5, '')
    assert TOLERANCES['dino_features'] == (1e-5, 'x') and TOLERANCES['velocities'] == (5e-6, '')
    assert TOLERANCES['batch_total_loss'] == (1e-5, 'r') and GRADIENT == (1e-4, 'x') and EXACT == (0.0, '')


@pytest.mark.parametrize(
    ('name', 'breaks'),
    [
        ('vlm.tower.post_layernorm.bias', 'image_tokens'),
        ('vlm.gate.layers.9.bias', 'latent'),
        ('expert.dino.blocks.2.shift.bias', 'dino_features'),
        ('expert.state_embed.2.bias', 'velocities'),
    ],
)
def test_verification_fails_when_a_weight_is_off(name, breaks, tmp_path, monkeypatch):
    case = doubles.golden('state_stage2_reason')

    def damaged(path, **options):
        bundle = load(path, **options)
        with torch.no_grad():
            dict(bundle.model.named_parameters())[name][0] += 0.02
        return bundle

    monkeypatch.setattr('instructvla_ros.model.verify.load', damaged)
    report = verify(case, fast=True, training=False)
    assert not report.ok and breaks in {c.array for c in report.checks if not c.ok}


def test_batch_of_two_equals_batch_of_one():
    case = doubles.golden('wrist_stage1')
    golden, bundle = np.load(case / 'golden.npz'), load(case, views=2)
    model, config = bundle.model, bundle.config
    frames = [golden['image'], golden['wrist_image']]
    first = torch.from_numpy(siglip_pixels(join_views(frames), config.vision.image_size))[None]
    views = torch.from_numpy(np.stack([dino_pixels(f, config.dino.image_size) for f in frames]))[None]
    pixels, both = torch.cat((first.flip(-1), first)), torch.cat((views.flip(-1), views))
    ids = torch.from_numpy(golden['input_ids']).expand(2, -1)
    noise = torch.cat((torch.zeros(1, 8, 7), torch.from_numpy(golden['noise'])))
    engine = FastPath(model)
    for latent in (model.latent(ids, pixels), engine.latent(engine.begin(pixels), ids)):
        np.testing.assert_allclose(latent[1:], golden['latent'], atol=5e-5, rtol=0)
        for mask, suffix in (('bias', ''), ('block', '_blockwise')):
            for chunk in (model.chunk, engine.chunk):
                trace = []
                chunk(latent, both, None, noise, mask=mask, trace=trace)
                found = torch.stack(trace)[:, 1].flatten(1)
                np.testing.assert_allclose(found, golden['velocities' + suffix][:, 0], atol=5e-6, rtol=0)


def test_merged_stage_1_weights_stay_within_the_tolerance_of_the_latent():
    case = doubles.golden('wrist_stage1')
    golden, bundle = np.load(case / 'golden.npz'), load(case, views=2)
    merge_adapters(bundle.model)
    frame = join_views([golden['image'], golden['wrist_image']])
    pixels = torch.from_numpy(siglip_pixels(frame, bundle.config.vision.image_size))[None]
    latent = bundle.model.latent(torch.from_numpy(golden['input_ids']), pixels)
    np.testing.assert_allclose(latent, golden['latent'], atol=5e-5, rtol=0)


def run_command(capsys, *argv):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    code = command.run(parser.parse_args([str(a) for a in argv]))
    return code, capsys.readouterr().out


def test_command_verifies_and_fails_with_a_non_zero_exit(tmp_path, capsys):
    case = doubles.golden('wrist_stage1')
    code, text = run_command(capsys, 'verify', case, '--json', '--engine', 'fast', '--no-training')
    found = json.loads(text)
    assert code == 0 and found['ok'] and found['paths']['fast'][0]['arrays']['latent']['ok']

    bad = tmp_path / 'bad'
    shutil.copytree(case, bad)
    arrays = dict(np.load(bad / 'golden.npz'))
    arrays['velocities'] = arrays['velocities'] + 2e-5
    np.savez(bad / 'golden.npz', **arrays)
    code, text = run_command(capsys, 'verify', tmp_path, '--engine', 'plain', '--no-training')
    assert code == 1 and 'FAILED' in text
    assert [line.split()[1] for line in text.splitlines() if line.startswith('  !')] == ['velocities']


def test_bfloat16_is_reported_without_a_verdict(capsys):
    code, text = run_command(
        capsys, 'verify', doubles.golden('wrist_stage1'), '--engine', 'fast', '--dtype', 'bfloat16', '--json'
    )
    arrays = json.loads(text)['paths']['fast'][0]['arrays']
    assert code == 0 and arrays['latent']['tolerance'] is None and 1e-4 < arrays['latent']['difference'] < 1
    assert arrays['normalized_actions']['difference'] < 0.02 and arrays['input_ids']['difference'] == 0


def test_command_inspects_and_converts(tmp_path, capsys):
    case = doubles.golden('state_stage2_reason')
    code, text = run_command(capsys, 'convert', case, tmp_path / 'own', '--dtype', 'bfloat16', '--mask', 'block')
    assert code == 0 and 'wrote' in text
    code, text = run_command(capsys, 'inspect', tmp_path / 'own', '--json')
    found = json.loads(text)
    assert code == 0 and found['stage'] == 2 and found['dtypes'] == ['bfloat16']
    assert found['config']['expert']['mask'] == 'block' and found['config']['proprio'] is True
    code, text = run_command(capsys, 'inspect', case)
    assert code == 0 and 'vision_model.vision_model.head' in text and 'blocks.{3-4}' in text


def test_command_chooses_the_mask(tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / 'samples.npz',
        views=rng.integers(0, 256, (3, 2, 48, 64, 3), dtype=np.uint8),
        proprio=rng.normal(size=(3, 8)),
        steps=rng.normal(size=(3, 8, 7)) * 0.02,
        instruction=np.array(['pick up the red cube'] * 3),
    )
    arguments = ('choose-mask', doubles.golden('wrist_stage1'), tmp_path / 'samples.npz', '--views', 2, '--json')
    code, text = run_command(capsys, *arguments)
    found = json.loads(text)
    assert code == 0 and found['samples'] == 3 and set(found['losses']) == {'bias', 'block'}
    assert found['best'] == min(found['losses'], key=found['losses'].get)
    assert run_command(capsys, *arguments)[1] == text  # fixed noise and times


def test_command_chooses_the_mask_from_recorded_episodes(tmp_path, capsys):
    config = doubles.small_config()
    bundle = doubles.small_bundle(tmp_path / 'made')
    checkpoint = save(bundle, tmp_path / 'small')
    data = training_doubles.dataset(tmp_path / 'data', episodes=5, frames=config.horizon + 4)
    arguments = ('choose-mask', checkpoint, data, '--episodes', 3, '--limit', 7, '--json')
    code, text = run_command(capsys, *arguments)
    found = json.loads(text)
    assert code == 0 and found['samples'] == 7 and set(found['losses']) == {'bias', 'block'}
    assert run_command(capsys, *arguments)[1] == text  # the same frames, noise and times
    assert run_command(capsys, *arguments, '--seed', 1)[1] != text
    # The loss is that of the frames themselves.
    samples = list(from_episodes(Dataset.open(data), config, 3, 7, 0))
    assert {len(s.views) for s in samples} == {config.views} and len({s.steps.tobytes() for s in samples}) == 7
    assert found['losses'] == dict(choose_mask(bundle, samples).losses)
    episode = Dataset.open(data).read(0)
    for sample in from_episodes(Dataset.open(data), config, 1, 99, 3):
        assert sample.instruction == episode.instruction and sample.steps.shape == (config.horizon, 7)


def test_command_refuses_episodes_that_do_not_fit(tmp_path, capsys):
    checkpoint = save(doubles.small_bundle(tmp_path / 'made'), tmp_path / 'small')
    short = training_doubles.dataset(tmp_path / 'short', episodes=2, frames=4)
    with pytest.raises(DataError, match='6 steps behind a frame'):
        run_command(capsys, 'choose-mask', checkpoint, short)
    with pytest.raises(DataError, match='not a dataset of episodes'):
        run_command(capsys, 'choose-mask', checkpoint, tmp_path)
    three = save(doubles.small_bundle(tmp_path / 'more', views=3), tmp_path / 'three')
    with pytest.raises(DataError, match='the model sees 3'):
        run_command(capsys, 'choose-mask', three, short)
    with pytest.raises(ConfigError, match='--episodes 0'):
        run_command(capsys, 'choose-mask', checkpoint, short, '--episodes', 0)
