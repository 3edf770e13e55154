"""One process or several: each with the whole model (DDP), or each with a share of every weight (FSDP)."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..model.decoder import Decoder
from .objective import Objective
from .state import Average

PATIENCE = timedelta(hours=6)
"""How long processes wait for each other: the first one makes caches and validates while the others do nothing."""


class Team:
    """The processes of a run.

    Without sharding the objective that is trained is the one that is evaluated and saved. With it every process holds
    its share of the weights, gradients, optimiser and average, layer by layer gathered only while it computes; the
    first process keeps a whole copy in main memory, which is filled when there is something to evaluate or to save.

    Attributes:
        module: what is trained; its parameters are the ones an optimiser needs. sharded: it holds shares.

    Raises:
        ConfigError: sharding with a single process.
    """

    def __init__(self, sharded: bool = False) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

        # `accelerate launch --use_fsdp` asks for it in the environment. accelerate itself shards on GPUs only and
        # knows nothing of layers that are called piece by piece, so it is not left to it.
        asked = os.environ.pop('ACCELERATE_USE_FSDP', 'false').lower() in ('true', '1')
        self.sharded = sharded or asked
        # A batch may leave parts unused: no motion in stage 0, no language-only dialogues in every step.
        self.accelerator = Accelerator(
            mixed_precision='no',  # the objective reduces it
            cpu=not torch.cuda.is_available(),
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=True),
                InitProcessGroupKwargs(timeout=PATIENCE),
            ],
        )
        if self.sharded and self.size == 1:
            raise ConfigError(
                'sharded weights need several processes: `accelerate launch --num_processes N -m instructvla_ros.cli '
                'train ...`, or leave `sharded` out'
            )
        self.module: Any = None
        self._whole: Objective | None = None

    @property
    def size(self) -> int:
        """Number of processes."""
        return int(self.accelerator.num_processes)

    @property
    def first(self) -> bool:
        """Whether this is the process that validates, saves and speaks."""
        return bool(self.accelerator.is_main_process)

    @property
    def device(self) -> torch.device:
        """Of this process."""
        place: torch.device = self.accelerator.device
        return place

    def take(self, objective: Objective) -> Objective:
        """Spread the weights over the processes; returns the module to train."""
        self.module = objective
        if self.size > 1:
            # What was made here from random numbers has to be the same everywhere; DDP would do it, sharding does not.
            for parameter in objective.parameters():
                if parameter.requires_grad:
                    self._from_first(parameter)
        if self.sharded:
            if self.first:
                self._whole = objective
                self.module = copy.deepcopy(objective)
            self.module.sharded = True
            shard(self.module, self.size, self.device)
        return self.module

    def _from_first(self, parameter: nn.Parameter) -> None:
        moved = parameter.detach().to(self.device)
        torch.distributed.broadcast(moved, 0)
        with torch.no_grad():
            parameter.copy_(moved)

    def prepare(self, optimizer: torch.optim.Optimizer) -> tuple[Callable[..., Any], Any]:
        """What computes a step's loss, and the optimiser of the module's parameters."""
        if self.sharded:
            return self.module, optimizer
        wrapped, optimizer = self.accelerator.prepare(self.module, optimizer)
        return wrapped, optimizer

    def clip(self, optimizer: Any, most: float) -> float:
        """Clip the gradient of all processes; its norm before that."""
        norm: Any = nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g['params']], most)
        return float(norm.full_tensor() if hasattr(norm, 'full_tensor') else norm)

    def any(self, mine: bool) -> bool:
        """Whether it is true in one of the processes."""
        if self.size == 1:
            return mine
        return bool(self.accelerator.reduce(torch.tensor(float(mine), device=self.device)).item())

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Of numbers by name; a name counts in the processes that have it."""
        if self.size == 1:
            return dict(values)
        every: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(every, dict(values))
        found = {n: [e[n] for e in every if n in e] for e in every for n in e}
        return {n: sum(v) / len(v) for n, v in found.items()}

    def place(self, value: Tensor, like: Tensor) -> Tensor:
        """The share of a whole tensor that belongs to a parameter's share; without sharding the tensor."""
        value = value.to(self.device)
        if not self.sharded or value.shape != like.shape:
            return value
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(like, DTensor)
        return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)

    def whole(self, content: Any) -> Any:
        """Nested dicts and lists with every shared tensor gathered, in main memory of the first process.

        Every process has to call it with the same content; the others get None in place of tensors.
        """
        if isinstance(content, dict):
            return {k: self.whole(v) for k, v in content.items()}
        if isinstance(content, list):
            return [self.whole(v) for v in content]
        if not isinstance(content, Tensor):
            return content
        gathered: Tensor = content.full_tensor() if hasattr(content, 'full_tensor') else content  # type: ignore[operator]
        return gathered.detach().cpu() if self.first else None

    @contextmanager
    def averaged(self, average: Average) -> Iterator[Objective | None]:
        """The objective with averaged weights, whole and on the device, in the first process; None in the others.

        Every process has to enter it.
        """
        if not self.sharded:
            if not self.first:
                yield None
                return
            average.swap(self.module)
            try:
                yield self.module
            finally:
                average.swap(self.module)
                self.module.train()
            return
        own = dict(self._whole.named_parameters()) if self._whole is not None else {}
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                value = self.whole(average.values.get(name, parameter))
                if name in own:
                    own[name].data.copy_(value)
        if self._whole is None:
            yield None
            return
        self._whole.to(self.device)
        try:
            yield self._whole
        finally:
            self._whole.to('cpu')


def shard(objective: Objective, processes: int, device: torch.device) -> None:
    """Turn every parameter into this process's share of it (FSDP2). The layers are units; the rest is one more.

    Processes have to run the same layers in every step, because each waits for the shares of all others.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (processes,))
    for stack in [m for m in objective.modules() if isinstance(m, nn.ModuleList)]:
        for layer in stack:
            fully_shard(layer, mesh=mesh)
    for decoder in [m for m in objective.modules() if isinstance(m, Decoder)]:
        run = decoder._layer
        for layer in decoder.layers:
            # A decoder calls the parts of a layer, not the layer: its weights are gathered around this method.
            layer.run = _of(run, layer)  # type: ignore[assignment]
            register_fsdp_forward_method(layer, 'run')
        decoder._layer = lambda layer, *args: layer.run(*args)  # type: ignore[method-assign]
    fully_shard(objective, mesh=mesh)


def _of(run: Callable[..., Tensor], layer: nn.Module) -> Callable[..., Tensor]:
    return lambda *args: run(layer, *args)
