"""A mixture in a network's place computes what its experts say, weighed by its router."""

from __future__ import annotations

import torch

from moec.dialect import Routing
from moec.experts.dense_place import put_experts
from moec.recognition.ffn import find_ffns
from moec.weights import lazy as weights
from tests.zoo import captured


def test_equal_experts_are_the_network_and_another_one_is_not() -> None:
    base = captured("llama", cache=False)
    sample = {"input_ids": torch.arange(3, 17).view(2, 7), "attention_mask": torch.ones(2, 7, dtype=torch.int64)}
    wanted = base.run(**sample)["logits"]
    for factor, same in ((1.0, True), (1.5, False)):
        program = base.clone()
        ffn = find_ffns(program)[0][0]
        stacks = {
            "router": weights.zeros((2, ffn.hidden), torch.float32),
            "w_in": weights.stack([ffn.w_in] * 2),
            "w_out": weights.stack([weights.scale(ffn.w_out, factor), ffn.w_out]),
        }
        names = [program.add_weight(f"new.{name}", w) for name, w in stacks.items()]
        logits, y = put_experts(program, ffn, ffn.x, [*names, "", ""], Routing(2, combine="renormalize"), "test")
        program.check()
        program.finish()
        assert (logits.meta["val"].shape[-1], y.meta["moec_pass"]) == (2, "test")
        assert bool((program.run(**sample)["logits"] - wanted).abs().max() < 1e-5) is same
