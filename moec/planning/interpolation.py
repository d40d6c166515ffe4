"""Times between those that were measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
NEIGHBOURS, SMOOTHING = 24, 1e-3  # measured by benchmarks/plan_tables.py: 16 to 48 neighbours make no difference


@dataclass(frozen=True)
class Table:
    """Measured times of one kind of kernel.

    The logarithm of (measured time / time at the roofline) changes slowly with the sizes, so it is what is
    interpolated, by radial basis functions over the nearest points (`scipy.interpolate.RBFInterpolator`), in powers of
    two of the sizes.

    Attributes:
        sizes: `[N, axes]`, what was measured.
        seconds: `[N]`, how long each took.
        floor: the roofline's seconds of sizes `[M, axes]`, above 0.
        weights: of each axis in the distance of neighbours; an axis that changes the outcome more has more.
        origin: who measured, in which version.
    """

    sizes: Numbers
    seconds: Numbers
    floor: Callable[[Numbers], Numbers]
    weights: tuple[float, ...]
    origin: str = ""
    _fitted: list[Any] = field(default_factory=list, repr=False, compare=False)

    def ratios(self, sizes: Numbers) -> Numbers:
        """Time over the roofline's time for sizes `[M, axes]`; at measured points what was measured, but for 0.1 %."""
        if not self._fitted:
            self._fitted.append(self._fit())
        found: Numbers = np.exp(self._fitted[0](self._placed(sizes)))
        return found

    def at(self, sizes: Numbers) -> Numbers:
        """Seconds for sizes `[M, axes]`."""
        return self.ratios(sizes) * self.floor(sizes)

    def without(self, held: NDArray[np.bool_]) -> Table:
        """The table without some of its points, to be asked for those."""
        return Table(self.sizes[~held], self.seconds[~held], self.floor, self.weights, self.origin)

    def _fit(self) -> Any:
        from scipy.interpolate import RBFInterpolator

        values = np.log(self.seconds / self.floor(self.sizes))
        near = min(NEIGHBOURS, len(values))
        return RBFInterpolator(
            self._placed(self.sizes), values, neighbors=near, kernel="linear", degree=0, smoothing=SMOOTHING
        )

    def _placed(self, sizes: Numbers) -> Numbers:
        return np.log2(sizes) * np.array(self.weights)


def fastest(sizes: Numbers, seconds: Numbers) -> tuple[Numbers, Numbers]:
    """The same without repetition: of points that were measured more than once the shortest time."""
    order = np.lexsort((seconds, *sizes.T[::-1]))
    sizes, seconds = sizes[order], seconds[order]
    first = np.ones(len(sizes), bool)
    first[1:] = np.any(sizes[1:] != sizes[:-1], axis=1)
    return sizes[first], seconds[first]
