"""`moec::route` on the device: one program a token, its experts laid out as groups by places."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scores_of(x, valid, SCORE: tl.constexpr):
    """Scores of one token's logits; places without an expert hold nothing to be used."""
    if SCORE == "softmax":
        e = tl.where(valid, tl.exp(x - tl.max(tl.where(valid, x, float("-inf")))), 0.0)
        y = e / tl.sum(e)
    elif SCORE == "sigmoid":
        y = 1.0 / (1.0 + tl.exp(-x))
    elif SCORE == "sqrt_softplus":
        # log1p(e) for a small e, where log(1 + e) would lose it
        e = tl.exp(tl.where(x > 20.0, 0.0, x))
        u = 1.0 + e
        log1p = tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))
        y = tl.sqrt(tl.where(x > 20.0, x, log1p))
    else:
        tl.static_assert(SCORE == "identity")
        y = x
    return y


@triton.jit
def open_groups(choice, valid, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, GROUP_SCORE: tl.constexpr):
    """Which groups `[groups, 1]` may be chosen from: the best `TOP_GROUPS`, the first of equals."""
    group = tl.arange(0, choice.shape[0])[:, None]
    place = tl.arange(0, choice.shape[1])[None, :]
    best = tl.max(choice, axis=1)[:, None]
    if GROUP_SCORE == "top2":
        first = tl.min(tl.where(choice == best, place, choice.shape[1]), axis=1)[:, None]
        best += tl.max(tl.where(place == first, float("-inf"), choice), axis=1)[:, None]
    best = tl.where(group < GROUPS, tl.maximum(best, -3.0e38), float("-inf"))
    opened = group < 0
    for _ in range(TOP_GROUPS):
        winner = tl.min(tl.where(best == tl.max(best), group, choice.shape[0]))
        opened = opened | (group == winner)
        best = tl.where(group == winner, float("-inf"), best)
    return opened


@triton.jit
def combined(picked, logits, taken, scale, epsilon, floor, COMBINE: tl.constexpr):
    """Weights of the chosen experts from their scores and logits, `[K]`, `taken` where there is one."""
    if COMBINE == "renormalize":
        w = picked / tl.maximum(tl.sum(tl.where(taken, picked, 0.0)) + epsilon, floor)
    elif COMBINE == "softmax":
        e = tl.where(taken, tl.exp(logits - tl.max(tl.where(taken, logits, float("-inf")))), 0.0)
        w = e / tl.sum(e)
    elif COMBINE == "ones":
        w = tl.full(picked.shape, 1.0, tl.float32)
    else:
        tl.static_assert(COMBINE == "scores")
        w = picked
    return w * scale


@triton.jit(do_not_specialize=["tokens"])
def route_kernel(
    logits, router_bias, bias, tokens, scale, epsilon, floor, weights, ids, EXPERTS: tl.constexpr, K: tl.constexpr,
    K_WIDE: tl.constexpr, PLACES_WIDE: tl.constexpr, GROUPS: tl.constexpr, GROUPS_WIDE: tl.constexpr, TOP_GROUPS:
    tl.constexpr, GROUP_SCORE: tl.constexpr, SCORE: tl.constexpr, COMBINE: tl.constexpr, CLOSED_AS_ZERO: tl.constexpr,
    HAS_ROUTER_BIAS: tl.constexpr, HAS_BIAS: tl.constexpr, BY_LOGITS: tl.constexpr, SPLITS: tl.constexpr, FLOORED:
    tl.constexpr,
):  # fmt: skip
    """Grid: tokens. logits `[SPLITS, tokens, EXPERTS]` and router_bias `[EXPERTS]` are summed; weights and ids
    `[tokens, K]`.

    *_WIDE are powers of two that hold the rest.
    """
    token = tl.program_id(0).to(tl.int64)
    PLACES: tl.constexpr = EXPERTS // GROUPS
    group, place = tl.arange(0, GROUPS_WIDE)[:, None], tl.arange(0, PLACES_WIDE)[None, :]
    valid = (group < GROUPS) & (place < PLACES)
    expert = tl.where(valid, group * PLACES + place, EXPERTS)
    x = tl.zeros((GROUPS_WIDE, PLACES_WIDE), tl.float32)
    for split in range(SPLITS):
        x += tl.load(logits + (split * tokens.to(tl.int64) + token) * EXPERTS + expert, mask=valid, other=0.0).to(
            tl.float32
        )
    if HAS_ROUTER_BIAS:
        x += tl.load(router_bias + expert, mask=valid, other=0.0).to(tl.float32)
    scores = x if BY_LOGITS else scores_of(x, valid, SCORE)
    choice = scores
    if HAS_BIAS:
        choice += tl.load(bias + expert, mask=valid, other=0.0).to(tl.float32)
    # as torch.topk has it NaN comes first; whatever else happens there are K different valid ids
    choice = tl.where(choice != choice, float("inf"), tl.maximum(choice, -3.0e38))
    choice = tl.where(valid, choice, float("-inf"))
    if GROUPS > 1:
        closed = 0.0 if CLOSED_AS_ZERO else -3.0e38
        choice = tl.where(valid & (open_groups(choice, valid, GROUPS, TOP_GROUPS, GROUP_SCORE) == 0), closed, choice)

    slot = tl.arange(0, K_WIDE)
    picked, own, chosen = (
        tl.zeros((K_WIDE,), tl.float32),
        tl.zeros((K_WIDE,), tl.float32),
        tl.zeros((K_WIDE,), tl.int64),
    )
    for k in range(K):
        winner = tl.min(tl.where(choice == tl.max(choice), expert, EXPERTS))
        hit = expert == winner
        picked = tl.where(slot == k, tl.sum(tl.where(hit, scores, 0.0)), picked)
        own = tl.where(slot == k, tl.sum(tl.where(hit, x, 0.0)), own)
        chosen = tl.where(slot == k, winner.to(tl.int64), chosen)
        choice = tl.where(hit, float("-inf"), choice)
    w = combined(picked, own, slot < K, scale, epsilon, floor if FLOORED else float("-inf"), COMBINE)
    tl.store(weights + token * K + slot, w, mask=slot < K)
    tl.store(ids + token * K + slot, chosen, mask=slot < K)
