"""A dense model is carved, and healed: its experts and routers learn for a short while to say what the dense model
says. How far they are from it on held-out text is printed before and after; the healed model is saved and compiled.

usage: python examples/heal_carved.py [FOLDER] [--model LLAMA_FOLDER] [--active 4] [--first 400] [--steps 200]

Without --model a byte-level Llama of 0.2 M parameters is trained first. The text is Python's own library. Chosen
experts count 1, so nothing says to a router which way is better: while they learn, an expert counts `1 + s - s` where s
is the sigmoid of its score and the second s has no gradient (straight-through, arXiv 1308.3432).
"""

import argparse
import sysconfig
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import moec
from moec.pipeline.calibration import Calibration
from moec.pipeline.calibration_text import CalibrationText
from moec.pipeline.passes import Context
from moec.program.rewriting import call_like

BATCH, LENGTH, EXPERTS = 8, 64, 8
aten, route = torch.ops.aten, torch.ops.moec.route.default


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


def apart(student, teacher, ids):
    """KL divergence from what the teacher says of the next token, in nats a token."""
    with torch.no_grad():
        wanted = teacher(input_ids=ids).logits.log_softmax(-1)
    said = student(input_ids=ids).logits.log_softmax(-1)
    return F.kl_div(said, wanted, reduction="none", log_target=True).sum(-1).mean()


def judged(student, teacher, ids):
    """The same on held-out windows."""
    with torch.no_grad():
        return sum(apart(student, teacher, windows(ids, -k)).item() for k in range(1, 9)) / 8


def straight_through(program):
    """The same program, in which routers have a gradient."""
    copy = program.clone()
    for node in copy.nodes(route):
        weights, ids = sorted(node.users, key=lambda user: user.args[1])
        with copy.graph.inserting_before(next(user for user in copy.graph.nodes if user in weights.users)):
            scores = call_like(copy, node, "heal", aten.sigmoid.default, node.args[0])
            chosen = call_like(copy, node, "heal", aten.gather.default, scores, -1, ids)
            still = call_like(copy, node, "heal", aten.detach.default, chosen)
            nothing = call_like(copy, node, "heal", aten.sub.Tensor, chosen, still)
            counted = call_like(copy, node, "heal", aten.add.Tensor, weights, nothing)
        weights.replace_all_uses_with(counted, delete_user_cb=lambda user, end=counted: user is not end)
    copy.finish()
    return copy


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", nargs="?", default="healed", type=Path)
parser.add_argument("--model", help="A dense Llama's folder with a tokenizer.")
parser.add_argument("--active", type=int, default=4, help=f"Of {EXPERTS} experts, how many a token uses.")
parser.add_argument("--first", type=int, default=400, help="Steps of the dense model before it is carved.")
parser.add_argument("--steps", type=int, default=200, help="Steps of healing.")
parser.add_argument("--lr", type=float, default=1e-3, help="Learning rate of healing.")
given = parser.parse_args()
torch.manual_seed(0)
if given.model:
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    llama = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
else:
    tokenizer, size = None, {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=128, num_hidden_layers=2, max_position_embeddings=256, **size))
ids, held_out = text(tokenizer)
if not given.model:
    optimizer = torch.optim.AdamW(llama.parameters(), lr=3e-3)
    for step in range(given.first):
        llama(input_ids=windows(ids, step), labels=windows(ids, step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

dense = moec.capture(llama.eval(), cache=False)
calibration = Calibration(CalibrationText("Python's library", 8192, LENGTH), "", ids)
how = f"carve(experts={EXPERTS}, shared=1, active={given.active}, partition=coactivation)"
carved, _ = moec.Pipeline.parse(how).run(dense, Context(calibration=calibration))
teacher, student = dense.module(trainable=True), straight_through(carved).module(trainable=True)
print(f"{how}: {judged(student, teacher, held_out):.3g} nats from the dense model")
learning = {name: p for name, p in student.named_parameters() if ".router." in name or ".experts." in name}
optimizer = torch.optim.Adam(learning.values(), lr=given.lr)
for step in range(given.steps):
    apart(student, teacher, windows(ids, step)).backward()
    optimizer.step()
    optimizer.zero_grad()
print(f"healed for {given.steps} steps: {judged(student, teacher, held_out):.3g} nats")

healed = carved.trained(learning)  # as it was cut, with what was learnt
kind = moec.save_hf(healed, given.folder / "checkpoint")
print(f"{given.folder / 'checkpoint'}/ is a {kind}, which transformers loads where its code is trusted")
print(moec.compile(healed, out=given.folder / "engine").headline())
