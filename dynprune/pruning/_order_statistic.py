"""The k-th lowest of many numbers, exactly, in the memory of one copy."""

from torch import Tensor


def kth_lowest(values: Tensor, k: int) -> Tensor:
    """Return the k-th lowest of finite numbers, and reorder them.

    On a CPU the numbers are partitioned where they lie; ``torch.kthvalue``, which
    takes an index beside every number (8 bytes each), serves other devices.

    Args:
        values: Shape ``(R,)``, contiguous, float32 or float64, owned by the caller:
            their order is lost.
        k: From 1 for the lowest to R.

    Returns:
        A 0-d tensor: exactly one of the values.

    Example:
        >>> import torch
        >>> kth_lowest(torch.tensor([3.0, 1.0, 2.0]), 2)
        tensor(2.)
    """
    if values.device.type != "cpu":
        return values.kthvalue(k).values
    own = values.detach().numpy()
    own.partition(k - 1)
    return values[k - 1].clone()
