"""Routers apart from the rest of a model: frozen, or with a learning rate of their own."""

from __future__ import annotations

from torch import nn

from moec.training.mixtures import router_parameters


def freeze_routers(model: nn.Module, frozen: bool = True) -> tuple[str, ...]:
    """Leave routers as they are while the rest is trained (or, with `frozen=False`, let them learn again). Returns the
    names of their parameters. What an optimizer holds already it still decays: make it afterwards.

    Raises:
        MoecError: M201 where there is no router.
    """
    found = router_parameters(model)
    for parameter in found.values():
        parameter.requires_grad_(not frozen)
        if frozen:
            parameter.grad = None
    return tuple(found)


def router_groups(model: nn.Module, lr: float, router_lr: float, **routers: float) -> list[dict[str, object]]:
    """Parameter groups for an optimizer of torch: the routers apart, with a learning rate of their own.

    Args:
        lr, router_lr: of the rest and of the routers. routers: more of the routers' own, such as `weight_decay=0.0`.

    Returns:
        Two groups with `name` `"rest"` and `"routers"`; parameters that need no gradient are in neither.

    Raises:
        MoecError: M201 where there is no router.
    """
    apart = {id(p) for p in router_parameters(model).values()}
    learning = [p for p in model.parameters() if p.requires_grad]
    rest, own = ([p for p in learning if (id(p) in apart) is wanted] for wanted in (False, True))
    return [{"params": rest, "lr": lr, "name": "rest"}, {"params": own, "lr": router_lr, "name": "routers", **routers}]
