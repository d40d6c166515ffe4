"""Training mixtures: a monitor of routers, losses with a stated normalisation, routers apart in an optimizer.

It imports torch, so it is imported by name: `from moec.training import RouterMonitor`.
"""

from moec.routing.losses import sequence_loss, switch_loss, transformers_loss, update_bias, z_loss
from moec.training.callback import RouterCallback
from moec.training.mixtures import router_parameters
from moec.training.monitor import RouterMonitor
from moec.training.parameters import freeze_routers, router_groups

__all__ = [
    "RouterCallback",
    "RouterMonitor",
    "freeze_routers",
    "router_groups",
    "router_parameters",
    "sequence_loss",
    "switch_loss",
    "transformers_loss",
    "update_bias",
    "z_loss",
]
