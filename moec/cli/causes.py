"""What `moec explain CODE` says beside the code's meaning: the way out, and an example of what brings it.

`tests/cli/test_causes.py` runs the commands.
"""

from __future__ import annotations

from typing import NamedTuple

_REPORT = "Report it, with the folder that `moec compile --dump DIR` writes."


class Cause(NamedTuple):
    """Of one error code.

    Attributes:
        fix: the usual way out; the error itself says the one that fits.
        example: a command that brings it, with what lies there behind a `#`; or a case in words.
    """

    fix: str
    example: str


CAUSES: dict[str, Cause] = {
    "M101": Cause(
        "Find where they part: `moec verify ENGINE --bisect`, or `moec compile --dump DIR`. Raise --tolerance only "
        "where you know why the numbers may differ.",
        "moec compile mixtral/ --tolerance 1e-12 -o new/  # less than float32 itself rounds",
    ),
    "M102": Cause(
        f"Leave the pass out that the error names, or take a milder setting of it. {_REPORT}",
        "A pass of another package says that it is exact, and scales a weight.",
    ),
    "M103": Cause(
        "Leave the pass out, or see with `moec inspect MODEL` what the model holds.",
        "moec compile mixtral/ --pass 'upcycle(experts=4, top_k=2)' -o new/  # it has no dense networks to replace",
    ),
    "M104": Cause(
        "Give a text that reaches it with --text FILE, or leave dead experts out with the pass prune-experts.",
        "A router's bias is so low for one expert that no text goes there.",
    ),
    "M105": Cause(
        "Download the weights again, or train them anew; `moec inspect MODEL` says what is in them.",
        "moec compile nan/ -o new/  # a weight of the model is not a number",
    ),
    "M106": Cause(
        "Compile the engine again: moec compile --from moec.json. Change no file of an engine by hand.",
        "moec run broken/  # somebody changed a byte of its weights",
    ),
    "M107": Cause(
        "Take more bits, or a better method (hqq, gptq); allow more with --max-kl where you know that it is enough.",
        "moec compile mixtral/ --pass 'quantize(bits=2)' --text text.txt --max-kl 0.0001 -o new/",
    ),
    "M108": Cause(
        "Take precision=fp32, or a model whose router was trained.",
        "moec compile mixtral/ -t onnxruntime:precision=fp16 -o new/  # all experts are nearly as likely",
    ),
    "M110": Cause(
        f"Compile the engine again from its model. {_REPORT}",
        "A library rounds a table of the model while it lowers the graph.",
    ),
    "M111": Cause(
        "Compile the engine anew with moec's own bounds, or repeat the looser ones, which the error names.",
        "moec verify loose/  # it was compiled with --tolerance 1, which nobody repeats",
    ),
    "M112": Cause(
        "Compile the model again with the settings that it should have.",
        "moec check engine/ --set seed=6  # it was compiled with seed 0",
    ),
    "M113": Cause(
        "Compile it, or run `moec build` or `moec verify`, on the hardware that it is for; or leave --require-run out.",
        "moec compile mixtral/ -t onnxruntime:cuda --require-run -o new/  # on a machine without a GPU",
    ),
    "M201": Cause(
        "Write it as the error says; `moec VERB --help` shows every option, with examples.",
        "moec compile mixtral/ --seed x -o new/",
    ),
    "M202": Cause(
        "Take one of the nearest names, which the error lists; `moec ls` lists all.",
        "moec compile mixtral/ --config int9 -o new/",
    ),
    "M203": Cause(
        "Change the option that the error names; `moec explain PASS` says what each one takes.",
        "moec compile llama/ --pass 'upcycle(experts=2, top_k=4)' -o new/  # more than there are",
    ),
    "M204": Cause(
        "Correct the path, or download the model first: moec downloads nothing.",
        "moec compile mixtrel/ -o new/  # there is no such folder",
    ),
    "M205": Cause(
        "Download the whole checkpoint again.",
        "moec compile bare/ -o new/  # a folder with a config and no weights",
    ),
    "M206": Cause(
        "Write the part that is unknown in terms that moec knows, or ask for it: what is not proven is not compiled.",
        "moec compile odd/ -o new/  # its config names an architecture that transformers does not have",
    ),
    "M207": Cause(
        "Leave out of forward what depends on values of tensors: if x.max() > 0, x.item(), lists of Python.",
        "moec compile branch.py:network --input x=batch,8:float32 -o new/  # its forward asks for a value of its input",
    ),
    "M208": Cause(
        "Take the target's option, layout or device that the error names; `moec explain TARGET` lists them.",
        "moec compile mixtral/ -t onnxruntime:threads=two -o new/",
    ),
    "M209": Cause(
        "Read that code; then say --trust-remote-code, or --allow-pickle for weights.",
        "moec compile remote/ -o new/  # its config names a class in a file of the checkpoint",
    ),
    "M210": Cause(
        "Name another folder or file. moec replaces only what it wrote itself.",
        "moec compile mixtral/ -o thesis/  # a folder with other files",
    ),
    "M211": Cause(
        "Give what `moec inspect ENGINE` lists as its inputs, in their dtypes and shapes.",
        "moec run engine/ --inputs other.npz  # it holds other names",
    ),
    "M212": Cause(
        "Bring all tensors to one device and one dtype: model.to('cuda', torch.bfloat16).",
        "torch.ops.moec.experts(x, ids, weights, w_in, w_out), with x in float16 and w_in in float32.",
    ),
    "M213": Cause(
        "Call it with the sizes that the error lists, or capture it with inputs of the other sizes.",
        "A model pads texts that are shorter than 8 tokens, and was captured with longer ones.",
    ),
    "M214": Cause(
        "Give ids of the model's own vocabulary; its tokenizer makes them.",
        "moec run engine/ --tokens 1,99999 --max-tokens 1  # there are fewer tokens",
    ),
    "M215": Cause(
        "Correct config.json where it names another class than was trained; or say what is to be left out, with "
        "--leave-out.",
        "moec compile extra/ -o new/  # a tensor of the checkpoint belongs to nothing of the model",
    ),
    "M216": Cause(
        "Say that it is left out, with --leave-out NAME, or give a sample of it with --input.",
        "A model of text and sound is compiled, and nobody says whether sounds are to be an input.",
    ),
    "M217": Cause(
        "Merge the adapter with peft itself (merge_and_unload), save that, and compile it.",
        "An adapter changes prompts, not weights.",
    ),
    "M218": Cause(
        "Give yourself the right to read it, or make room on the disk; the error says which.",
        "A file of the model belongs to another user.",
    ),
    "M219": Cause(
        "Correct that code; --debug shows where it failed.",
        "moec compile leaves.py:network --input x=batch,8:float32 -o new/  # its forward ends the program",
    ),
    "M220": Cause(
        "Allow as much as the error says is enough, or take a smaller model.",
        "moec compile mixtral/ --max-ram 1MiB -o new/",
    ),
    "M301": Cause(
        "Install what the error names; `moec doctor` lists what is missing, and how to get it.",
        "moec compile mixtral/ -t tensorrt -o new/, on a machine without TensorRT.",
    ),
    "M302": Cause(
        "Run it on a machine that has the hardware; --no-build writes here what `moec build` finishes there.",
        "moec run engine/, which was compiled for CUDA, on a machine without a GPU.",
    ),
    "M303": Cause(
        "Give it more memory, or take other settings of the target; `-v` shows what the builder said last.",
        "The system ends TensorRT's builder because the machine has no memory left.",
    ),
    "M304": Cause(
        "Start the cluster, install the same versions on all of its machines, or leave --workers out.",
        "moec compile mixtral/ --config int4 --workers ray://HOST:PORT -o new/, where no cluster answers.",
    ),
    "M701": Cause(
        f"Correct the pass: `apply` returns how many rewrites it made. One of moec's own: {_REPORT}",
        "A pass of another package returns 1, and changed nothing.",
    ),
    "M702": Cause(
        f"Correct the pass that ran last. One of moec's own: {_REPORT}",
        "A pass of another package leaves a node that reads a weight that it removed.",
    ),
    "M799": Cause(
        "Run it again with --debug, and report the traceback.",
        "A bug of moec, or of a library in a place where moec expected none.",
    ),
}
