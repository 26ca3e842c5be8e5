"""Loss terms of every objective and of the collaboration, each as its formula.

Notation: z logits, p = softmax(z(clean)), q = softmax(z(adv)), y labels, KL(a || b) in nats.
Shapes: B batch, C classes; logits are `[B, C]`, labels `[B]` class indices.
Every objective takes the logits of its own views in the order in which it computes them, then y,
then its settings, and returns {term: scalar}, weights included; the loss is the sum of the terms.
Softmax, cross entropy and divergence are spelled out, so torch's own reductions are not used.
"""

from collections.abc import Callable

import torch
from torch import Tensor

BCE_MARGIN = 1.0001
BCE_FLOOR = 1e-12
WEIGHT_MARGIN = 1.0000001


def log_softmax(z_BC: Tensor) -> Tensor:
    """log p_c = z_c - m - log sum_k exp(z_k - m) with m = max_k z_k; returns `[B, C]`."""
    shifted_BC = z_BC - z_BC.detach().amax(dim=1, keepdim=True)
    return shifted_BC - shifted_BC.exp().sum(dim=1, keepdim=True).log()


def cross_entropy(z_BC: Tensor, y_B: Tensor) -> Tensor:
    """CE_i = -log p_y; returns `[B]`."""
    return -log_softmax(z_BC)[torch.arange(len(y_B), device=y_B.device), y_B]


def uniform_cross_entropy(z_BC: Tensor) -> Tensor:
    """-sum_c (1/C) log p_c; returns `[B]`."""
    return -log_softmax(z_BC).sum(dim=1) / z_BC.shape[1]


def smoothed(z_BC: Tensor, y_B: Tensor, smoothing: float) -> Tensor:
    """-sum_c t_c log p_c, t the label with 1 - s of the probability and s spread over all classes.

    Returns `[B]`. Szegedy et al., Rethinking the Inception Architecture, 2016, section 7.
    """
    t_BC = torch.full_like(z_BC, smoothing / z_BC.shape[1])
    t_BC[torch.arange(len(y_B), device=y_B.device), y_B] += 1.0 - smoothing
    return -(t_BC * log_softmax(z_BC)).sum(dim=1)


def kl(z_target_BC: Tensor, z_BC: Tensor) -> Tensor:
    """KL_i(a || b) = sum_c a_c (log a_c - log b_c), a = softmax(z_target), b = softmax(z).

    Returns `[B]`; both arguments get gradient.
    """
    log_a_BC = log_softmax(z_target_BC)
    return (log_a_BC.exp() * (log_a_BC - log_softmax(z_BC))).sum(dim=1)


def natural(clean_BC: Tensor, y_B: Tensor, smoothing: float = 0.0) -> dict[str, Tensor]:
    """(1/B) sum_i CE_i(z(x), y), the labels smoothed as in `smoothed`, here and below."""
    return {"ce": smoothed(clean_BC, y_B, smoothing).sum() / len(y_B)}


def at(adv_BC: Tensor, y_B: Tensor, smoothing: float = 0.0) -> dict[str, Tensor]:
    """(1/B) sum_i CE_i(z(x_adv), y).

    Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, 2018, Eq. 2.1.
    """
    return {"ce": smoothed(adv_BC, y_B, smoothing).sum() / len(y_B)}


def trades(
    clean_BC: Tensor, adv_BC: Tensor, y_B: Tensor, beta: float = 6.0, smoothing: float = 0.0
) -> dict[str, Tensor]:
    """(1/B) sum_i CE_i(z(x), y) + beta (1/B) sum_i KL_i(p || q), gradient through p and q.

    Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, 2019,
    Algorithm 1, where beta is 1 / lambda.
    """
    return {
        "ce": smoothed(clean_BC, y_B, smoothing).sum() / len(y_B),
        "kl": beta * kl(clean_BC, adv_BC).sum() / len(y_B),
    }


def alp(
    adv_BC: Tensor, clean_BC: Tensor, y_B: Tensor, weight: float = 1.0, smoothing: float = 0.0
) -> dict[str, Tensor]:
    """1/2 [CE(z(x_adv), y) + CE(z(x), y)] + weight / (B C) sum_ic (z_ic(x_adv) - z_ic(x))^2.

    Cross entropies are means over the batch; both logits get gradient.
    Kannan et al., Adversarial Logit Pairing, 2018; halves and mean as in Liu et al., CAT, 2023.
    """
    ce_B = 0.5 * (smoothed(adv_BC, y_B, smoothing) + smoothed(clean_BC, y_B, smoothing))
    return {
        "ce": ce_B.sum() / len(y_B),
        "pairing": weight * ((adv_BC - clean_BC) ** 2).sum() / adv_BC.numel(),
    }


def mart(
    clean_BC: Tensor, adv_BC: Tensor, y_B: Tensor, beta: float = 5.0, floor: float = 0.0
) -> dict[str, Tensor]:
    """BCE + beta (1/B) sum_i (1.0000001 - p_y) KL_i(p || q), gradient through everything, with

    BCE = (1/B) sum_i [-log q_y - log(1.0001 - max_{k != y} q_k + 1e-12)].

    Wang et al., Improving Adversarial Robustness Requires Revisiting Misclassified Examples, 2020,
    with the margins of the authors' code. floor: KL_i = sum_c p_c (log p_c - log(q_c + floor)); it
    is 1e-12 there.
    """
    rows_B = torch.arange(len(y_B), device=y_B.device)
    wrong_BC = log_softmax(adv_BC).exp()
    wrong_BC = wrong_BC.index_put((rows_B, y_B), wrong_BC.new_tensor(-1.0))  # below any q_k
    runner_up_B = wrong_BC.max(dim=1).values
    bce_B = cross_entropy(adv_BC, y_B) - (BCE_MARGIN - runner_up_B + BCE_FLOOR).log()
    p_y_B = log_softmax(clean_BC).exp()[rows_B, y_B]
    kl_B = kl(clean_BC, adv_BC)
    if floor:
        log_p_BC = log_softmax(clean_BC)
        log_q_BC = (log_softmax(adv_BC).exp() + floor).log()
        kl_B = (log_p_BC.exp() * (log_p_BC - log_q_BC)).sum(dim=1)
    return {
        "bce": bce_B.sum() / len(y_B),
        "kl": beta * ((WEIGHT_MARGIN - p_y_B) * kl_B).sum() / len(y_B),
    }


def boosted(adv_BC: Tensor, y_B: Tensor, inner: str = "boosted_ce") -> dict[str, Tensor]:
    """BCE as in `mart`, alone; inner is what the attack climbs and does not matter here.

    The C of Liu et al., Mutual Adversarial Training, 2021 (arXiv 2112.05005), with MART's margins.
    """
    rows_B = torch.arange(len(y_B), device=y_B.device)
    q_BC = log_softmax(adv_BC).exp()
    is_label_BC = torch.zeros_like(q_BC, dtype=torch.bool)
    is_label_BC[rows_B, y_B] = True
    runner_up_B = q_BC.masked_fill(is_label_BC, -1.0).max(dim=1).values
    margin_B = BCE_MARGIN - runner_up_B + BCE_FLOOR
    return {"bce": -(log_softmax(adv_BC)[rows_B, y_B] + margin_B.log()).sum() / len(y_B)}


def roles(z: dict[str, Tensor], y_B: Tensor, official: bool = False) -> list[tuple[str, str]]:
    """Of the views in z, for each image the name of that of lowest and that of highest log p_y.

    official: by p_y, and of equals the clean image, then col, for both.
    """
    log_p = {name: log_softmax(z_BC.detach()) for name, z_BC in z.items()}
    chosen = []
    for i, label in enumerate(y_B.tolist()):
        if official:
            p_y = {name: log_p[name][i, label].exp().item() for name in ("clean", "col", "adv")}
            chosen.append((min(p_y, key=p_y.__getitem__), max(p_y, key=p_y.__getitem__)))
            continue
        # of equals the first is the lowest, the last the highest
        order = ("adv", "clean", "col")
        by_size = sorted(order, key=lambda name: log_p[name][i, label].item())
        chosen.append((by_size[0], by_size[-1]))
    return chosen


def symmetric(upper_BC: Tensor, lower_BC: Tensor) -> Tensor:
    """1/2 [KL_i(sg[l] || u) + KL_i(sg[u] || l)], u and l their softmaxes; returns `[B]`."""
    return 0.5 * (kl(lower_BC.detach(), upper_BC) + kl(upper_BC.detach(), lower_BC))


def jensen_shannon(upper_BC: Tensor, lower_BC: Tensor) -> Tensor:
    """1/2 sum_c [u (log u - log m) + l (log l - log m)], m = (u + l) / 2; returns `[B]`."""
    log_u, log_l = log_softmax(upper_BC), log_softmax(lower_BC)
    log_m = (0.5 * (log_u.exp() + log_l.exp())).log()
    return 0.5 * (log_u.exp() * (log_u - log_m) + log_l.exp() * (log_l - log_m)).sum(dim=1)


def squared_distance(upper_BC: Tensor, lower_BC: Tensor) -> Tensor:
    """sum_c (u_c - l_c)^2; returns `[B]`."""
    return ((log_softmax(upper_BC).exp() - log_softmax(lower_BC).exp()) ** 2).sum(dim=1)


def st(
    clean_BC: Tensor,
    adv_BC: Tensor,
    col_BC: Tensor,
    y_B: Tensor,
    beta: float = 6.0,
    reg: str = "symmkl",
    official: bool = False,
) -> dict[str, Tensor]:
    """(1/B) sum_i CE_i(z(x), y) + beta (1/B) sum_i R_i(upper, lower), the roles by these logits.

    Li et al., Squeeze Training for Adversarial Robustness, 2023; official as in `roles`.
    """
    z = {"clean": clean_BC, "adv": adv_BC, "col": col_BC}
    distance = {"symmkl": symmetric, "js": jensen_shannon, "l2": squared_distance}[reg]
    images = [
        distance(z[upper][i : i + 1], z[lower][i : i + 1]).sum()
        for i, (upper, lower) in enumerate(roles(z, y_B, official))
    ]
    return {
        "ce": cross_entropy(clean_BC, y_B).sum() / len(y_B),
        "squeeze": beta * torch.stack(images).sum() / len(y_B),
    }


def softened(z_BC: Tensor, temperature: float) -> Tensor:
    """Logits of softmax(z / T)."""
    return z_BC / temperature


def ard(
    adv_BC: Tensor,
    *clean_teacher_and_y: Tensor,
    alpha: float = 1.0,
    temperature: float = 30.0,
) -> dict[str, Tensor]:
    """alpha T^2 / (B C) sum_ic t_ic (log t_ic - log s_ic) + (1 - alpha)/B sum_i CE_i(z(x), y).

    t = softmax(z_teacher(x) / T), s = softmax(z(x_adv) / T); clean logits are given if alpha < 1.
    Goldblum et al., Adversarially Robust Distillation, 2020, reduced as in the authors' code.
    """
    *clean, teacher_BC, y_B = clean_teacher_and_y
    divergence_B = kl(softened(teacher_BC, temperature), softened(adv_BC, temperature))
    terms = {"kl": alpha * temperature**2 * divergence_B.sum() / adv_BC.numel()}
    for clean_BC in clean:
        terms["ce"] = (1.0 - alpha) * cross_entropy(clean_BC, y_B).sum() / len(y_B)
    return terms


def rslad(
    adv_BC: Tensor,
    clean_BC: Tensor,
    teacher_BC: Tensor,
    y_B: Tensor,
    alpha: float = 5.0 / 6.0,
    scale: float = 1.0,
) -> dict[str, Tensor]:
    """scale / (B C) sum_i [alpha KL_i(t || q) + (1 - alpha) KL_i(t || p)], t of the clean images.

    Zi et al., Revisiting Adversarial Robustness Distillation, 2021, without the 1e-5 in its code.
    """
    del y_B
    return {
        "kl": scale * alpha * kl(teacher_BC, adv_BC).sum() / adv_BC.numel(),
        "kl_clean": scale * (1.0 - alpha) * kl(teacher_BC, clean_BC).sum() / clean_BC.numel(),
    }


def iad(
    adv_BC: Tensor,
    clean_BC: Tensor,
    teacher_BC: Tensor,
    teacher_adv_BC: Tensor,
    y_B: Tensor,
    beta: float = 0.1,
    begin: int = 60,
) -> dict[str, Tensor]:
    """(1/B) sum_i KL_i(t || q) + (1/B) sum_i (1 - t'_iy^beta) KL_i(p || q), gradient through p.

    t: teacher on the clean images; t': on the student's adversarial ones. After `begin` epochs.
    Zhu et al., Reliable Adversarial Distillation with Unreliable Teachers, 2022, code IAD-I.
    """
    del begin
    own = []
    for i, label in enumerate(y_B.tolist()):
        trust = log_softmax(teacher_adv_BC)[i, label].exp() ** beta
        own.append((1.0 - trust) * kl(clean_BC, adv_BC)[i])
    return {
        "kl": kl(teacher_BC, adv_BC).sum() / len(y_B),
        "own": torch.stack(own).sum() / len(y_B),
    }


def act(
    own_BC: Tensor,
    teacher_BC: Tensor,
    y_B: Tensor,
    role: str = "robust",
    alpha: float = 0.9,
    temperature: float = 4.0,
) -> dict[str, Tensor]:
    """(1 - alpha) (1/B) sum_i CE_i(z, y) + alpha T^2 (1/B) sum_i KL_i(t || s), both softened by T.

    z, teacher: the natural peer's clean and the robust one's adversarial logits, or the reverse.
    Arani et al., Adversarial Concurrent Training, 2020.
    """
    del role
    divergence_B = kl(softened(teacher_BC, temperature), softened(own_BC, temperature))
    return {
        "ce": (1.0 - alpha) * cross_entropy(own_BC, y_B).sum() / len(y_B),
        "kl": alpha * temperature**2 * divergence_B.sum() / len(y_B),
    }


OBJECTIVES: dict[str, Callable[..., dict[str, Tensor]]] = {
    "natural": natural,
    "at": at,
    "trades": trades,
    "alp": alp,
    "mart": mart,
    "boosted": boosted,
    "st": st,
    "ard": ard,
    "rslad": rslad,
    "iad": iad,
    "act": act,
}


def mixed(
    objective: Callable[..., dict[str, Tensor]],
    logits: list[Tensor],
    y_B: Tensor,
    y_mixed_B: Tensor,
    share_B: Tensor,
    **settings: float,
) -> dict[str, Tensor]:
    """(1/B) sum_i [share_i L_i(y_i) + (1 - share_i) L_i(y_mixed_i)], L_i the loss of image i alone.

    A term without labels is (1/B) sum_i L_i again, as share_i and 1 - share_i add up to 1.
    Zhang et al., mixup: Beyond Empirical Risk Minimization, 2018, in the form with two losses that
    Rice et al., Overfitting in Adversarially Robust Deep Learning, 2020, use.
    """
    terms: dict[str, Tensor] = {}
    for i in range(len(y_B)):
        image = [z_BC[i : i + 1] for z_BC in logits]
        for share, label in ((share_B[i], y_B[i]), (1.0 - share_B[i], y_mixed_B[i])):
            for name, term in objective(*image, label[None], **settings).items():
                terms[name] = terms.get(name, 0.0) + share * term / len(y_B)
    return terms


def cat_guidance(own_BC: Tensor, others: list[Tensor], own_first: bool = False) -> Tensor:
    """sum_j (1/B) sum_i KL_i(sg[p_j] || p_own), every argument on the same view of the own peer.

    own_first: KL_i(p_own || sg[p_j]) instead, which is how the paper prints it.
    own_BC: the taught peer's logits, with gradient. others: the teachers' logits, `[B, C]` each,
    which get none. Returns a scalar, 0 without teachers.
    Liu et al., CAT: Collaborative Adversarial Training, 2023 (arXiv 2303.14922), Eqs. 4-5, with
    the teacher's prediction as the first argument of the KL, as in the authors' code.
    """
    total = own_BC.new_zeros(())
    for other_BC in others:
        pair = (own_BC, other_BC.detach()) if own_first else (other_BC.detach(), own_BC)
        total = total + kl(*pair).sum() / len(own_BC)
    return total


def mat_guidance(own_BC: Tensor, clean: list[Tensor], detach: bool = True) -> Tensor:
    """1/M sum_m (1/B) sum_i KL_i(sg[p_m(x)] || p_own), M the number of teachers.

    own_BC: the taught peer's logits on its own adversarial view, with gradient. clean: the
    teachers' logits on the clean images, `[B, C]` each. Returns a scalar, 0 without teachers.
    detach=False: p_m for sg[p_m], as in the gradient of the total in the paper's Algorithm 1.
    Liu et al., Mutual Adversarial Training, 2021 (arXiv 2112.05005), where M is the number of peers
    less one (the paper prints M - 1 with M undefined there).
    """
    total = own_BC.new_zeros(())
    for clean_BC in clean:
        total = total + kl(clean_BC.detach() if detach else clean_BC, own_BC).sum() / len(own_BC)
    return total / max(len(clean), 1)
