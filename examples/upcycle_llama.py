"""Upcycle a small random Llama into a mixture of experts, train it a little, save it as a Mixtral, and compile it.

usage: python examples/upcycle_llama.py [FOLDER]
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import moec

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "upcycled")
torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
llama = LlamaForCausalLM(LlamaConfig(vocab_size=256, max_position_embeddings=256, **sizes)).eval()
ids = torch.randint(0, 256, (4, 32))

# one graph with symbolic batch and sequence; each feed-forward block becomes 8 copies of it, of which a token uses 2
program, steps = moec.Pipeline.parse("upcycle(experts=8, top_k=2)").run(moec.capture(llama))
mixture = program.module(trainable=True)  # called like the Llama, returns what it returns
with torch.no_grad():
    before, now = llama(input_ids=ids).logits, mixture(input_ids=ids).logits
print(f"{steps[0].rewrites} blocks upcycled, largest difference {(now - before).abs().max():.1e}")

# copies become specialists only by training
optimizer = torch.optim.AdamW(mixture.parameters(), lr=1e-3)
for step in range(20):
    output = mixture(input_ids=ids, labels=ids, output_router_logits=True)
    output.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 5 == 0:
        print(f"step {step:2}: loss {output.loss.item():.3f}")

# the checkpoint is a stock Mixtral of transformers
kind = moec.save_hf(mixture, folder / "checkpoint")
saved = AutoModelForCausalLM.from_pretrained(folder / "checkpoint", dtype=torch.float32).eval()
with torch.no_grad():
    trained = mixture(input_ids=ids).logits
    print(f"checkpoint/ is a {kind}, largest difference {(saved(input_ids=ids).logits - trained).abs().max():.1e}")

# the engine is there only if it is proven equal to the trained module
print(moec.compile(mixture, out=folder / "engine").headline())
got = moec.load(folder / "engine")(input_ids=ids)["logits"]
print(f"engine/ and the trained module: largest difference {(got - trained).abs().max():.1e}")
print(f"engine/ and the Llama: largest difference {(got - before).abs().max():.1e}")
