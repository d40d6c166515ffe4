"""DS-MoE's way (arXiv 2404.05567): a small mixture is trained with all of its experts active, and run with a few.

Each router learns to be sure of a token and to use all experts alike, by the mutual information of experts and tokens.
Then `set-top-k` leaves a token its best experts. The loss on held-out text is printed for each number of them, with the
weights as they are left and scaled by what was measured on other text; the model with a share of the experts is saved,
compiled and proven.

usage: python examples/train_dense_run_sparse.py [FOLDER] [--steps 400] [--mutual 0.02] [--share 0.5]

The text is Python's own library in bytes.
"""

import argparse
import sysconfig
from pathlib import Path

import torch
from transformers import OlmoeConfig, OlmoeForCausalLM

import moec
from moec.pipeline.calibration import Calibration
from moec.pipeline.calibration_text import CalibrationText
from moec.pipeline.passes import Context

BATCH, LENGTH, EXPERTS = 8, 64, 8


def text(count=2_000_000):
    """The library's first files as bytes: those to learn from, and the last 5 % to judge by."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    raw = "\n\n".join(file.read_text("utf-8", "replace") for file in files)[:count]
    ids = torch.tensor(list(raw.encode("ascii", "replace")))
    return ids[: len(ids) * 19 // 20], ids[len(ids) * 19 // 20 :]


def windows(ids, seed):
    """Some windows, the same for the same seed."""
    starts = torch.randint(0, len(ids) - LENGTH, (BATCH,), generator=torch.Generator().manual_seed(seed))
    return torch.stack([ids[at : at + LENGTH] for at in starts.tolist()])


def mutual_information(logits):
    """Of experts and tokens, in nats: high where a router is sure of each token and uses all experts alike."""
    p = logits.float().softmax(-1)
    entropy = torch.special.entr
    return entropy(p.mean(0)).sum() - entropy(p).sum(-1).mean()


def loss_of(program, ids):
    """The mean loss on some windows, in nats a byte."""
    module = program.module(trainable=True)
    with torch.no_grad():
        return sum(module(input_ids=x, labels=x).loss.item() for x in (windows(ids, -k) for k in range(1, 9))) / 8


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", nargs="?", default="sparse", type=Path)
parser.add_argument("--steps", type=int, default=400, help="Steps of training, all experts active.")
parser.add_argument("--mutual", type=float, default=0.02, help="How much the mutual information counts; 0: not.")
parser.add_argument("--share", type=float, default=0.5, help="Of the experts that a token is left in the engine.")
given = parser.parse_args()
torch.manual_seed(0)
ids, held_out = text()
config = OlmoeConfig(
    vocab_size=128, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=256, num_experts=EXPERTS, num_experts_per_tok=EXPERTS, norm_topk_prob=False,
    pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
mixture = OlmoeForCausalLM(config)
optimizer = torch.optim.AdamW(mixture.parameters(), lr=3e-3)
for step in range(given.steps + 1):
    batch = windows(ids, step)
    output = mixture(input_ids=batch, output_router_logits=True)
    loss = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
    sure = sum(map(mutual_information, output.router_logits)) / len(output.router_logits)
    (loss - given.mutual * sure).backward()
    torch.nn.utils.clip_grad_norm_(mixture.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if step % 50 == 0:
        print(f"step {step:4}: loss {loss.item():.3f}, mutual information {sure.item():.2f} nats")

# all experts are active still; the passes leave a token fewer of them
program = moec.capture(mixture.eval(), cache=False)
calibration = Calibration(CalibrationText("Python's library", 8192, LENGTH), "", ids)
print(f"experts a token  loss as they are  loss scaled\n{EXPERTS:15}  {loss_of(program, held_out):16.3f}")
for k in range(EXPERTS - 1, 0, -1):
    left, scaled = (
        moec.Pipeline.parse(f"set-top-k({k}, rescale={rescale})").run(program, Context(calibration=calibration))[0]
        for rescale in (False, True)
    )
    print(f"{k:15}  {loss_of(left, held_out):16.3f}  {loss_of(scaled, held_out):11.3f}")

k = max(1, round(given.share * EXPERTS))
sparse, reports = moec.Pipeline.parse(f"set-top-k({k})").run(program, Context(calibration=calibration))
for block in reports[-1].facts["blocks"]:
    curve = ", ".join(f"{n}: {block[f'error at {n}']:.3f}" for n in range(1, EXPERTS))
    print(f"{block['module']}: squared error by number of experts, of the output's square: {curve}")
print(
    f"{given.folder / 'checkpoint'}/ is an {moec.save_hf(sparse, given.folder / 'checkpoint')} with {k} experts a token"
)
print(moec.compile(sparse, out=given.folder / "engine").headline())
