"""Values and gradients of `losses.py` on a tile of whole rows, in float32, for Triton kernels.

Shapes: R images, C classes rounded up to a power of two; tiles are [R, C], values of a loss [R].
Past the last class logits are PAD: probability 0, and the difference of two of them is 0, so that
most sums over classes need no mask. `at` and `label` are one-hot tiles of bool.

Source: the losses are those of `losses.py`, the gradients those of `_gradients.py`.
"""

# mypy: allow-untyped-defs
# (Triton's arguments have no Python types)

from ._op import block_sizes, tl, triton

# a loss's code in `kinds` of attack_logit_grad and in `terms` of multi_peer_loss
NAMES = ("ce", "boosted_ce", "kl", "mart_kl", "square", "margin", "dlr", "uniform_ce")
KINDS = {name: code for code, name in enumerate(NAMES)}

CE, BOOSTED_CE, KL, MART_KL, SQUARE, MARGIN, DLR, UNIFORM_CE = (
    tl.constexpr(code) for code in KINDS.values()
)
PAD = tl.constexpr(-1e30)


def tile(images: int, classes: int) -> dict[str, int]:
    """A launch's constants and warps. Small tiles: there is little work, and no register spills."""
    block_r, block_c = block_sizes(images, classes, elements=128)
    return {"BLOCK_R": block_r, "BLOCK_C": block_c, "num_warps": min(max(4, block_c // 128), 16)}


@triton.jit
def load_logits(z_ptr, slab, rows, classes, B, C):
    """Logits [R, C] of z[slab], z contiguous [slabs, B, C]; 0 in rows past the end."""
    offsets = (slab.to(tl.int64) * B + rows[:, None]) * C + classes[None, :]
    logits = tl.load(z_ptr + offsets, mask=(rows < B)[:, None] & (classes < C)[None, :], other=0.0)
    return tl.where(classes[None, :] < C, logits.to(tl.float32), PAD)


@triton.jit
def store_grad(dz_ptr, grad, slab, rows, classes, B, C):
    """Write grad [R, C] to dz[slab], dz contiguous [slabs, B, C]."""
    offsets = (slab.to(tl.int64) * B + rows[:, None]) * C + classes[None, :]
    tl.store(dz_ptr + offsets, grad, mask=(rows < B)[:, None] & (classes < C)[None, :])


@triton.jit
def load_label(y_ptr, rows, classes, B):
    return tl.load(y_ptr + rows, mask=rows < B, other=0)[:, None] == classes[None, :]


@triton.jit
def pick(values, at):
    return tl.sum(tl.where(at, values, 0.0), 1)


@triton.jit
def largest(z, classes):
    """Where a row is largest, the first of equals."""
    return tl.argmax(z, 1)[:, None] == classes[None, :]


@triton.jit
def softmax(z):
    """p, and log p = shifted - log(total) in its two parts: joined they would round twice."""
    shifted = z - tl.max(z, 1)[:, None]
    exp = tl.exp(shifted)
    total = tl.sum(exp, 1)
    return exp / total[:, None], shifted, total


@triton.jit
def others(p, at):
    """1 - p[at] without its cancellation, which 1 / (1.0001 - p) would blow up."""
    return tl.sum(tl.where(at, 0.0, p), 1)


@triton.jit
def margin(z, label, classes):
    wrong = largest(tl.where(label, PAD, z), classes)
    return pick(z, wrong) - pick(z, label), wrong.to(tl.float32) - label.to(tl.float32)


@triton.jit
def dlr(z, label, classes):
    lead, d_lead = margin(z, label, classes)
    first = largest(z, classes)
    but_first = tl.where(first, PAD, z)
    third = largest(tl.where(largest(but_first, classes), PAD, but_first), classes)
    spread = pick(z, first) - pick(z, third) + 1e-12
    value = lead / spread
    d_spread = first.to(tl.float32) - third.to(tl.float32)
    return value, (d_lead - value[:, None] * d_spread) / spread[:, None]


@triton.jit
def ce(z, label):
    p, shifted, total = softmax(z)
    return tl.log(total) - pick(shifted, label), p - label.to(tl.float32)


@triton.jit
def uniform_ce(z, classes, C):
    p, shifted, total = softmax(z)
    mean = tl.sum(tl.where(classes[None, :] < C, shifted, 0.0), 1) / C
    return tl.log(total) - mean, p - 1.0 / C


@triton.jit
def boosted_ce(z, label, classes):
    value, grad = ce(z, label)
    p, _, _ = softmax(z)
    wrong = largest(tl.where(label, PAD, z), classes)
    p_others = others(p, wrong)
    room = 1e-4 + p_others + 1e-12  # 1.0001 - p_wrong + 1e-12
    d_wrong = tl.where(wrong, p_others[:, None], -p)
    return value - tl.log(room), grad + (pick(p, wrong) / room)[:, None] * d_wrong


@triton.jit
def kl(z_t, z_p):
    """KL(t || p), its gradient in the teacher's logits and in the student's."""
    t, shifted_t, total_t = softmax(z_t)
    p, shifted_p, total_p = softmax(z_p)
    difference = shifted_t - shifted_p
    mean = tl.sum(t * difference, 1)
    return mean + tl.log(total_p / total_t), t * (difference - mean[:, None]), p - t


@triton.jit
def mart_kl(z_t, z_p, label):
    """(1.0000001 - t_y) KL(t || p), its gradient in the teacher's logits and in the student's."""
    value, d_teacher, d_student = kl(z_t, z_p)
    t, _, _ = softmax(z_t)
    t_others = others(t, label)
    weight = 1e-7 + t_others
    d_weight = pick(t, label)[:, None] * tl.where(label, -t_others[:, None], t)
    d_teacher = weight[:, None] * d_teacher + value[:, None] * d_weight
    return weight * value, d_teacher, weight[:, None] * d_student


@triton.jit
def square(a, b, C):
    """mean over C classes of (a - b)^2 and its gradient in a; in b it is the negative."""
    difference = a - b
    return tl.sum(difference * difference, 1) / C, 2.0 / C * difference
