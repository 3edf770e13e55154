"""Options of a training run: one YAML file in ``config/training/`` or anywhere else."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import option
from ..model.config import RECIPES


@dataclass(frozen=True)
class GroundingWeights:
    """Weights of the losses that exist only in training and need to know where the objects are."""

    pointing: float = option(0.0, 'find the named object in the DINO features of every view', ge=0.0)
    patches: float = option(0.0, 'tell from each patch of both towers which objects lie in it', ge=0.0)
    words: float = option(0.0, 'make image tokens resemble the embeddings of the words for what they show', ge=0.0)
    naming: float = option(0.0, 'tell from the latent what kind of object is named', ge=0.0)
    latent: float = option(0.0, 'tell from the latent where the named object is in the first view', ge=0.0)


@dataclass(frozen=True)
class Mixture:
    """Shares of the dialogue kinds (specification 9.6)."""

    plain: float = option(0.4, 'instruction only', ge=0.0, le=1.0)
    qa: float = option(0.2, 'a caption or a question about the scene first', ge=0.0, le=1.0)
    cc: float = option(0.2, 'a situation from which the instruction follows', ge=0.0, le=1.0)
    cr: float = option(0.2, 'a rewritten command', ge=0.0, le=1.0)
    primitive: float = option(0.2, 'of the plain ones: with the move primitive', ge=0.0, le=1.0)


@dataclass(frozen=True)
class Training:
    """One training run."""

    recipe: str = option('stage1', 'what is trained', choices=RECIPES)
    model: str = option('tiny', 'preset or YAML file of a new model; used when there is no init')
    init: str = option('', 'checkpoint to start from')
    datasets: tuple[str, ...] = option((), 'folders of episodes')
    shares: tuple[float, ...] = option((), 'share of each dataset in a batch; empty: by frames')
    statistics: str = option(
        '',
        "dataset_statistics.json; 'data': computed from all datasets; 'own': from each by itself, for arms of several "
        "speeds or places; empty: of the checkpoint, else 'data'",
    )
    angles: str = option(
        'all', 'of the state in new statistics; steady: those off that jump from -pi to pi', choices=('all', 'steady')
    )
    clipped: float = option(0.1, 'largest share of steps that the statistics may cut off in a channel', ge=0.0, le=1.0)
    fewest: int = option(5, 'fewest episodes to train on', ge=1)
    validation: tuple[str, ...] = option((), 'folders of held-out episodes, instead of a share of the datasets')
    retell: bool = option(False, 'also ask for what an episode does not do (grounding without motion)')
    acts: bool = option(True, 'compute the visual features of the expert; False trains words alone, which costs half')
    steps: int = option(1000, 'optimiser steps', ge=1)
    batch: int = option(32, 'frames per step', ge=1, le=65536)
    accumulate: int = option(1, 'parts a batch is computed in', ge=1, le=1024)
    general_batch: int = option(2, 'dialogues without motion beside each batch; 0: none', ge=0, le=4096)
    tellings: int = option(1, 'dialogues about each picture, which is encoded once for all of them', ge=1, le=16)
    length_groups: int = option(1, 'parts a batch is sorted into by length, so that less is padded', ge=1, le=16)
    max_new_tokens: int = option(0, 'longest sentence of the result; 0: as the model has it', ge=0, le=4096)
    general: str = option('', 'conversations about pictures (LLaVA form): file, or folder with one; for general_batch')
    general_share: float = option(0.5, 'of the general batch taken from them; the rest is about scenes', ge=0.0, le=1.0)
    two_adapters: bool = option(False, 'a model with one adapter gets the second and the gate, as for recipe stage2')
    optimizer: str = option(
        'adamw', 'muon: for the matrices of layers, fewer steps from random weights', choices=('adamw', 'muon')
    )
    lr: float = option(5e-5, 'learning rate', ge=0.0, le=1.0)
    warmup: int = option(0, 'steps of linear warm-up', ge=0)
    decay: float = option(0.0, 'share of the steps, at the end, over which the rate falls to nothing', ge=0.0, le=1.0)
    weight_decay: float = option(0.0, 'of matrices only', ge=0.0, le=1.0)
    beta2: float = option(0.999, 'of AdamW', ge=0.0, le=1.0)
    clip: float = option(1.0, 'largest norm of the gradient', ge=0.0)
    ema: float = option(0.0, 'decay of the averaged weights that are saved; 0: none', ge=0.0, le=1.0)
    dino: bool = option(True, 'train the DINO tower where the expert is trained; False: for few demonstrations')
    draws: int = option(1, 'draws of noise and time per frame (block mask)', ge=1, le=64)
    path_weight: float = option(0.0, 'weight of the error of the summed steps, that is of where a chunk ends', ge=0.0)
    mixture: Mixture = option(Mixture, 'dialogue kinds')
    grounding: GroundingWeights = option(GroundingWeights, 'losses that need to know where objects are')
    augment: str = option('color', 'of the pictures', choices=('none', 'color', 'full'))
    mask_padding: bool = option(True, 'leave steps after the end of an episode out; the released training did not')
    held_out: float = option(0.05, 'share of the episodes kept for validation', ge=0.0, le=0.5)
    validate_every: int = option(500, 'steps between two validations', ge=1)
    validation_frames: int = option(256, 'frames of one validation', ge=1)
    save_every: int = option(200, 'steps between two states from which the run can go on', ge=1)
    precision: str = option(
        'no', 'mixed precision; auto: bf16 where the device has instructions for it', choices=('no', 'bf16', 'auto')
    )
    checkpoint_activations: bool = option(False, 'less memory, more time')
    sharded: bool = option(False, 'of several processes each holds a share of every weight (FSDP), not all (DDP)')
    seed: int = option(0, 'of everything random', ge=0)

    def gains_adapter(self, stage: int) -> bool:
        """Whether a model of ``stage`` (1 or 2) gets the second adapter and the gate before this run."""
        return stage == 1 and (self.two_adapters or self.recipe == 'stage2')
