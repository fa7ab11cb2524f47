"""Which device to work on."""

import torch


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device to work on.

    Args:
        device: "auto" (CUDA where there is one, else the CPU), "cpu", "cuda" or "cuda:0", ...

    Raises:
        ValueError: A device that is not there; the message lists those that are.
    """
    there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if str(device) == "auto":
        return torch.device("cuda" if len(there) > 1 else "cpu")
    name = "cuda:0" if str(device) == "cuda" else str(device)
    if name not in there:
        raise ValueError(f"device must be 'auto' or one of those that are there ({', '.join(there)}), "
                         f"got {str(device)!r}")
    return torch.device(device)


def device_name(device: torch.device) -> str:
    """Return how a record calls a device: "cpu", or the model of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
