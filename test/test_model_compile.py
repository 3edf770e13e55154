"""A piece through torch.compile with a real compiler; starting it takes longer than all other tests of the model."""

from __future__ import annotations

import shutil

import model_doubles as doubles
import pytest

doubles.needs_model()

import torch  # noqa: E402

from instructvla_ros.model.graphs import Graphs, Slot  # noqa: E402


def test_a_compiled_piece(tmp_path, monkeypatch, caplog):
    if not (shutil.which('g++') or shutil.which('clang++')):
        pytest.skip('torch.compile needs a C++ compiler on a CPU')
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path / 'compiled'))
    small = doubles.small_bundle(tmp_path)
    slot, embed = Slot(Graphs(torch.device('cpu'), compile=True)), small.model.expert.action_embed

    def work(steps, t):
        return (embed(steps, t),)

    for seed in range(2):
        steps, t = doubles.inputs(small.config, seed=seed)[3], torch.rand(1)
        torch.testing.assert_close(
            slot.run('embed', work, (steps, t))[0], embed(steps, t).detach(), rtol=1e-4, atol=2e-5
        )
    assert not [r for r in caplog.records if r.name.startswith('instructvla_ros')], 'it fell back'
