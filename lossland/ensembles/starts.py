"""Where ensembles start: the user's own module and weights, whatever file they came from."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lossland.batchnorm import statistics
from lossland.training import Start
from lossland.weights import Weights, check_belongs, check_finite, tied


def parameters_in(net: nn.Module, state: Mapping[str, Tensor], name: str = "state") -> Weights:
    """Return the parameters of `net` in its state_dict, in the order of the network; nothing is copied.

    Batch-norm statistics are left out: they are estimated anew wherever the network is evaluated. Other buffers must be
    those of `net`, whose own are used.

    Args:
        net: the network.
        state: its `state_dict()`, read from a file, say; or its parameters alone.
        name: of the argument, for messages.

    Raises:
        ValueError: for the state of another network, NaN or infinite numbers, or a buffer that `net` has otherwise.
        TypeError: for what is no dictionary of tensors.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"{name} must be a dictionary parameter name -> tensor, such as net.state_dict(), "
                        f"got {type(state).__name__}")
    buffers, again = dict(net.named_buffers()), tied(net)
    for key in (buffers.keys() & state.keys()) - statistics(net).keys():
        if buffers[key].shape != state[key].shape or not bool((buffers[key].cpu() == state[key].cpu()).all()):
            raise ValueError(f"{name} must have the buffers of the network, but {key!r} differs: load it into net "
                             "first")
    kept = {key: value for key, value in state.items() if key not in buffers and key not in again}
    check_belongs(net, kept, name)
    check_finite(kept, name)
    return {key: kept[key].detach() for key, _ in net.named_parameters()}


def as_start(net: nn.Module, start: Mapping[str, Tensor] | Start, name: str) -> Start:
    """Return weights, velocity and epochs spent of what a run starts from.

    Raises:
        ValueError, TypeError: as `parameters_in`.
    """
    if not isinstance(start, Start):
        return Start(parameters_in(net, start, name))
    velocity = None if start.velocity is None else parameters_in(net, start.velocity, f"{name}.velocity")
    return Start(parameters_in(net, start.weights, f"{name}.weights"), velocity, start.epoch)
