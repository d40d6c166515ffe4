"""Where an engine is to run, and what ran it for its proof: the two may be different hardware."""

from __future__ import annotations

from dataclasses import dataclass

from moec.errors import MoecError
from moec.targets.target import Target, place_of


@dataclass(frozen=True)
class WhereRun:
    """Two places, as texts of targets: `tensorrt:sm90`, `onnxruntime:cpu`; empty where nobody said."""

    target: str = ""
    ran_on: str = ""

    @property
    def on_target(self) -> bool:
        """Whether what ran is what the engine is for: an engine for a GPU that a CPU ran has not run on its hardware,
        nor has one of which nobody says what ran it."""
        return bool(self.ran_on) and place_of(self.ran_on) == place_of(self.target)

    @property
    def verdict(self) -> str:
        """What may be said of a proof that holds: `verified` only where the target itself ran; else `proven on the CPU,
        not yet run on tensorrt:sm90`."""
        return "verified" if self.on_target else f"proven on {self._device}, {self._not_yet}"

    @property
    def elsewhere(self) -> str:
        """`the CPU (onnxruntime), not yet run on onnxruntime:cuda`, empty where it ran on its target."""
        runtime = f" ({self._ran.backend})" if self.ran_on else ""
        return "" if self.on_target else f"{self._device}{runtime}, {self._not_yet}"

    def require(self) -> None:
        """Raise M113 unless the engine ran on what it is for."""
        if not self.on_target:
            fix = "run this on a machine that has it, or leave --require-run out"
            raise MoecError("M113", f"the engine would only be {self.verdict}", f"target {self.target}", fix)

    @property
    def _ran(self) -> Target:
        return Target.parse(self.ran_on)

    @property
    def _device(self) -> str:
        if not self.ran_on:
            return "hardware that is not named"
        return "the CPU" if self._ran.device in ("", "cpu") else self._ran.device

    @property
    def _not_yet(self) -> str:
        return f"not yet run on {place_of(self.target) or 'what it is for'}"
