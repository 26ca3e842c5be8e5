"""One l-inf PGD step for all peers: sign step, projection on the ball, clamp to the box.

    x_adv <- clip(clip(x_adv + step_size * sign(grad), x - eps, x + eps), 0, 1)

Source: Madry et al. 2018 (arXiv 1706.06083); the order step, ball, box is that of the
public implementations. A zero or NaN gradient moves nothing.
"""

from torch import Tensor


def pgd_update_reference(
    x_adv: Tensor, x: Tensor, grad: Tensor, eps: float, step_size: float
) -> Tensor:
    """x_adv, grad: [K, B, C, H, W]; x: [B, C, H, W]; eps, step_size: pixels of [0, 1]."""
    moved = x_adv + step_size * grad.sign()
    return moved.clamp(x - eps, x + eps).clamp(0, 1)
