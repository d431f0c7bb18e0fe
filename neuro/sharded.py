"""``trainer=fsdp`` and ``trainer=deepspeed``: no rank holds a whole large model."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from typing_extensions import override

from neuro.errors import InputError
from neuro.gradients import total_norm


class Sharded(DDPStrategy):
    """DDP, but of some layers each rank holds a share of the weights, gradients and moments.

    A layer's weights are brought together when it is used (ZeRO stage 3, torch's ``fully_shard``).
    All other parts are whole on every rank, so that what no rank has seen has no gradient and
    stays, as with ``trainer=ddp``. A checkpoint is one file, the same as one process writes.

    Every rank must use a sharded layer equally often. In training it does; before the test, whose
    answers differ in length, each rank takes all weights together.

    Args:
        layers: Names of the classes that are sharded.
    """

    def __init__(self, layers: Sequence[str]) -> None:
        super().__init__(find_unused_parameters=True)
        self.layers = tuple(layers)

    @override
    def setup(self, trainer: L.Trainer) -> None:
        assert self.accelerator is not None
        assert self.model is not None
        if trainer.state.fn == "fit":
            _check(trainer)
            super().setup(trainer)
            # Lightning's own would mix whole gradients and shares.
            plugin: Any = self.precision_plugin
            plugin.clip_grad_by_norm = lambda optimizer, value: clip(plugin, optimizer, value)
        else:
            self.accelerator.setup(trainer)
            self.model_to_device()
            self.setup_precision_plugin()

    @override
    def configure_ddp(self) -> None:
        module = self.lightning_module
        assert module is not None
        found = [one for one in module.modules() if type(one).__name__ in self.layers]
        if not found:
            raise InputError(
                f"trainer=fsdp shards layers of the classes {', '.join(self.layers)}, and "
                f"{type(module).__name__} has none. Take trainer=ddp, or set "
                f"trainer.strategy.layers to the classes of its large layers."
            )
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        for one in found:
            fully_shard(one, mesh=mesh)
        ignored = [name for name, one in module.named_parameters() if isinstance(one, DTensor)]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, ignored)
        super().configure_ddp()

    @override
    def on_test_start(self) -> None:
        """Take all weights together: ranks may speak for differently long."""
        assert self.lightning_module is not None
        for one in self.lightning_module.modules():
            if isinstance(one, FSDPModule):
                one.set_reshard_after_forward(False)
                one.unshard()

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        module = self.lightning_module
        assert module is not None
        trained = {name for name, one in module.named_parameters() if one.requires_grad}
        # What is frozen enters no checkpoint and need not be brought together.
        return {
            name: _whole(one)
            for name, one in module.state_dict().items()
            if name in trained or not isinstance(one, DTensor)
        }

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module = self.lightning_module
        assert module is not None
        own = module.state_dict()
        state = {name: _like(one, own.get(name)) for name, one in checkpoint["state_dict"].items()}
        module.load_state_dict(state, strict=strict)

    @override
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Tensor]:
        state = super().optimizer_state(optimizer)
        return {**state, "state": _mapped(state["state"], _whole)}

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            owners = [one for group in optimizer.param_groups for one in group["params"]]
            moments = {
                place: {name: _like(one, owners[place]) for name, one in own.items()}
                for place, own in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": moments})


def deepspeed(**settings: Any) -> Strategy:
    """Return Lightning's DeepSpeed strategy.

    Args:
        settings: Its arguments.

    Raises:
        InputError: DeepSpeed is not installed.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise InputError(
            "trainer=deepspeed needs a package that is not installed. Run "
            "pip install 'neuro[deepspeed]', which compiles it, or take trainer=fsdp."
        )
    from lightning.pytorch.strategies import DeepSpeedStrategy

    return DeepSpeedStrategy(**settings)


def clip(plugin: Any, optimizer: Optimizer, value: float | int) -> None:
    """Scale all gradients so that their norm over all ranks and layers is at most a value."""
    gradients = [one.grad for one in plugin.main_params(optimizer) if one.grad is not None]
    factor = (value / (total_norm(gradients) + 1e-6)).clamp(max=1.0)
    for one in gradients:
        (one.to_local() if isinstance(one, DTensor) else one).mul_(factor.to(one.dtype))


def _check(trainer: L.Trainer) -> None:
    """Refuse what cannot work with shares."""
    from neuro.callbacks.answer_samples import AnswerSamples

    if any(isinstance(one, AnswerSamples) for one in getattr(trainer, "callbacks", ())):
        raise InputError(
            "trainer=fsdp: callbacks.samples lets one rank answer alone, and no rank has all "
            "weights. Add ~callbacks.samples; the test has the answers."
        )
    if trainer.precision == "16-mixed":
        raise InputError(
            "trainer=fsdp: trainer.precision=16-mixed scales the loss by what each rank sees. "
            "Set bf16-mixed or 32-true."
        )


def _whole(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _like(value: Any, owner: Any) -> Any:
    """Share a tensor out as another one is."""
    if (
        not isinstance(owner, DTensor)
        or not isinstance(value, Tensor)
        or isinstance(value, DTensor)
    ):
        return value
    if value.shape != owner.shape:  # how many steps were done
        return value
    return distribute_tensor(value.to(owner.device), owner.device_mesh, owner.placements)


def _mapped(state: Any, function: Any) -> Any:
    if isinstance(state, dict):
        return {name: _mapped(one, function) for name, one in state.items()}
    return function(state)
