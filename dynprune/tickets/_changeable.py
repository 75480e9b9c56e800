"""Which modules of a network may become smaller."""

from collections import Counter
from dataclasses import dataclass
from typing import final

from torch import fx, nn
from torch.nn.utils import parametrize


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Changeable:
    """Hold which modules own their tensors alone.

    Args:
        names: Of modules that are called once, and whose parameters belong to no
            other module.
        read: Names of parameters and buffers that the graph reads without calling
            their module.
    """

    names: frozenset[str]
    read: frozenset[str]

    @staticmethod
    def of(model: nn.Module, module: nn.Module, graph: fx.GraphModule) -> "Changeable":
        """Find the modules that own their tensors alone.

        Args:
            model: The network.
            module: It, or a module in it.
            graph: That of the module.

        Returns:
            Their names in the module.
        """
        owners = Counter(
            id(part)
            for one in model.modules()
            for part in one.parameters(recurse=False)
        )
        calls = [n for n in graph.graph.nodes if n.op == "call_module"]
        # what a called module holds is called by it, perhaps
        times = Counter(
            part
            for node in calls
            for part in module.get_submodule(str(node.target)).modules()
        )
        found = set()
        for node in calls:
            part = module.get_submodule(str(node.target))
            alone = all(owners[id(own)] == 1 for own in part.parameters())
            if alone and times[part] == 1:
                found.add(str(node.target))
        read = {str(n.target) for n in graph.graph.nodes if n.op == "get_attr"}
        return Changeable(names=frozenset(found), read=frozenset(read))


def plain(module: nn.Module) -> bool:
    """Say whether a module is no more than the module of torch it seems to be.

    Args:
        module: The module.

    Returns:
        False for a subclass, a parametrised module, and one with hooks.
    """
    return type(module).__module__.startswith("torch.nn.modules.") and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or parametrize.is_parametrized(module)
    )
