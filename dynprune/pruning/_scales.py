"""The scales of batch norms: one number per channel."""

from torch.nn.modules.batchnorm import _BatchNorm

from dynprune.system import GradientSystem


def scales(system: GradientSystem) -> dict[str, str]:
    """Return the scales of the batch norms that are trained.

    Args:
        system: The system.

    Returns:
        Name of the scale to name of its module, in the order of modules.
    """
    names = {id(part): name for name, part in system.module.named_parameters()}
    return {
        names[id(part.weight)]: name
        for name, part in system.module.named_modules()
        if isinstance(part, _BatchNorm)
        and part.affine
        and names[id(part.weight)] in system.names
    }
