"""Checkpoints: both formats, and everything that can be wrong with them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import model_doubles as doubles
import numpy as np
import pytest

doubles.needs_model()

import torch  # noqa: E402

from instructvla_ros.errors import CheckpointError  # noqa: E402
from instructvla_ros.model.checkpoint import convert, load, open_source, save  # noqa: E402
from instructvla_ros.model.config import Adapters  # noqa: E402
from instructvla_ros.model.released import entries  # noqa: E402
from instructvla_ros.model.tensors import fold  # noqa: E402


@pytest.fixture
def run(tmp_path):
    """A released run directory that may be damaged."""
    return shutil.copytree(doubles.golden('state_stage2_reason'), tmp_path / 'run')


def weights(run):
    return next((run / 'checkpoints').glob('*.pt'))


def rewrite(run, change):
    file = weights(run)
    content = torch.load(file, weights_only=True)
    change(content['model'])
    torch.save(content, file)


def release(bundle, folder, stage):
    """Write a model in the released format, from the table of names: the inverse of loading."""
    state, groups = bundle.model.state_dict(), {}
    for entry in entries(bundle.config):
        tensor = torch.randn(entry.shape)
        for piece in entry.pieces:
            part = state[piece.name]
            if piece.target is not None:
                part = part.narrow(piece.dim, piece.target[0], piece.target[1] - piece.target[0])
            if piece.source is not None:
                tensor.narrow(piece.dim, piece.source[0], piece.source[1] - piece.source[0]).copy_(part)
            else:
                tensor.copy_(part)
        groups.setdefault(entry.group, {})[entry.key] = tensor
    (folder / 'checkpoints').mkdir(parents=True)
    torch.save({'model': groups}, folder / 'checkpoints' / 'step-1-epoch-0-loss=1.pt')
    config = bundle.config
    run = {'stage': f'stage{stage}', 'num_of_meta_query': config.queries}
    (folder / 'config.json').write_text(json.dumps(run))
    (folder / 'dataset_statistics.json').write_text(json.dumps(doubles.STATISTICS))
    architecture = {
        'vision': {'num_attention_heads': config.vision.heads},
        'llm': {'num_attention_heads': config.language.heads},
        'dino': {'num_heads': config.dino.heads},
        'expert': {'num_attention_heads': config.expert.heads},
    }
    (folder / 'architecture.json').write_text(json.dumps(architecture))
    shutil.copytree(bundle.tokenizer_file.parent, folder / 'tokenizer')
    return folder


@pytest.mark.parametrize('count', [0, 1, 2])
@pytest.mark.parametrize(('views', 'proprio'), [(1, False), (1, True), (2, False)])
def test_every_variant_survives_both_formats(tmp_path, count, views, proprio):
    adapters = {
        0: Adapters(count=0),
        1: Adapters(count=1, rank=4, alpha=8.0),
        2: Adapters(count=2, rank=4, alpha=8.0, gate_depth=3, gate_size=8),
    }[count]
    bundle = doubles.small_bundle(tmp_path, adapters=adapters, views=views, proprio=proprio)
    expected = bundle.model.state_dict()
    folder = release(bundle, tmp_path / 'released', 2 if count == 2 else 1)
    released = load(folder, views=views)
    own = load(convert(folder, tmp_path / 'own', views=views))
    again = load(save(released, tmp_path / 'again'))
    for loaded in (released, own, again):
        assert loaded.config.views == views and loaded.config.proprio == proprio
        assert loaded.config.adapters == adapters and loaded.config.stage == (2 if count == 2 else 1)
        state = loaded.model.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[k], expected[k]) for k in expected)
        assert not loaded.model.training and loaded.model.vlm.image_id == bundle.model.vlm.image_id
    assert own.revision == again.revision != ''
    pixels, *_ = doubles.inputs(bundle.config)
    ids = torch.from_numpy(bundle.prompts.action('lift up'))[None]
    torch.testing.assert_close(own.model.latent(ids, pixels), bundle.model.latent(ids, pixels), rtol=0, atol=0)


def test_own_format_holds_what_belongs_to_a_model(tmp_path):
    out = convert(doubles.golden('state_stage2_reason'), tmp_path / 'own', dtype=torch.bfloat16)
    assert {f.name for f in out.iterdir()} == {
        'model.safetensors',
        'config.json',
        'dataset_statistics.json',
        'tokenizer',
        'README.md',
    }
    bundle = load(out, dtype=torch.float32)
    assert bundle.model.vlm.dtype == torch.float32 and bundle.revision in (out / 'README.md').read_text()
    with pytest.raises(CheckpointError, match='exists'):
        convert(doubles.golden('state_stage2_reason'), out)
    again = convert(doubles.golden('state_stage2_reason'), out, mask='block', overwrite=True)
    assert load(again).config.expert.mask == 'block'
    assert [p.name for p in tmp_path.iterdir()] == ['own']  # nothing half-written is left


def test_dead_blocks_and_the_pooling_head_are_skipped_and_listed():
    source = open_source(doubles.golden('state_stage2_reason'))
    unused = fold(source.unused)
    assert any('blocks.{3-4}.block.attn.qkv.weight' in u for u in unused)
    assert any(u == 'vision_model.vision_model.head.probe' for u in unused)
    assert not any('blocks.3' in n or 'head.probe' in n for n in source.tensors)


def test_truncated_file(run):
    file = weights(run)
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(CheckpointError, match='truncated or not a torch checkpoint'):
        load(run)


def test_file_that_is_not_torch(run):
    weights(run).write_bytes(b'hello' * 100)
    with pytest.raises(CheckpointError, match=r'truncated|not a plain tensor file'):
        load(run)


class Evil:
    def __reduce__(self):
        return (os.mkdir, ('evil-was-here',))


@pytest.mark.parametrize('plain_pickle', [True, False])
def test_code_in_a_file_is_never_run(run, tmp_path, monkeypatch, plain_pickle):
    monkeypatch.chdir(tmp_path)
    if plain_pickle:
        weights(run).write_bytes(pickle.dumps({'model': Evil()}))
    else:
        torch.save({'model': Evil()}, weights(run))
    with pytest.raises(CheckpointError, match='could run code|not a torch checkpoint'):
        load(run)
    assert not (tmp_path / 'evil-was-here').exists()


def test_every_missing_unexpected_and_misshapen_tensor_is_in_one_message(run):
    def damage(model):
        language, action = model['language_model'], model['action_model']
        for i in range(3):
            del language[f'base_model.lora_model.model.model.layers.{i}.mlp.up_proj.lora_A.1.weight']
        del model['mlp1']['3.bias']
        action['action_head.2.weight'] = action['action_head.2.weight'][:-1].clone()
        model['vision_model']['vision_model.surprise'] = torch.zeros(2)

    rewrite(run, damage)
    with pytest.raises(CheckpointError) as caught:
        load(run)
    text = str(caught.value)
    assert 'nothing was loaded' in text and '4 missing' in text and '1 unexpected' in text and '1 misshapen' in text
    assert 'layers.{0-2}.mlp.up_proj.lora_A.1.weight' in text and 'mlp1.3.bias' in text
    assert (
        'vision_model.vision_model.surprise' in text and 'action_head.2.weight: (71, 144), expected (72, 144)' in text
    )


def test_missing_dead_blocks_do_not_matter(run):
    def strip(model):
        action = model['action_model']
        for key in [k for k in action if '.blocks.3.' in k or '.blocks.4.' in k or 'vision_model.norm.' in k]:
            del action[key]

    expected = load(run).model.state_dict()
    rewrite(run, strip)
    found = load(run).model.state_dict()
    assert all(torch.equal(found[k], expected[k]) for k in expected)


@pytest.mark.parametrize(
    ('stage', 'message'),
    [
        ('stage1', 'says stage1, but the language model holds two gated adapters'),
        (None, 'must say stage'),
        ('x', "'x'"),
    ],
)
def test_wrong_or_missing_stage(run, stage, message):
    (run / 'config.json').write_text(json.dumps({'num_of_meta_query': 8} | ({'stage': stage} if stage else {})))
    with pytest.raises(CheckpointError, match=message):
        load(run)


def test_wrong_number_of_queries(run):
    (run / 'config.json').write_text(json.dumps({'stage': 'stage2', 'num_of_meta_query': 16}))
    with pytest.raises(CheckpointError, match='it is not its tokenizer'):
        load(run)


def test_wrong_number_of_views(tmp_path):
    out = convert(doubles.golden('wrist_stage1'), tmp_path / 'own', views=2)
    with pytest.raises(CheckpointError, match='a model of 2 views, 1 were asked for'):
        load(out, views=1)


def test_sizes_that_the_file_does_not_say(run):
    (run / 'tiny_architecture.json').unlink()
    with pytest.raises(CheckpointError, match='put an architecture.json'):
        load(run)


@pytest.mark.parametrize('key', ['q01', 'q99'])
def test_missing_statistics_key(run, key):
    content = json.loads((run / 'dataset_statistics.json').read_text())
    del content['toy']['proprio'][key]
    (run / 'dataset_statistics.json').write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"toy.proprio lacks '{key}'"):
        load(run)


def test_missing_files(run, tmp_path):
    shutil.rmtree(run / 'tokenizer')
    with pytest.raises(CheckpointError, match='Eagle2-2B'):
        load(run)
    assert load(run, tokenizer=doubles.golden('state_stage2_reason') / 'tokenizer').config.proprio
    (run / 'dataset_statistics.json').unlink()
    with pytest.raises(CheckpointError, match=r'dataset_statistics\.json'):
        load(run)
    weights(run).unlink()
    with pytest.raises(CheckpointError, match='no checkpoint in checkpoints'):
        load(run)
    with pytest.raises(CheckpointError, match='no checkpoint at'):
        load(tmp_path / 'nothing' / 'here')


def test_parts_missing_from_the_file(run):
    file = weights(run)
    content = torch.load(file, weights_only=True)
    del content['model']['action_model']
    torch.save(content, file)
    with pytest.raises(CheckpointError, match='lacks the parts action_model'):
        load(run)
    torch.save({'state_dict': {}}, file)
    with pytest.raises(CheckpointError, match="no entry 'model'"):
        load(run)


def test_hub_id_without_network_says_what_to_do(monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(CheckpointError, match='hf download nobody-here/no-such-model'):
        load('nobody-here/no-such-model')


@pytest.mark.parametrize('part', ['model.safetensors', 'config.json'])
def test_damaged_own_format(tmp_path, part):
    out = convert(doubles.golden('state_stage2_reason'), tmp_path / 'own')
    file = out / part
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=r'truncated or damaged|not JSON'):
        load(out)


def test_own_format_of_another_variant(tmp_path):
    out = convert(doubles.golden('state_stage2_reason'), tmp_path / 'own')
    meta = json.loads((out / 'config.json').read_text())
    meta['model']['proprio'] = False
    meta['model']['horizon'] = 4
    (out / 'config.json').write_text(json.dumps(meta))
    with pytest.raises(CheckpointError) as caught:
        load(out)
    assert '4 unexpected' in str(caught.value) and 'expert.state_embed.0.weight' in str(caught.value)
    assert '3 misshapen' in str(caught.value)
    meta['model']['querys'] = 3
    (out / 'config.json').write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match="Did you mean 'queries'"):
        load(out)
    (out / 'config.json').write_text(json.dumps({**meta, 'format': 'other/2'}))
    with pytest.raises(CheckpointError, match="format 'other/2'"):
        load(out)


@pytest.mark.skipif(sys.platform != 'linux', reason='reads the memory map of the process')
def test_loading_does_not_hold_the_file_twice(run):
    """Tensors of an opened source are views of the mapped file, those of a loaded model are copies."""
    source = open_source(run)
    name = 'expert.head.0.weight'
    at, inside = source.tensors[name].data_ptr(), []
    for line in Path('/proc/self/maps').read_text().splitlines():
        if line.endswith(str(weights(run))):
            low, high = (int(x, 16) for x in line.split()[0].split('-'))
            inside.append(low <= at < high)
    assert any(inside)
    loaded = load(run).model.state_dict()[name]
    with torch.no_grad():
        loaded.zero_()
    assert np.abs(open_source(run).tensors[name].numpy()).max() > 0


def test_a_revision_that_is_asked_for_has_to_be_the_one_there(tmp_path):
    folder = save(doubles.small_bundle(tmp_path), tmp_path / 'own')
    revision = load(folder).revision
    assert load(folder, revision=revision).revision == revision
    with pytest.raises(CheckpointError, match=f"holds revision '{revision}', 'v2' was asked for"):
        load(folder, revision='v2')
