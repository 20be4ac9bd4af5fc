"""InfoNCE: its formula, its bound log(K + 1), and what it finds of a mutual information that is known."""

import math

import pytest
import torch

from luthier.signals.info_nce import info_nce, information

K = 63


def correlated(true, pairs=20_000):
    """(score of each pair, scores of K others) by the optimal critic, for unit Gaussians of this mutual information."""
    rho = math.sqrt(1 - math.exp(-2 * true))
    rng = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(pairs, generator=rng, dtype=torch.float64) for _ in range(2))
    y = rho * x + math.sqrt(1 - rho**2) * noise
    others = torch.randn(pairs, K, generator=rng, dtype=torch.float64)

    def critic(x, y):
        """log p(y | x) / p(y)"""
        return -0.5 * math.log(1 - rho**2) - (y - rho * x) ** 2 / (2 * (1 - rho**2)) + y**2 / 2

    return critic(x, y), critic(x[:, None], others)


def test_it_is_the_cross_entropy_of_the_first_of_k_plus_one():
    positive, negatives = torch.tensor([0.5, -2.0]), torch.tensor([[0.1, 3.0], [0.0, -2.0]])
    for row in range(2):
        whole = [math.exp(positive[row])] + [math.exp(n) for n in negatives[row]]
        assert math.isclose(
            info_nce(positive, negatives)[row], -math.log(whole[0] / sum(whole)), rel_tol=1e-6
        )


def test_negatives_that_are_absent_count_nothing():
    positive, negatives = torch.tensor([1.0, 2.0]), torch.tensor([[0.3, 9.0], [0.3, 0.7]])
    found = info_nce(positive, negatives, torch.tensor([[True, False], [True, True]]))
    torch.testing.assert_close(found[0], info_nce(positive[:1], negatives[:1, :1])[0])
    torch.testing.assert_close(found[1], info_nce(positive[1:], negatives[1:])[0])


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_the_bound_stays_below_log_k_plus_one_and_the_scores_do_not_overflow(scale):
    positive, negatives = correlated(3.0)
    found = information(info_nce(scale * positive, scale * negatives), K)
    assert torch.isfinite(found).all() and found.max() <= math.log(K + 1) + 1e-12
    assert found.mean() < math.log(K + 1) - 0.5


def test_with_the_optimal_critic_it_rises_with_the_truth_and_is_near_it_below_one():
    truths = (0.05, 0.2, 0.4, 0.6, 0.8, 0.99, 2.0, 4.0)
    found = [float(information(info_nce(*correlated(true)), K).mean()) for true in truths]
    assert found == sorted(found)
    for true, value in zip(truths, found, strict=True):
        assert value < true + 0.02  # a lower bound, up to the sample
        if true < 1:
            assert abs(value - true) < 0.1
