"""Equation (2) in closed form, against a naive loop, under masking, smoothing and permutation, and the temperature that divides it."""

import math

import pytest
import torch
import torch.nn.functional as F

from abc_core.loss import Temperature, check_finite, duplicate_mask, info_nce


def unit(rng, n, d=8):
    return F.normalize(torch.randn(n, d, generator=rng, dtype=torch.float64), dim=1)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def naive(x, y, n, tau):
    """Equation (2) written as it is printed: x float[N, D], y float[N, D], n float[N, K, D]."""
    total = 0.0
    for i in range(len(x)):
        below = 0.0
        for j in range(len(x)):
            below += math.exp(float(x[i] @ y[j]) / tau)
            for k in range(n.shape[1]):
                below += math.exp(float(x[i] @ n[j, k]) / tau)
        total -= math.log(math.exp(float(x[i] @ y[i]) / tau) / below)
    return total / len(x)


@pytest.mark.parametrize("k", [0, 1, 7])
def test_zero_embeddings_give_exactly_log_c(k):
    loss, out = info_nce(torch.zeros(4, 8), torch.zeros(4 * (1 + k), 8), 0.07)
    assert loss.item() == pytest.approx(math.log(4 * (1 + k)), abs=1e-6)
    assert out["candidates"] == 4 * (1 + k)
    assert out["accuracy"] == 0, "a collapsed model wins no tie"


@pytest.mark.parametrize("k", [0, 1, 3])
def test_equals_the_printed_equation_in_three_loops(rng, k):
    q, c = unit(rng, 5), unit(rng, 5 * (1 + k))
    groups = c.view(5, 1 + k, -1)
    assert info_nce(q, c, 0.1)[0].item() == pytest.approx(naive(q, groups[:, 0], groups[:, 1:], 0.1), rel=1e-12)


def test_without_negatives_it_is_cross_entropy_with_in_batch_candidates(rng):
    q, c = unit(rng, 6), unit(rng, 6)
    expected = F.cross_entropy(q @ c.T / 0.07, torch.arange(6))
    torch.testing.assert_close(info_nce(q, c, 0.07)[0], expected)


def test_smoothing_equals_torch_when_nothing_is_masked_and_stays_finite_when_something_is(rng):
    q, c = unit(rng, 4), unit(rng, 8)
    expected = F.cross_entropy(q @ c.T / 0.07, torch.arange(0, 8, 2), label_smoothing=0.1)
    torch.testing.assert_close(info_nce(q, c, 0.07, label_smoothing=0.1)[0], expected)
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[:, 7] = True
    kept = F.cross_entropy(q @ c[:7].T / 0.07, torch.arange(0, 8, 2), label_smoothing=0.1)
    torch.testing.assert_close(info_nce(q, c, 0.07, mask, label_smoothing=0.1)[0], kept)


def test_gradient_of_the_temperature_is_the_mean_excess_over_tau_squared(rng):
    q, c = unit(rng, 5), unit(rng, 15)
    tau = torch.tensor(0.07, dtype=torch.float64, requires_grad=True)
    info_nce(q, c, tau)[0].backward()
    z = q @ c.T
    expected = (z[torch.arange(5), torch.arange(0, 15, 3)] - ((z / 0.07).softmax(1) * z).sum(1)).mean() / 0.07**2
    torch.testing.assert_close(tau.grad, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradients_of_both_sides_and_of_the_temperature_pass_gradcheck(rng, smoothing):
    q, c = unit(rng, 3, 4).requires_grad_(), unit(rng, 6, 4).requires_grad_()
    tau = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[0, 3] = mask[2, 1] = True
    assert torch.autograd.gradcheck(lambda *x: info_nce(*x, mask, smoothing)[0], (q, c, tau))


def test_masking_a_duplicate_equals_removing_that_candidate(rng):
    q, c = unit(rng, 2), unit(rng, 6).requires_grad_()
    loss, out = info_nce(q, c, 0.1, duplicate_mask(torch.tensor([4, 9]), torch.tensor([4, 1, 9, 9, 4, 2])))
    left = [[0, 1, 2, 3, 5], [0, 1, 3, 4, 5]]  # query 0 loses candidate 4, query 1 candidate 2
    expected = -sum((q[i] @ c[own] / 0.1) - (q[i] @ c[left[i]].T / 0.1).logsumexp(0) for i, own in enumerate((0, 3))) / 2
    torch.testing.assert_close(loss, expected)
    assert int(out["masked_duplicates"]) == 2
    torch.testing.assert_close(torch.autograd.grad(loss, c), torch.autograd.grad(expected, c))


def test_the_mask_hides_equal_ids_and_never_the_own_positive():
    mask = duplicate_mask(torch.tensor([5, 5, 6]), torch.tensor([5, 7, 5, 6, 6, 5]))
    assert mask.int().tolist() == [[0, 0, 1, 0, 0, 1], [1, 0, 0, 0, 0, 1], [0, 0, 0, 1, 0, 0]]


def test_the_order_of_the_queries_does_not_matter(rng):
    q, c = unit(rng, 6), unit(rng, 18)
    order = torch.randperm(6, generator=rng)
    shuffled = c.view(6, 3, -1)[order].flatten(0, 1)
    torch.testing.assert_close(info_nce(q[order], shuffled, 0.05)[0], info_nce(q, c, 0.05)[0])


def test_a_mined_negative_of_one_query_is_an_in_batch_negative_of_the_others(rng):
    q, c = unit(rng, 3), unit(rng, 6).requires_grad_()
    _, out = info_nce(q, c, 1.0)
    torch.testing.assert_close(out["scores"], (q @ c.T).detach())
    one_query = info_nce(q[:1], c[:2], 1.0)[0]
    assert torch.autograd.grad(one_query, c)[0][2:].abs().max() == 0
    assert torch.autograd.grad(info_nce(q, c, 1.0)[0], c)[0].abs().min() > 0


def test_accuracy_counts_queries_whose_positive_beats_everything_else():
    c = torch.eye(4)
    assert info_nce(c[[0, 2]], c, 0.07)[1]["accuracy"] == 1
    assert info_nce(c[[0, 3]], c, 0.07)[1]["accuracy"] == 0.5


def test_bf16_embeddings_under_autocast_are_scored_in_float32(rng):
    q, c = unit(rng, 4).bfloat16(), unit(rng, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss, out = info_nce(q, c, 0.01)
    assert out["scores"].dtype == torch.float32
    torch.testing.assert_close(loss, info_nce(q.float(), c.float(), 0.01)[0])


def test_the_log_form_stays_positive_where_the_raw_form_does_not():
    for form, positive in (("log", True), ("raw", False)):
        tau = Temperature(0.07, form)
        torch.testing.assert_close(tau().item(), 0.07)
        with torch.no_grad():
            tau.parameter -= 5.0
        assert (tau() > 0) == positive


def test_the_temperature_is_one_parameter_that_receives_a_gradient(rng):
    tau = Temperature()
    info_nce(unit(rng, 4), unit(rng, 4), tau())[0].backward()
    assert [name for name, _ in tau.named_parameters()] == ["parameter"]
    assert tau.parameter.grad.abs() > 0


def test_a_loss_that_is_not_finite_stops_the_run_with_step_and_value():
    check_finite(torch.tensor(1.5), 3)
    with pytest.raises(FloatingPointError, match="nan at step 12"):
        check_finite(torch.tensor(math.nan), 12)
    with pytest.raises(FloatingPointError, match="inf at step 13"):
        check_finite(math.inf, 13)
    with pytest.raises(FloatingPointError, match="step 14"):
        check_finite(info_nce(torch.ones(2, 2), torch.ones(2, 2), torch.tensor(0.0))[0], 14)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: info_nce(torch.zeros(3, 4), torch.zeros(4, 4), 0.1), "4 candidates are no multiple of 3"),
        (lambda: info_nce(torch.zeros(3, 4), torch.zeros(3, 5), 0.1), r"\[3, 4\].*\[3, 5\]"),
        (lambda: info_nce(torch.zeros(2, 4), torch.zeros(2, 4), -0.1), "temperature is -0.1"),
        (lambda: info_nce(torch.zeros(2, 4), torch.zeros(2, 4), 0.1, label_smoothing=1.0), "label_smoothing is 1.0"),
        (lambda: info_nce(torch.zeros(2, 4), torch.zeros(2, 4), 0.1, torch.eye(2) > 0), "positive of query 0"),
        (lambda: info_nce(torch.zeros(2, 4), torch.zeros(2, 4), 0.1, torch.zeros(2, 3) > 0), r"bool\[2, 2\]"),
        (lambda: duplicate_mask(torch.tensor([1, 2]), torch.tensor([1, 3])), "query 1 has caption id 2"),
        (lambda: Temperature(0.0), "initial temperature is 0.0"),
        (lambda: Temperature(0.1, "softplus"), "softplus"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
