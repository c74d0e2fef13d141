"""What the figures of the shortcut meter say, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from ssl_toolkit.evaluation.intervals import Interval
from ssl_toolkit.evaluation.shortcut_rows import ShortcutDifference, ShortcutRow, What, interval_text

# of R2: a smaller difference to random weights may be sure with many images, and yet is none of a shortcut
MUCH = 0.1
_NAMES: dict[What, str] = {"position": "where in the image a patch lies", "aberration": "chromatic aberration"}
_CAVEAT = (
    "In photographs a place is partly content (the sky is above): what counts is the difference to random weights, and "
    "between recipes."
)
_CLOSES = "model.colour: dropping, projection or grey, or view.grayscale"


def shortcut_words(
    rows: Sequence[ShortcutRow], differences: Sequence[ShortcutDifference], is_grey: bool = False
) -> list[str]:
    """Sentences on what the features tell, and on what that fits.

    Args:
        rows: The figures.
        differences: To random weights; empty if these were not measured.
        is_grey: Whether the images are grey, so that chromatic aberration was not measured.
    """
    # a task reads the pooled features: what only earlier stages tell is not what it is solved by
    pooled = [each for each in differences if each.representation == "pooled"]
    words = [_sentence(rows, each) for each in pooled] or [
        "Random weights were not measured, so whether a place or chromatic aberration is told by what was learned is "
        "not known: leave out --random_weights false."
    ]
    if pooled:
        words += _verdict({each.what: _much(each.r2) for each in pooled})
    if is_grey:
        words.append("Grey images have no chromatic aberration: it was not measured.")
    return [*words, _CAVEAT]


def _much(difference: Interval) -> bool:
    return difference.low > 0 and difference.value >= MUCH


def _sentence(rows: Sequence[ShortcutRow], difference: ShortcutDifference) -> str:
    given, random = (
        next(r for r in rows if (r.what, r.weights, r.representation) == (difference.what, weights, "pooled"))
        for weights in ("given", "random")
    )
    if _much(difference.r2):
        verdict = "much better than random weights"
    elif difference.r2.low > 0:
        verdict = "a little better than random weights"
    elif difference.r2.high < 0:
        verdict = "worse than random weights"
    else:
        verdict = "not shown to be better than random weights"
    return (
        f"The pooled features tell {_NAMES[difference.what]} with an R2 of {given.r2.value:.2f}, those of random "
        f"weights with {random.r2.value:.2f}: {verdict}, difference {interval_text(difference.r2)}."
    )


def _verdict(much: dict[What, bool]) -> list[str]:
    position, aberration = much["position"], much.get("aberration")
    if position and aberration:
        return [
            "That fits the shortcut of chromatic aberration (Doersch et al. 2015, section 3.1), by which a patch's "
            f"place is read off its colours. Pretrain a task on patches with {_CLOSES}, and compare."
        ]
    if position:
        cause = "not chromatic aberration" if aberration is False else "unknown"
        return [
            f"What tells the place is {cause}: content, or dark corners and sharpness (against them: model.rescaling, "
            "model.downsampling)."
        ]
    if aberration:
        return [
            "The network sees chromatic aberration, but tells no place: these images may have too little of it. On "
            f"images with more it may become a shortcut; {_CLOSES} closes it."
        ]
    return ["No sign of a shortcut by place or colour." if aberration is False else "No sign of a shortcut by place."]
