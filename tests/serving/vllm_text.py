"""Run by vLLM's own Python, which has no moec: prints the greedy text as JSON.

usage: vllm_text.py FOLDER DTYPE PROMPT TOKENS
"""

import json
import sys


def main() -> None:
    import vllm

    folder, dtype, prompt, tokens = sys.argv[1:]
    engine = vllm.LLM(folder, dtype=dtype, enforce_eager=True, max_model_len=128, max_num_seqs=2)
    asked = vllm.SamplingParams(temperature=0, max_tokens=int(tokens))
    (found,) = engine.generate([prompt], asked, use_tqdm=False)
    print("\n" + json.dumps({"text": found.outputs[0].text}), flush=True)  # its own messages go there, too


if __name__ == "__main__":  # it starts processes that import this file
    main()
