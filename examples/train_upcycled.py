"""Upcycle a small Llama, train its experts on this file's own text, compile what came out, and let it write.

usage: python examples/train_upcycled.py [FOLDER]
"""

import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import moec
from moec.execution.generation import generate

out = Path(sys.argv[1] if len(sys.argv) > 1 else "trained")
torch.manual_seed(0)
text = Path(__file__).read_bytes()  # a token is a byte
config = LlamaConfig(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=256,
)
llama = LlamaForCausalLM(config)

# one graph with symbolic sizes and a cache of keys and values, as decoders have; then 4 experts for each dense block
program = moec.capture(llama)
program, _ = moec.Pipeline.parse("upcycle(experts=4, top_k=2, reinit=0.5)").run(program)

# the program is called like the model that it was captured from, and answers like it
model = program.module(trainable=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for step in range(60):
    starts = torch.randint(0, len(text) - 64, (8,)).tolist()
    ids = torch.stack([torch.tensor(list(text[at : at + 64])) for at in starts])
    output = model(input_ids=ids, labels=ids, output_router_logits=True)
    output.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 10 == 9:
        print(f"step {step + 1}: loss {output.loss.item():.2f}, balance of the experts {output.aux_loss.item():.2f}")

# a stock Mixtral for transformers, and an engine that is proven equal to the trained module
print(f"{out / 'checkpoint'}/ is a {moec.save_hf(model, out / 'checkpoint')}")
print(moec.compile(model, out=out / "engine").headline())

prompt = torch.tensor([list(text[:48])])
written = [int(token) for token in generate(moec.load(out / "engine"), prompt, max_tokens=24)]
print("it writes:", bytes([*prompt[0].tolist(), *written]))
