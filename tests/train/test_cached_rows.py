"""Cached rows are laid out as the mask says, whichever side is padded."""

import pytest
import torch

from luthier.train.cache import _padded

MASKS = {
    "right": [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]],
    "left": [[0, 1, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1]],
    "holes": [[1, 0, 1, 1], [0, 1, 0, 1], [1, 1, 1, 1]],
}


@pytest.mark.parametrize("side", MASKS)
def test_rows_are_laid_out_as_the_mask_says(side):
    mask = torch.tensor(MASKS[side])
    pieces = [torch.randn(int(n), 5) for n in mask.sum(1)]
    out = _padded(pieces, mask)
    assert torch.equal(out[mask.bool()], torch.cat(pieces))
    assert not out[~mask.bool()].any()
