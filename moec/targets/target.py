"""A target names a runtime, a device and its options, as plain data: `onnxruntime`,
`onnxruntime:cuda,precision=fp16`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from moec.errors import MoecError

_ARCHITECTURES = re.compile(r"sm\d+(,sm\d+)*")


@dataclass(frozen=True)
class Target:
    """Where an engine is to run.

    Attributes:
        backend: name of the backend, the part before the colon.
        device: the backend's device or architecture (`cpu`, `cuda`, `sm90`), or several architectures (`sm86,sm89`);
            empty means the backend's default.
        options: `key=value` pairs; a backend refuses those that it does not know.
    """

    backend: str
    device: str = ""
    options: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read `backend[:device[,key=value…]]`; raises M201 on anything else. `str(target)` prints it back."""
        backend, _, rest = text.strip().partition(":")
        device, options = "", {}
        for part in filter(None, (p.strip() for p in rest.split(","))):
            key, equals, value = part.partition("=")
            if equals and key and value and key not in options:
                options[key] = value
            elif not equals and not options and (not device or _ARCHITECTURES.fullmatch(f"{device},{part}")):
                device = f"{device},{part}" if device else part
            else:
                raise MoecError(
                    "M201",
                    f"{part!r} is not a device or a key=value option" if key not in options else f"{key} is said twice",
                    f"target {text!r}",
                    "write backend[:device[,key=value…]]",
                )
        if not backend.replace("-", "").replace("_", "").isalnum():
            raise MoecError("M201", f"{text!r} names no backend", "--target", "write for example --target onnxruntime")
        return cls(backend, device, options)

    @property
    def threads(self) -> int:
        """How many threads the option of that name asks for; 0 leaves it to the runtime, which takes one a core. Raises
        M201 for what is no number."""
        text = str(self.options.get("threads", "0"))
        if not text.isascii() or not text.isdigit():
            raise MoecError("M201", f"threads={text} is not a number", str(self), "write for example threads=4")
        return int(text)

    def __str__(self) -> str:
        parts = [self.device] if self.device else []
        parts += [f"{k}={v}" for k, v in self.options.items()]
        return self.backend + (":" + ",".join(parts) if parts else "")


def place_of(target: str) -> str:
    """Runtime and hardware of a target's text, without its options: `onnxruntime:cuda`. The CPU is not named, being
    what a runtime takes that has several devices. Empty of an empty text."""
    found = Target.parse(target) if target else Target("")
    return found.backend + (f":{found.device}" if found.device not in ("", "cpu") else "")
