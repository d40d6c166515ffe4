"""Every failure that a user can cause or meet: a code, what happened, where, and how to fix it.

The exit code of the command line follows from the error's code, so that a script can tell a wrong engine (1) from a
wrong command (2), a missing runtime (3) and a bug of ours (70).
"""

from __future__ import annotations

from typing import Any

from moec.shown import one_line, shown

AGAIN = "compile the engine again: moec compile --from moec.json"  # the way out of what is not as it was written
EXIT_CODES = {"M1": 1, "M2": 2, "M3": 3, "M7": 70}

# One line a code; `moec explain CODE` prints it. Add a code here before raising it.
CODES: dict[str, str] = {
    "M101": "The engine's outputs differ from the untouched model's by more than the tolerance. No engine was "
    "published.",
    "M102": "A pass broke its contract: an exact pass changed the numbers, an approximate one exceeded its error "
    "budget, or a weight is further from what it stands for than its bits explain.",
    "M103": "A pass that was named changed nothing. moec never reports success for work that was not done.",
    "M104": "An expert, or another matrix, was reached by no input that was tried, so the engine cannot be proven. Or "
    "other images change nothing that the model says.",
    "M105": "The source's weights contain NaN or infinity, so no comparison with it can mean anything.",
    "M106": "An engine folder is incomplete or was changed after it was written: its hashes do not match its manifest. "
    "Or a model's files were changed while they were read.",
    "M107": "The engine's quality on a text is outside of the error budget: on the given one, or on texts that the "
    "untouched model writes itself. No engine was published.",
    "M108": "Half precision can't tell the model's experts apart for most tokens, or for some experts, so the engine "
    "cannot be proven by its outputs.",
    "M110": "A constant of the engine (a weight, a table, a number in an operator) is not the model's, bit for bit, or "
    "cannot be traced to the model.",
    "M111": "A later proof of an engine fails with moec's own bounds. Those that its manifest records are looser, and "
    "count only when the command repeats them.",
    "M112": "An engine was compiled with other settings than those that it should have now.",
    "M113": "The engine was proven, but nothing has run it on the hardware that it is for, and --require-run asks for "
    "that.",
    "M201": "The command line, a pipeline text or a configuration file is not of the form that moec reads.",
    "M202": "No pass, target, preset, format, device or link has this name.",
    "M203": "The configuration of a pass is not valid for this model.",
    "M204": "The source of the model could not be read.",
    "M205": "A safetensors file is missing, truncated, or lacks a weight that the model needs.",
    "M206": "moec does not know this architecture, or a part of it, well enough to prove a conversion.",
    "M207": "torch.export could not capture the model as one graph.",
    "M208": "The target cannot express an operation of the model.",
    "M209": "Code from the model's own repository or a pickle would have to be run; moec does that only when told to.",
    "M210": "The output folder cannot be written.",
    "M211": "The inputs given to an engine do not fit its signature.",
    "M212": "The tensors given to a kernel are on the wrong device, or of a dtype, shape or layout that it does not "
    "take.",
    "M213": "The sizes of the inputs are not those that the engine was made for: its capture followed a branch of the "
    "model that others do not take.",
    "M214": "An input holds a value that the model has no row for, such as an id outside of its vocabulary.",
    "M215": "What a model's files say does not fit together: the class that was trained, or tensors that nothing uses.",
    "M216": "The model takes an input that the engine would not have.",
    "M217": "An adapter of a model cannot be merged into its weights.",
    "M218": "The operating system refused a file that moec was to read or write.",
    "M219": "The model's own code failed, or ended the program, while moec ran it.",
    "M220": "The memory that `--max-ram` allows is too little to compile this model in.",
    "M301": "The runtime of this target, or a package that it needs, is not installed.",
    "M302": "The hardware that this target needs is not in this machine.",
    "M303": "The target's own builder crashed, or was ended by the system. Nothing was published.",
    "M304": "The workers of `--workers` are not there, died again and again, or are of another kind than here.",
    "M701": "A pass lied: the count of rewrites that it returned does not agree with what happened to the graph.",
    "M702": "A program is malformed after a pass, or the ONNX graph made of it after a step of its lowering.",
    "M799": "An unexpected error inside moec.",
}


class MoecError(Exception):
    """A failure with a code, what happened, where, and how to fix it.

    Args:
        code: a key of `CODES`; its first two characters decide the exit code.
        what: one sentence, without advice.
        where: the file, node, option or weight that is concerned.
        fix: what the user can do now.
    """

    def __init__(self, code: str, what: str, where: str, fix: str) -> None:
        if code not in CODES:
            raise KeyError(f"unknown error code {code}")
        super().__init__(what)
        self.code, self.what, self.where, self.fix = code, what, where, fix

    def __reduce__(self) -> Any:
        """As it is made: a worker's error travels to this process."""
        return MoecError, (self.code, self.what, self.where, self.fix)

    @property
    def exit_code(self) -> int:
        """Exit status of the command line: 1 not acceptable, 2 usage or unsupported, 3 missing, 70 bug."""
        return EXIT_CODES[self.code[:2]]

    def __str__(self) -> str:
        what, fix = (shown(text).replace("\n", "\n    ") for text in (self.what, self.fix))
        return f"error[{self.code}]: {what}\n  where: {one_line(self.where)}\n  fix:   {fix}"

    def to_dict(self) -> dict[str, str | int]:
        """The same as plain data, for `--json`."""
        return {"code": self.code, "what": self.what, "where": self.where, "fix": self.fix, "exit_code": self.exit_code}


def reason_of(error: BaseException, most: int | None = 200) -> str:
    """What an error of another library says: its first line, cut to so many characters; where it says nothing, the name
    of its type."""
    return (str(error).splitlines() or [type(error).__name__])[0][:most]
