"""What a load of experts looks like on a plan's page: a map of the routers, and how uneven each layer is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from moec.report.drawing import axis, figure, heat_map, line_chart

_FINE = 10_000  # of a share, so that a map of whole numbers shows it


def load_maps(shares: Mapping[str, Sequence[float]]) -> list[Markup]:
    """A map with a row for each layer and a field for each expert, and the busiest expert over the mean.

    Args:
        shares: the part of the tokens' choices that falls on each expert, by the name of the layer; each row sums to 1.
    """
    rows = {name: [_whole(share) for share in layer] for name, layer in shares.items()}
    note = "darker: a larger share of its layer's busiest; red: none"
    uneven = [len(layer) * max(layer) for layer in shares.values()]
    if len(uneven) < 2:
        return [figure("Share of each expert", note, heat_map(rows, "expert"))]
    drawn = line_chart(
        {"busiest / mean": uneven}, list(shares), axis(0.0, max(uneven)), "times", "{:.3g}".format, "{:.2f}"
    )
    return [
        figure("Share of each expert", note, heat_map(rows, "expert")),
        figure("Busiest expert over the mean", "1 is even; experts over experts a token is a collapse", drawn),
    ]


def _whole(share: float) -> int:
    """A share as a whole number that is 0 only where the share is."""
    return max(round(share * _FINE), 1) if share else 0
