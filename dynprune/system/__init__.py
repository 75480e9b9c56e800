"""Model + loss + data as θ' = −∇L(θ): coordinates, checks, determinism probe."""

from dynprune.system._batches import (
    BatchWeight,
    check_data,
    is_pair,
    is_resident,
    length,
    read,
)
from dynprune.system._deep_scalar import deep_scalar
from dynprune.system._double_well import double_well
from dynprune.system._exact import ExactSystem, Formulas
from dynprune.system._gradient_system import GradientSystem
from dynprune.system._in_place import OnCopies
from dynprune.system._linear_network import aligned_start, linear_network
from dynprune.system._mean_loss import BatchLoss, LossFn, MeanLoss
from dynprune.system._prunable import is_conv1d, weight_names
from dynprune.system._quadratic import quadratic
from dynprune.system._signature import function_signature, hashes

__all__ = [
    "BatchLoss",
    "BatchWeight",
    "ExactSystem",
    "Formulas",
    "GradientSystem",
    "LossFn",
    "MeanLoss",
    "OnCopies",
    "aligned_start",
    "check_data",
    "deep_scalar",
    "double_well",
    "function_signature",
    "hashes",
    "is_conv1d",
    "is_pair",
    "is_resident",
    "length",
    "linear_network",
    "quadratic",
    "read",
    "weight_names",
]
