"""Runs engine folders in optimum and sentence-transformers; `test_optimum.py` starts it in an interpreter that has
them.

Prints one JSON object: the largest differences of embeddings from the same and from other texts, or the tokens that
were generated.
"""

from __future__ import annotations

import json
import sys
from functools import partial

TEXTS = ["a man eats pasta", "x", "the sky is blue, and very far away from here"]
WORDS = ["w3 w4 w5 w9", "w7", "w10 w11 w12 w13 w14 w15 w16 w17 w18"]  # of a model with 94 words


def embeddings(model: str, engine: str, texts: list[str] = TEXTS, trust: bool = False) -> list[float]:
    import numpy as np
    from sentence_transformers import SentenceTransformer

    common = {"device": "cpu", "trust_remote_code": trust}
    eager = SentenceTransformer(model, **common).encode(texts)
    provider = {"provider": "CPUExecutionProvider"}
    ours = SentenceTransformer(engine, backend="onnx", model_kwargs=provider, **common).encode(texts)
    return [float(np.abs(eager - ours).max()), float(np.abs(eager - ours[::-1]).max())]


def tokens(model: str, engine: str) -> list[list[list[int]]]:
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM
    from transformers import AutoModelForCausalLM

    ids, mask = (
        torch.tensor([[0, 0, 5, 9], [7, 8, 9, 11], [0, 60, 61, 62]]),
        torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]]),
    )
    loaded = [
        AutoModelForCausalLM.from_pretrained(model).eval(),
        ORTModelForCausalLM.from_pretrained(engine, use_io_binding=False),
    ]
    return [m.generate(ids, attention_mask=mask, max_new_tokens=64, do_sample=False).tolist() for m in loaded]


def translations(model: str, engine: str) -> list[list[list[int]]]:
    import torch
    from optimum.onnxruntime import ORTModelForSeq2SeqLM
    from transformers import AutoModelForSeq2SeqLM

    ids = torch.tensor([[5, 9, 8, 7, 1], [7, 8, 9, 11, 12], [40, 41, 42, 1, 1]])
    loaded = [
        AutoModelForSeq2SeqLM.from_pretrained(model).eval(),
        ORTModelForSeq2SeqLM.from_pretrained(engine, use_io_binding=False),
    ]
    given = {"attention_mask": torch.tensor([[1] * 4 + [0], [1] * 5, [1] * 3 + [0] * 2]), "do_sample": False}
    greedy = [m.generate(ids, num_beams=1, max_new_tokens=32, **given).tolist() for m in loaded]
    return greedy + [m.generate(ids, num_beams=3, max_new_tokens=12, **given).tolist() for m in loaded]


if __name__ == "__main__":
    asked = {
        "embeddings": embeddings,
        "own code": partial(embeddings, texts=WORDS, trust=True),
        "tokens": tokens,
        "translations": translations,
    }
    print(json.dumps(asked[sys.argv[1]](*sys.argv[2:])))
