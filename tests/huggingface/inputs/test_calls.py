"""Which outputs of a model moec compares."""

from __future__ import annotations

import torch

from moec.huggingface.inputs.calls import results


def test_results_are_tensors_that_mean_something() -> None:
    output = {
        "loss": torch.ones(()),
        "logits": torch.ones(2),
        "router_logits": torch.ones(3),
        "aux_loss": torch.ones(()),
        "hidden_states": (torch.ones(1),),
    }
    assert list(results(output)) == ["logits"]
