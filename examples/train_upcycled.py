"""A small dense Llama goes on learning, and so does the mixture that it is upcycled to: the same tokens, as many FLOPs
a token. Both curves and the health of the routers are plotted, and the mixture is compiled and writes text.

usage: python examples/train_upcycled.py [FOLDER] [--model LLAMA_FOLDER] [--first 300] [--steps 300] [--lr 1e-3]

Without --model a byte-level Llama of 0.2 M parameters is trained first. The text is Python's own library.
"""

import argparse
import json
import sysconfig
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import moec
from moec.execution.generation import generate
from moec.training import RouterMonitor, router_groups, switch_loss

BATCH, LENGTH, EVERY, BALANCE = 8, 64, 10, 0.01


def text(tokenizer, count=2_000_000):
    """The library's first files as tokens: those to learn from, and the last 5 % to judge by."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    raw = "\n\n".join(file.read_text("utf-8", "replace") for file in files)[:count]
    ids = torch.tensor(tokenizer(raw)["input_ids"] if tokenizer else list(raw.encode("ascii", "replace")))
    return ids[: len(ids) * 19 // 20], ids[len(ids) * 19 // 20 :]


def windows(ids, seed):
    """Some windows, the same for the same seed."""
    starts = torch.randint(0, len(ids) - LENGTH, (BATCH,), generator=torch.Generator().manual_seed(seed))
    return torch.stack([ids[at : at + LENGTH] for at in starts.tolist()])


def train(name, module, optimizer, ids, held_out, steps):
    """Train; returns the step, the loss on the held-out text and the routers' summary every few steps."""
    monitor = RouterMonitor(module, training_only=True) if name == "mixture" else None
    curve = []
    for step in range(steps + 1):
        if step % EVERY == 0:
            module.eval()
            with torch.no_grad():
                losses = [module(input_ids=x, labels=x).loss.item() for x in (windows(held_out, -k) for k in range(4))]
            module.train()
            routers = monitor.summary() if monitor and monitor.tallies else {}
            curve.append({"step": step, "loss": sum(losses) / len(losses), **routers})
            print(
                f"{name:7} step {step:4}: loss {curve[-1]['loss']:.3f}", *(f"{k} {v:.2f}" for k, v in routers.items())
            )
            if monitor:
                monitor.reset()
        batch = windows(ids, step)
        output = module(input_ids=batch, labels=batch, **({"output_router_logits": True} if monitor else {}))
        loss = output.loss
        if monitor:  # transformers counts all layers together; here each layer is balanced by itself
            module.router_aux_loss_coef = 0.0
            loss = loss + BALANCE * sum(switch_loss(logits, top_k=2) for logits in output.router_logits)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    if monitor:
        monitor.close()
    return curve


def plot(curves, file):
    """Losses, and how unevenly the experts are loaded, as an SVG."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return print("no plot: pip install matplotlib")
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, curve in curves.items():
        left.plot([p["step"] for p in curve], [p["loss"] for p in curve], label=name)
    for key in ("router/max_vio", "router/effective_share"):
        points = [p for p in curves["mixture"] if key in p]
        right.plot([p["step"] for p in points], [p[key] for p in points], label=key)
    left.set(xlabel="step", ylabel="held-out loss, nats a token")
    right.set(xlabel="step")
    for axes in (left, right):
        axes.legend()
    figure.savefig(file)
    return print(f"{file} shows both")


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", nargs="?", default="trained", type=Path)
parser.add_argument("--model", help="A dense Llama's folder with a tokenizer.")
parser.add_argument("--first", type=int, default=300, help="Steps of the dense model before it is upcycled.")
parser.add_argument("--steps", type=int, default=300, help="Steps of both afterwards.")
parser.add_argument("--lr", type=float, default=1e-3, help="Learning rate of both, the routers' too.")
given = parser.parse_args()
torch.manual_seed(0)
if given.model:
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    llama = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
else:
    tokenizer, size = None, {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=128, num_hidden_layers=2, max_position_embeddings=256, **size))
ids, held_out = text(tokenizer)
if not given.model:
    train("first", llama, torch.optim.AdamW(llama.parameters(), lr=3e-3), ids, held_out, given.first)

# both are programs with the same weights; the mixture has 8 experts of half the width, of which a token uses 2
dense = moec.capture(llama)
upcycled, _ = moec.Pipeline.parse("upcycle(experts=4, granularity=2, top_k=2)").run(dense)
modules = {name: p.module(trainable=True) for name, p in (("dense", dense), ("mixture", upcycled))}
groups = {
    "dense": [{"params": modules["dense"].parameters()}],
    "mixture": router_groups(modules["mixture"], given.lr, given.lr),
}
curves = {
    name: train(name, module, torch.optim.AdamW(groups[name], lr=given.lr), ids, held_out, given.steps)
    for name, module in modules.items()
}
given.folder.mkdir(parents=True, exist_ok=True)
(given.folder / "curves.json").write_text(json.dumps(curves))
plot(curves, given.folder / "curves.svg")

# the program as it is now (Mixtral's router knows no groups of experts, so no checkpoint of transformers holds it), and
# an engine that is proven equal to the trained module
mixture = modules["mixture"]
moec.save_program(mixture.program, given.folder / "trained.pt2")
print(moec.compile(mixture, out=given.folder / "engine").headline())
prompt = held_out[None, :32]
written = [int(t) for t in generate(moec.load(given.folder / "engine"), prompt, max_tokens=24)]
whole = [*prompt[0].tolist(), *written]
print("it writes:", repr(tokenizer.decode(whole) if tokenizer else bytes(whole).decode("ascii")))
