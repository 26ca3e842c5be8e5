"""Gather a batch, zero-pad and crop it at random, mirror it, scale it to [0, 1], channels-last.

    x[b, c, i, j] = images[index[b], i + dy[b] - pad, j' + dx[b] - pad, c] / 255,
    0 outside the image;  j' = W - 1 - j where flip[b], else j

Source: the crop-4-and-flip augmentation of He et al. 2016 (arXiv 1512.03385), section 4.2: the
crop comes first, then the flip.
"""

import torch
from torch import Tensor


def augment_reference(
    images: Tensor, index: Tensor, dy: Tensor, dx: Tensor, flip: Tensor, pad: int
) -> Tensor:
    """Batch [B, C, H, W] float32 in [0, 1], channels-last.

    images: uint8 [N, H, W, C]; index, dy, dx: int64 [B], offsets in [0, 2 * pad]; flip: bool [B].
    """
    _, height, width, _ = images.shape
    rows = torch.arange(height, device=images.device) + dy[:, None] - pad
    columns = torch.arange(width, device=images.device).expand(len(index), -1)
    columns = torch.where(flip[:, None], width - 1 - columns, columns) + dx[:, None] - pad
    inside_rows = (rows >= 0) & (rows < height)
    inside_columns = (columns >= 0) & (columns < width)
    crop = images[
        index[:, None, None],
        rows.clamp(0, height - 1)[:, :, None],
        columns.clamp(0, width - 1)[:, None, :],
    ]
    crop = crop * (inside_rows[:, :, None, None] & inside_columns[:, None, :, None])
    return (crop.float() / 255).permute(0, 3, 1, 2)
