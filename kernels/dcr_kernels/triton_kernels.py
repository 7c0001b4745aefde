"""Triton kernels over the pairs of a batch: statistics of rows, weights of pairs, gradient.

All of them recompute tiles of cosines from the raw rows: the dot is of h as it comes out of the model, the lengths
enter its float32 result. Rounding unit vectors to bfloat16 instead would cost up to a third of the gradient where
few dimensions dominate. Each output has one writer: there are no atomics, and repeated runs are equal bit for bit.

Prefixes: i_ program ids, o_ offsets, m_ masks, p_ pointers, b_ values of a block. Suffixes: _m of the rows of a
tile [BM], _n of its columns [BN], none: of its pairs [BM, BN]. N rows of all ranks, n of this rank from `first` on,
D width. h is contiguous, its dead rows are 0. `slope` is γ or 1/τ, times log₂ e: exponentials are powers of two.
Comparisons are written so that NaN propagates.
"""

import triton
import triton.language as tl

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def _cosines(p_h, o_m, o_n, m_m, m_n, b_inverse_m, b_inverse_n,
             D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
             UPCAST: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    b_dot = tl.zeros([BM, BN], dtype=tl.float32)
    for o_start in range(0, D, BD):
        o_d = o_start + tl.arange(0, BD)
        m_d = o_d < D
        b_m = tl.load(p_h + o_m[:, None] * D + o_d[None, :], mask=m_m[:, None] & m_d[None, :], other=0.0)  # [BM, BD]
        b_n = tl.load(p_h + o_n[None, :] * D + o_d[:, None], mask=m_n[None, :] & m_d[:, None], other=0.0)  # [BD, BN]
        if UPCAST:  # the interpreter multiplies the bit patterns of bfloat16
            b_m = b_m.to(tl.float32)
            b_n = b_n.to(tl.float32)
        b_dot = tl.dot(b_m, b_n, b_dot, input_precision=PRECISION)
    return b_dot * b_inverse_m[:, None] * b_inverse_n[None, :]


@triton.jit
def _pair_masks(o_m, o_n, b_label_m, b_label_n):
    """Pairs of two different live rows; pairs of equal labels."""
    m_pair = (b_label_m >= 0)[:, None] & (b_label_n >= 0)[None, :] & (o_m[:, None] != o_n[None, :])
    return m_pair, b_label_m[:, None] == b_label_n[None, :]


@triton.jit
def _logits(b_cosine, m_same, margin, slope, KIND: tl.constexpr):
    """Circle's weight α of either kind of pair (of the other losses nothing that is used), and the logits x."""
    b_weight = b_cosine
    if KIND == "circle":
        b_weight = tl.where(m_same, 1.0 - b_cosine, b_cosine) + margin
        b_weight = tl.where(b_weight < 0.0, 0.0, b_weight)
        b_x = slope * b_weight * (b_weight - 2.0 * margin)
    else:
        b_x = slope * b_cosine
    return b_weight, b_x


@triton.jit
def _shifted(b_max):
    """A maximum to subtract: 0 where there is nothing yet, for −∞ − (−∞) is NaN."""
    return tl.where(b_max == -INFINITY, 0.0, b_max)


@triton.jit
def _log_sum(b_max, b_sum):
    """Natural logarithm of b_sum · 2^b_max, −∞ of an empty sum."""
    return tl.where(b_sum == 0.0, -INFINITY, (b_max + tl.log2(tl.where(b_sum == 0.0, 1.0, b_sum))) * LN2)


@triton.jit
def _add_both(b_x, m_pair, m_same, b_max_p, b_sum_p, b_max_n, b_sum_n):
    """Add a tile to the sums of 2^x over positives and over negatives, each relative to its maximum."""
    b_new_p = tl.maximum(b_max_p, tl.max(tl.where(m_pair & m_same, b_x, -INFINITY), axis=1))
    b_new_n = tl.maximum(b_max_n, tl.max(tl.where(m_pair & (m_same == 0), b_x, -INFINITY), axis=1))
    b_shift_p, b_shift_n = _shifted(b_new_p), _shifted(b_new_n)
    # one exponential per pair, which is either positive or negative
    b_shift = tl.where(m_same, b_shift_p[:, None], b_shift_n[:, None])
    b_exp = tl.where(m_pair, tl.exp2(tl.where(m_pair, b_x - b_shift, 0.0)), 0.0)
    b_sum_p = b_sum_p * tl.exp2(b_max_p - b_shift_p) + tl.sum(tl.where(m_same, b_exp, 0.0), axis=1)
    b_sum_n = b_sum_n * tl.exp2(b_max_n - b_shift_n) + tl.sum(tl.where(m_same, 0.0, b_exp), axis=1)
    return b_new_p, b_sum_p, b_new_n, b_sum_n


@triton.jit
def _add_negatives(b_x, m_negative, b_max, b_sum):
    """Add a tile to the sum of 2^x over negatives."""
    b_x = tl.where(m_negative, b_x, -INFINITY)
    b_new = tl.maximum(b_max, tl.max(b_x, axis=1))
    b_shift = _shifted(b_new)
    b_exp = tl.exp2(b_x - b_shift[:, None])
    return b_new, b_sum * tl.exp2(b_max - b_shift) + tl.sum(b_exp, axis=1)


@triton.jit
def _hardest(b_x, m_kind, o_start, b_max, b_from):
    """The largest x so far and its column; of equals the first column wins."""
    b_new, b_at = tl.max(tl.where(m_kind, b_x, -INFINITY), axis=1, return_indices=True)
    return tl.maximum(b_max, b_new), tl.where(b_new > b_max, o_start + b_at, b_from)


@triton.jit
def _log1p(b_x):
    """log(1 + x) for 0 ≤ x ≤ 1, to the last digits of a small x (Kahan)."""
    b_sum = 1.0 + b_x
    b_step = b_sum - 1.0
    return tl.where(b_step == 0.0, b_x, tl.log(b_sum) * (b_x / tl.where(b_step == 0.0, 1.0, b_step)))


@triton.jit
def _sigmoid(b_x):
    b_small = tl.exp(-tl.abs(b_x))
    return tl.where(b_x < 0.0, b_small, 1.0) / (1.0 + b_small)


@triton.jit(do_not_specialize=["first", "num_own", "num_rows", "columns_per_split"])
def statistics_kernel(
    p_h,  # [N, D]
    p_inverse,  # [N] 1 / |h|
    p_labels,  # [N]
    p_bound,  # [n] B of the own rows, for ntxent_terms
    p_out,  # [splits, S, n]
    p_chosen,  # [splits, 2, n] rows, for triplet
    first, num_own, num_rows, columns_per_split,
    margin, slope,
    KIND: tl.constexpr, S: tl.constexpr, D: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Statistics of BM own rows over a split of the columns.

    KIND       S   what
    circle     2   A, B
    supcon     4   A, B, Q, k
    infonce    1   B
    ntxent     1   B, from which another launch with ntxent_terms takes
    ntxent_terms 3 ℓ, U, k
    triplet    2   A, B and the columns they are from
    """
    i_m, i_split = tl.program_id(0), tl.program_id(1)
    o_own = (i_m * BM + tl.arange(0, BM)).to(tl.int64)
    o_m = first + o_own
    m_m = o_own < num_own
    b_inverse_m = tl.load(p_inverse + o_m, mask=m_m, other=0.0)
    b_label_m = tl.load(p_labels + o_m, mask=m_m, other=-1)
    b_max_p = tl.full([BM], -INFINITY, dtype=tl.float32)
    b_max_n = tl.full([BM], -INFINITY, dtype=tl.float32)
    b_sum_p = tl.zeros([BM], dtype=tl.float32)
    b_sum_n = tl.zeros([BM], dtype=tl.float32)
    b_total = tl.zeros([BM], dtype=tl.float32)
    b_count = tl.zeros([BM], dtype=tl.float32)
    b_from_p = tl.zeros([BM], dtype=tl.int64)
    b_from_n = tl.zeros([BM], dtype=tl.int64)
    if KIND == "ntxent_terms":
        b_bound = tl.load(p_bound + o_own, mask=m_m, other=-INFINITY)

    start = i_split * columns_per_split
    for o_start in range(start, tl.minimum(start + columns_per_split, num_rows), BN):
        o_n = (o_start + tl.arange(0, BN)).to(tl.int64)
        m_n = o_n < num_rows
        b_inverse_n = tl.load(p_inverse + o_n, mask=m_n, other=0.0)
        b_label_n = tl.load(p_labels + o_n, mask=m_n, other=-1)
        b_cosine = _cosines(p_h, o_m, o_n, m_m, m_n, b_inverse_m, b_inverse_n, D, BM, BN, BD, UPCAST, PRECISION)
        m_pair, m_same = _pair_masks(o_m, o_n, b_label_m, b_label_n)
        m_positive = m_pair & m_same
        m_negative = m_pair & (m_same == 0)
        _, b_x = _logits(b_cosine, m_same, margin, slope, KIND)

        if KIND == "circle" or KIND == "supcon":
            b_max_p, b_sum_p, b_max_n, b_sum_n = _add_both(b_x, m_pair, m_same, b_max_p, b_sum_p, b_max_n, b_sum_n)
            if KIND == "supcon":
                b_total += tl.sum(tl.where(m_positive, b_x, 0.0), axis=1)
                b_count += tl.sum(tl.where(m_positive, 1.0, 0.0), axis=1)
        elif KIND == "infonce" or KIND == "ntxent":
            b_max_n, b_sum_n = _add_negatives(b_x, m_negative, b_max_n, b_sum_n)
        elif KIND == "ntxent_terms":
            b_z = b_bound[:, None] - slope * LN2 * b_cosine
            b_z = tl.where(m_positive, b_z, 0.0)
            b_softplus = tl.where(b_z < 0.0, 0.0, b_z) + _log1p(tl.exp(-tl.abs(b_z)))
            b_sum_p += tl.sum(tl.where(m_positive, b_softplus, 0.0), axis=1)
            b_total += tl.sum(tl.where(m_positive, _sigmoid(b_z), 0.0), axis=1)
            b_count += tl.sum(tl.where(m_positive, 1.0, 0.0), axis=1)
        else:  # triplet
            b_max_p, b_from_p = _hardest(-b_cosine, m_positive, o_start, b_max_p, b_from_p)
            b_max_n, b_from_n = _hardest(b_cosine, m_negative, o_start, b_max_n, b_from_n)
            b_total += tl.sum(tl.where(m_pair, b_cosine, 0.0), axis=1)

    p_out += i_split.to(tl.int64) * S * num_own + o_own
    if KIND == "circle" or KIND == "supcon":
        tl.store(p_out, _log_sum(b_max_p, b_sum_p), mask=m_m)
        tl.store(p_out + num_own, _log_sum(b_max_n, b_sum_n), mask=m_m)
        if KIND == "supcon":
            tl.store(p_out + 2 * num_own, b_total * LN2, mask=m_m)
            tl.store(p_out + 3 * num_own, b_count, mask=m_m)
    elif KIND == "infonce" or KIND == "ntxent":
        tl.store(p_out, _log_sum(b_max_n, b_sum_n), mask=m_m)
    elif KIND == "ntxent_terms":
        tl.store(p_out, b_sum_p, mask=m_m)
        tl.store(p_out + num_own, b_total, mask=m_m)
        tl.store(p_out + 2 * num_own, b_count, mask=m_m)
    else:
        b_poison = b_total * 0.0  # a maximum drops NaN, but the sum keeps it
        tl.store(p_out, b_max_p + b_poison, mask=m_m)
        tl.store(p_out + num_own, b_max_n + b_poison, mask=m_m)
        p_chosen += i_split.to(tl.int64) * 2 * num_own + o_own
        tl.store(p_chosen, b_from_p, mask=m_m)
        tl.store(p_chosen + num_own, b_from_n, mask=m_m)


@triton.jit
def _pulls(b_cosine, o_m, o_n, m_m, m_n, p_labels, p_positive, p_negative, p_constant, margin, slope,
           KIND: tl.constexpr):  # fmt: skip
    """∂L/∂s of a tile of cosines, with either row of a pair as the anchor: the table of `Coefficients`, twice."""
    b_label_m = tl.load(p_labels + o_m, mask=m_m, other=-1)
    b_label_n = tl.load(p_labels + o_n, mask=m_n, other=-1)
    m_pair, m_same = _pair_masks(o_m, o_n, b_label_m, b_label_n)
    b_negative_m = tl.load(p_negative + o_m, mask=m_m, other=INFINITY)
    b_negative_n = tl.load(p_negative + o_n, mask=m_n, other=INFINITY)
    b_weight, b_x = _logits(b_cosine, m_same, margin, slope, KIND)
    if KIND == "circle" or KIND == "supcon":
        b_positive_m = tl.load(p_positive + o_m, mask=m_m, other=INFINITY)
        b_positive_n = tl.load(p_positive + o_n, mask=m_n, other=INFINITY)
        b_as_row = tl.where(m_same, b_positive_m[:, None], b_negative_m[:, None])
        b_as_column = tl.where(m_same, b_positive_n[None, :], b_negative_n[None, :])
    else:
        b_as_row, b_as_column = b_negative_m[:, None], b_negative_n[None, :]
    # masked pairs may overflow: their logit can be far above both normalisers
    b_pull = tl.exp2(tl.where(m_pair, b_x - b_as_row * LOG2E, -INFINITY))
    b_pull += tl.exp2(tl.where(m_pair, b_x - b_as_column * LOG2E, -INFINITY))
    if KIND == "circle":
        b_pull = tl.where(m_same, -b_weight, b_weight) * b_pull
    elif KIND == "infonce":
        b_pull = tl.where(m_same, 0.0, b_pull)
    else:
        b_constant_m = tl.load(p_constant + o_m, mask=m_m, other=0.0)
        b_constant_n = tl.load(p_constant + o_n, mask=m_n, other=0.0)
        if KIND == "supcon":
            b_pull += tl.where(m_same, b_constant_m[:, None] + b_constant_n[None, :], 0.0)
        else:  # ntxent
            b_positive_m = tl.load(p_positive + o_m, mask=m_m, other=0.0)
            b_positive_n = tl.load(p_positive + o_n, mask=m_n, other=0.0)
            b_as_row = b_constant_m[:, None] * _sigmoid(b_positive_m[:, None] - b_x * LN2)
            b_as_column = b_constant_n[None, :] * _sigmoid(b_positive_n[None, :] - b_x * LN2)
            b_pull = tl.where(m_same, b_as_row + b_as_column, b_pull)
    return tl.where(m_pair, b_pull, 0.0)


@triton.jit(do_not_specialize=["first", "num_own", "num_rows"])
def pull_kernel(
    p_h, p_inverse, p_labels, p_positive, p_negative, p_constant,
    p_out,  # [n, N]: ∂L/∂s_ij / |h_j|, whose product with h is ∂L/∂e
    first, num_own, num_rows,
    margin, slope,
    KIND: tl.constexpr, D: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of the weights of `num_own` rows, for a matrix product that follows."""
    o_own = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    o_n = (tl.program_id(1) * BN + tl.arange(0, BN)).to(tl.int64)
    o_m = first + o_own
    m_m, m_n = o_own < num_own, o_n < num_rows
    b_inverse_m = tl.load(p_inverse + o_m, mask=m_m, other=0.0)
    b_inverse_n = tl.load(p_inverse + o_n, mask=m_n, other=0.0)
    b_cosine = _cosines(p_h, o_m, o_n, m_m, m_n, b_inverse_m, b_inverse_n, D, BM, BN, BD, UPCAST, PRECISION)
    b_pull = _pulls(b_cosine, o_m, o_n, m_m, m_n, p_labels, p_positive, p_negative, p_constant, margin, slope, KIND)
    b_pull *= b_inverse_n[None, :]
    p_tile = p_out + o_own[:, None] * num_rows + o_n[None, :]
    tl.store(p_tile, b_pull.to(p_out.dtype.element_ty), mask=m_m[:, None] & m_n[None, :])


@triton.jit(do_not_specialize=["first", "num_own", "num_rows"])
def toward_kernel(
    p_h, p_inverse, p_labels, p_positive, p_negative, p_constant,
    p_out,  # [n, D] float32: ∂L/∂e
    first, num_own, num_rows,
    margin, slope,
    KIND: tl.constexpr, D: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """∂L/∂e of BM own rows without a matrix of weights: the sum over column tiles lives in the output.

    BM × D in float32 does not fit the registers, so a program adds to its own rows in memory (L2) tile by tile.
    """
    o_own = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    o_m = first + o_own
    m_m = o_own < num_own
    b_inverse_m = tl.load(p_inverse + o_m, mask=m_m, other=0.0)
    for o_start in range(0, num_rows, BN):
        o_n = (o_start + tl.arange(0, BN)).to(tl.int64)
        m_n = o_n < num_rows
        b_inverse_n = tl.load(p_inverse + o_n, mask=m_n, other=0.0)
        b_cosine = _cosines(p_h, o_m, o_n, m_m, m_n, b_inverse_m, b_inverse_n, D, BM, BN, BD, UPCAST, PRECISION)
        b_pull = _pulls(b_cosine, o_m, o_n, m_m, m_n, p_labels, p_positive, p_negative, p_constant, margin, slope, KIND)
        b_pull *= b_inverse_n[None, :]
        for o_from in range(0, D, BD):
            o_d = o_from + tl.arange(0, BD)
            m_d = o_d < D
            b_n = tl.load(p_h + o_n[:, None] * D + o_d[None, :], mask=m_n[:, None] & m_d[None, :], other=0.0)
            if UPCAST:
                b_n = b_n.to(tl.float32)
            p_tile = p_out + o_own[:, None] * D + o_d[None, :]
            m_tile = m_m[:, None] & m_d[None, :]
            b_out = tl.load(p_tile, mask=m_tile & (o_start > 0), other=0.0)
            b_out = tl.dot(b_pull.to(b_n.dtype), b_n, b_out, input_precision=PRECISION)
            tl.store(p_tile, b_out, mask=m_tile)
        tl.debug_barrier()  # the next tile reads what this thread has stored


@triton.jit
def through_length_kernel(
    p_toward,  # [n, D] float32, overwritten
    p_h, p_inverse, p_labels,  # of the same n rows
    factor,
    D: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """`unit.through_length` of one row: D fits a block, so both tensors are read once."""
    i_row = tl.program_id(0).to(tl.int64)
    o_d = tl.arange(0, BD)
    m_d = o_d < D
    b_inverse = tl.load(p_inverse + i_row)
    b_toward = tl.load(p_toward + i_row * D + o_d, mask=m_d, other=0.0)
    b_unit = tl.load(p_h + i_row * D + o_d, mask=m_d, other=0.0).to(tl.float32) * b_inverse
    b_radial = tl.sum(b_toward * b_unit, axis=0)
    b_gradient = (b_toward - b_radial * b_unit) * (b_inverse * factor)
    dead = (tl.load(p_labels + i_row) < 0) | (b_inverse == 0.0)
    tl.store(p_toward + i_row * D + o_d, tl.where(dead, 0.0, b_gradient), mask=m_d)
