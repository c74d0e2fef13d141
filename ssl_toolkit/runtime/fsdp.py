"""Fully sharded data parallelism (FSDP2): each process holds a shard of weights, gradients and optimizer state.

Zhao et al. 2023: "PyTorch FSDP", arXiv 2304.11277; here its second version, torch's ``fully_shard``. A stage of the
backbone has its weights whole only while it computes, and the rest of the task while a step's gradient is computed.
Nothing else changes: W processes compute what one process would, and what DDP computes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from ssl_toolkit.checkpoint.io import AtomicCheckpointIO, read_to_resume

NAME = "fsdp2"

_PRECISIONS = ("32-true", "bf16-mixed")
# what computes with the weights; a task need not have all of them
_STEPS = ("training_step", "validation_step", "test_step", "scores", "frozen_features")


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all processes, on any device: ``--trainer.strategy fsdp2``.

    Checkpoints are those of `ssl_toolkit.checkpoint.sharded`. They can be resumed by any number of processes, and
    without this strategy; and the other way round.
    """

    strategy_name = NAME

    def setup_environment(self) -> None:
        """Joins the other processes, all of which are data parallel."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def shard(self, task: LightningModule) -> None:
        """Shards the weights of a task, once, when its layers are complete.

        Raises:
            ValueError: If the task holds what cannot work with shards.
        """
        from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

        if isinstance(task, FSDPModule):
            return
        check_task(task)
        mesh = self.device_mesh["data_parallel"]
        for parameter in task.parameters():
            # the only layout that can be sharded; feature maps stay channels last all the same
            parameter.data = parameter.data.contiguous()
        for stage in _stages(task):
            fully_shard(stage, mesh=mesh)
        fully_shard(task, mesh=mesh)
        for name in filter(lambda each: hasattr(task, each), _STEPS):
            register_fsdp_forward_method(task, name)

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """As everywhere else: the callbacks are to know their state when the run starts."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """The optimizer's state is loaded when there is one."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """This process's shards."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """This process's shards."""
        return Strategy.optimizer_state(self, optimizer)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Each process saves its shards."""
        from ssl_toolkit.checkpoint import sharded

        path = Path(self.broadcast(filepath))
        problem = sharded.save(path, checkpoint, self._names())
        if isinstance(self.checkpoint_io, AtomicCheckpointIO):
            self.checkpoint_io.note(path, problem)
        elif problem:
            raise OSError(f"could not save {path} ({problem})")

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Each process loads its shards, from a sharded checkpoint or from a whole one."""
        dtensors = self._dtensors()
        checkpoint = read_to_resume(Path(self.broadcast(checkpoint_path)), dtensors)
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: _distribute(tensor, dtensors.get(name)) for name, tensor in weights.items()}
        return checkpoint

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        """Sets this process's shards."""
        assert self.lightning_module is not None
        self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        """Sets this process's shards."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = dict(enumerate(each for group in optimizer.param_groups for each in group["params"]))
            for number, values in state["state"].items():
                for name, value in values.items():
                    values[name] = _distribute(value, parameters.get(number))
            optimizer.load_state_dict(state)

    def _dtensors(self) -> dict[str, Tensor]:
        """The sharded parameters, by name."""
        assert self.lightning_module is not None
        named = self.lightning_module.state_dict(keep_vars=True).items()
        return {name: tensor for name, tensor in named if hasattr(tensor, "full_tensor")}

    def _names(self) -> list[list[str]]:
        """The names of each optimizer's parameters, in its order."""
        names = {id(tensor): name for name, tensor in self._dtensors().items()}
        return [
            [names[id(each)] for group in optimizer.param_groups for each in group["params"]]
            for optimizer in self.optimizers
        ]


StrategyRegistry.register(NAME, ShardedStrategy, description="FSDP2 over all processes")


def check_task(task: Any) -> None:
    """Raises a ValueError for what a task holds that needs whole weights."""
    found = [type(each).__name__ for each in task.regularizers if not each.shardable]
    if found:
        raise ValueError(
            f"trainer.strategy {NAME} keeps the weights in parts, which {', '.join(found)} cannot work with; leave "
            f"{'it' if len(found) == 1 else 'them'} out, or use trainer.strategy ddp"
        )
    if not task.optimizer_spec.shardable:
        raise ValueError(
            f"trainer.strategy {NAME} keeps the weights in parts, but {type(task.optimizer_spec).__name__} needs "
            "whole layers; use another optimizer (AdamW, SGD), or trainer.strategy ddp"
        )
    if task.compile_backbone:
        raise ValueError(f"model.compile does not work with trainer.strategy {NAME}: set it to false, or use ddp")
    if not task.sync_batchnorm and any(isinstance(each, _BatchNorm) for each in task.modules()):
        raise ValueError(f"trainer.strategy {NAME} needs model.sync_batchnorm: the processes share BatchNorm's state")


def check_run(objects: Any, budget: str | None = None, speed: str | None = None) -> None:
    """Raises a ValueError for what a run holds that needs whole weights.

    Args:
        objects: What the configuration describes.
        budget: That of the command line.
        speed: Likewise.
    """
    if objects.trainer.strategy != NAME:
        return
    check_task(objects.model)
    if objects.average.kind != "none":
        raise ValueError(f"average.kind {objects.average.kind} does not work with trainer.strategy {NAME}: use ddp")
    if objects.early_stopping.patience is not None and objects.early_stopping.restore_best:
        raise ValueError(
            f"early_stopping keeps the best weights as a whole, which trainer.strategy {NAME} does not have: set "
            "early_stopping.restore_best to false, or use ddp"
        )
    precision = objects.trainer.precision or "32-true"
    if str(precision) not in (*_PRECISIONS, "32"):
        raise ValueError(f"trainer.strategy {NAME} computes in {' or '.join(_PRECISIONS)}, got {precision}")
    for option, value in (("budget", budget), ("speed", speed)):
        if value is not None:
            raise ValueError(
                f"--{option} does not work with trainer.strategy {NAME}: give trainer.max_epochs or max_steps, or "
                "measure with ddp"
            )


def _distribute(tensor: Any, like: Tensor | None) -> Any:
    """A whole tensor, sharded like another one of its shape; anything else as it is."""
    if like is None or not isinstance(tensor, Tensor) or hasattr(tensor, "full_tensor") or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    dtensor = cast(Any, like)
    # every process has all of it: nothing has to be sent
    return distribute_tensor(
        tensor.detach().to(like.device), dtensor.device_mesh, dtensor.placements, src_data_rank=None
    )


def _stages(task: LightningModule) -> list[nn.Module]:
    """The stages of the backbone that have weights and are called as a whole."""
    backbone: Any = task.backbone
    modules = dict(backbone.model.named_modules())
    found = [modules[name] for name in backbone.stages if name in modules]
    lists = (nn.ModuleList, nn.ModuleDict)
    return [each for each in found if not isinstance(each, lists) and any(True for _ in each.parameters())]
