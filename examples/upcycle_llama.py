"""Upcycle a small random Llama into a mixture of experts, show that it computes the same, train it a little, and save
it as a Mixtral.

usage: python examples/upcycle_llama.py [CHECKPOINT_FOLDER]
"""

import sys

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import moec
from moec.huggingface.saving.save import save_hf
from moec.huggingface.source import HuggingFaceSource

out = sys.argv[1] if len(sys.argv) > 1 else "llama-as-mixtral"
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=256,
)
llama = LlamaForCausalLM(config).eval()
ids = torch.randint(0, 256, (4, 32))
inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
with torch.no_grad():
    dense = llama(**inputs).logits

# one graph with symbolic batch and sequence; weights stay where they are until somebody reads them
source = HuggingFaceSource.from_model(llama, cache=False)  # training needs no cache of keys and values
program = source.capture()

# each feed-forward block becomes 4 copies, each cut in 2 experts; a token uses 2 copies, so 4 of 8 experts
program, reports = moec.Pipeline.parse("upcycle(experts=4, granularity=2, top_k=4)").run(program)
moe = program.run(**inputs)["logits"]
print(
    f"{reports[0].rewrites} blocks upcycled, largest difference {(moe - dense).abs().max():.1e}, logits' "
    f"standard deviation {dense.std():.3f}"
)

# the checkpoint is a stock Mixtral
kind = save_hf(program, out, source)
saved = AutoModelForCausalLM.from_pretrained(out).eval()
with torch.no_grad():
    print(f"{out}/ is a {kind}, largest difference {(saved(**inputs).logits - dense).abs().max():.1e}")

# copies become specialists only by training; the program itself can be trained
module = program.module(trainable=True)
optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
for step in range(20):
    logits = module(*(inputs[i.name] for i in program.inputs))[0]
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 5 == 0:
        print(f"step {step:2}: loss {loss.item():.3f}")

w_out = module.get_parameter("model.layers.0.mlp.experts.w_out")
print(
    "cosine between the same shard of two copies after training: "
    f"{torch.cosine_similarity(w_out[0].flatten(), w_out[2].flatten(), dim=0).item():.5f}"
)
