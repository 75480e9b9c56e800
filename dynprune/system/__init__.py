"""Model + loss + data as θ' = −∇L(θ): coordinates, checks, determinism probe."""

from dynprune.system._batches import (
    BatchWeight,
    check_data,
    is_resident,
    length,
    read,
)
from dynprune.system._gradient_system import GradientSystem
from dynprune.system._mean_loss import BatchLoss, LossFn

__all__ = [
    "BatchLoss",
    "BatchWeight",
    "GradientSystem",
    "LossFn",
    "check_data",
    "is_resident",
    "length",
    "read",
]
