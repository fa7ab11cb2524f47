"""Metrics: exact cases, identities, batched = loop, and the errors."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from lossland import metrics


def _outputs(*lead: int, n: int = 37, classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(*lead, n, classes, generator=generator, dtype=torch.float64) * 2
    return logits, torch.randint(classes, (n,), generator=generator)


def test_nll_of_uniform_scores_is_the_logarithm_of_the_number_of_classes() -> None:
    uniform = torch.zeros(4, 10, dtype=torch.float64)
    assert_close(metrics.nll(uniform, torch.arange(4)), torch.tensor(math.log(10), dtype=torch.float64))


def test_nll_equals_torch_cross_entropy() -> None:
    logits, labels = _outputs()
    assert_close(metrics.nll(logits, labels), torch.nn.functional.cross_entropy(logits, labels))


def test_nll_ignores_a_constant_added_to_all_scores_of_an_image() -> None:
    logits, labels = _outputs()
    assert_close(metrics.nll(logits + torch.arange(37.0).double()[:, None], labels), metrics.nll(logits, labels))


@pytest.mark.parametrize("metric", [metrics.nll, metrics.accuracy, lambda x, y: metrics.ece(x.softmax(-1), y)])
def test_a_batch_of_points_gives_what_a_loop_gives(metric) -> None:
    logits, labels = _outputs(3, 4)
    loop = torch.stack([torch.stack([metric(point, labels) for point in row]) for row in logits])
    batch = metric(logits, labels)
    assert batch.shape == (3, 4)
    assert_close(batch, loop)


def test_accuracy_counts_by_hand() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0], [1.0, 0.0]])
    assert_close(metrics.accuracy(logits, torch.tensor([0, 1, 1, 0])), torch.tensor(0.75))


def test_nan_scores_are_wrong_whatever_the_label() -> None:
    logits = torch.full((10, 10), float("nan"))
    assert metrics.accuracy(logits, torch.arange(10)) == 0
    one = torch.zeros(1, 3)
    one[0, 0], one[0, 1] = float("nan"), 1.0
    for label in range(3):
        assert metrics.accuracy(one, torch.tensor([label])) == 0


def test_nan_and_infinite_scores_do_not_give_a_finite_loss() -> None:
    for value in (float("nan"), float("inf")):
        assert not metrics.nll(torch.tensor([[value, 0.0], [1.0, 0.0]]), torch.tensor([1, 0])).isfinite()


def test_half_precision_is_averaged_in_float32() -> None:
    logits, labels = _outputs()
    half = logits.bfloat16()
    assert metrics.nll(half, labels).dtype == torch.float32
    assert_close(metrics.nll(half, labels), metrics.nll(half.float(), labels))
    assert metrics.accuracy(half, labels).dtype == torch.float32


def test_certain_and_right_has_no_calibration_error_and_certain_and_wrong_has_all() -> None:
    sure = torch.eye(3).double()
    assert_close(metrics.ece(sure, torch.tensor([0, 1, 2])), torch.tensor(0.0).double())
    assert_close(metrics.ece(sure, torch.tensor([1, 2, 0])), torch.tensor(1.0).double())


def test_calibration_error_of_a_planted_case_by_hand() -> None:
    # Two bins of four images at confidence 0.75 (half right: gap 0.25) and two at 0.95 (all right: gap 0.05).
    p = torch.tensor([[0.75, 0.25]] * 4 + [[0.95, 0.05]] * 2).double()
    labels = torch.tensor([0, 0, 1, 1, 0, 0])
    assert_close(metrics.ece(p, labels, bins=20), torch.tensor((4 * 0.25 + 2 * 0.05) / 6).double(), atol=1e-7, rtol=0)
    # One bin: mean confidence 4.9 / 6 against an accuracy of 4 / 6.
    assert_close(metrics.ece(p, labels, bins=1), torch.tensor(0.9 / 6).double(), atol=1e-7, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bins_are_closed_on_the_right(dtype: torch.dtype) -> None:
    # 0.80 is the right edge of bin 16 of 20, so it shares a bin with 0.78 and not with 0.82; the gaps cancel.
    same = torch.tensor([[0.80, 0.20], [0.78, 0.22]], dtype=dtype)
    apart = torch.tensor([[0.80, 0.20], [0.82, 0.18]], dtype=dtype)
    labels = torch.tensor([0, 1])
    assert_close(metrics.ece(same, labels), torch.tensor(abs(0.20 - 0.78) / 2, dtype=dtype))
    assert_close(metrics.ece(apart, labels), torch.tensor((0.20 + 0.82) / 2, dtype=dtype))


def test_every_edge_of_twenty_bins_belongs_to_the_bin_below_it() -> None:
    for step in range(10, 20):
        edge, inside, above = step / 20, step / 20 - 0.01, step / 20 + 0.01
        labels = torch.tensor([0, 1])
        for other, expected in ((inside, abs(1 - edge - inside) / 2), (above, (1 - edge + above) / 2)):
            if other < 0.5:
                continue
            p = torch.tensor([[edge, 1 - edge], [other, 1 - other]], dtype=torch.float32)
            assert_close(metrics.ece(p, labels), torch.tensor(expected), atol=1e-6, rtol=0, msg=f"edge {step} / 20")


def test_total_variation_is_half_the_l1_distance() -> None:
    p, q = torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[0.0, 1.0], [0.25, 0.75]])
    assert_close(metrics.total_variation(p, q), torch.tensor((1 + 0.25) / 2))
    assert metrics.total_variation(p, p) == 0


def test_total_variation_is_symmetric_and_broadcasts_over_points() -> None:
    logits, _ = _outputs(5)
    p = logits.softmax(-1)
    result = metrics.total_variation(p, p[0])
    assert_close(result, torch.stack([metrics.total_variation(point, p[0]) for point in p]))
    assert_close(result, metrics.total_variation(p[0], p))
    assert (result[1:] > 0).all() and result.max() < 1


T = np.array([0.0, 0.25, 0.5, 1.0])


def test_barrier_against_each_reference_by_hand() -> None:
    loss = np.array([1.0, 2.0, 5.0, 3.0])
    assert metrics.barrier(T, loss) == 3.0  # 5 - 2 at t = 1/2
    assert metrics.barrier(T, loss, against="mean") == 3.0
    assert metrics.barrier(T, loss, against="worse") == 2.0
    late = np.array([1.0, 4.0, 4.0, 3.0])
    assert metrics.barrier(T, late) == 2.5  # 4 - 1.5 at t = 1/4: the line is not the mean
    assert metrics.barrier(T, late, against="mean") == 2.0


def test_a_path_below_its_ends_has_no_barrier_against_line_and_worse() -> None:
    loss = torch.tensor([1.0, 0.1, 0.2, 3.0])
    assert metrics.barrier(T, loss) == 0.0
    assert metrics.barrier(T, loss, against="worse") == 0.0
    assert metrics.barrier(T, loss, against="mean") == 1.0


def test_barrier_of_a_straight_line_is_never_negative() -> None:
    t = np.linspace(0, 1, 61)
    for first, last in ((0.1, 0.7), (3e-9, 1.0 / 3), (2.3, 0.1)):
        for against in metrics.BARRIERS:
            assert metrics.barrier(t, first * (1 - t) + last * t, against=against) >= 0


def test_barrier_scales_t_to_its_ends() -> None:
    loss = [1.0, 4.0, 4.0, 3.0]
    assert metrics.barrier(3 + 2 * T, loss) == metrics.barrier(T, loss)


def test_integral_weighs_by_distance_and_mean_by_t() -> None:
    result = metrics.along([0.0, 0.5, 1.0], [0.0, 2.0, 4.0], [1.0, 3.0])
    assert result == {"min": 0.0, "integral": (1 * 1.0 + 3 * 3.0) / 4, "max": 4.0, "mean": 2.0}


def test_integral_equals_mean_at_constant_speed() -> None:
    t = np.linspace(0, 1, 61)
    result = metrics.along(t, np.sin(3 * t), np.full(60, 0.7))
    assert result["integral"] == pytest.approx(result["mean"], rel=1e-12)
    assert result["mean"] == pytest.approx((1 - math.cos(3)) / 3, rel=1e-3)


LOGITS, LABELS = _outputs()
PROBABILITIES = LOGITS.softmax(-1)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: metrics.nll(LOGITS, LABELS[:5]), ValueError, r"labels must have shape \(37,\).*got \(5,\)"),
        (lambda: metrics.nll(LOGITS[0], LABELS[:1]), ValueError, r"logits must have shape .*got \(10,\)"),
        (lambda: metrics.nll(LOGITS[:0], LABELS[:0]), ValueError, r"n, C >= 1, got \(0, 10\)"),
        (lambda: metrics.nll(LOGITS.long(), LABELS), TypeError, "logits must be floating point, got torch.int64"),
        (lambda: metrics.accuracy(LOGITS, LABELS.double()), TypeError, "labels must be integers, got torch.float64"),
        (
            lambda: metrics.accuracy(LOGITS[:3], torch.tensor([0, 12, -1])),
            ValueError,
            r"labels must lie in \[0, 10\), got \[-1, 12\], first at position 1",
        ),
        (lambda: metrics.ece(PROBABILITIES, LABELS, bins=0), ValueError, "bins must be an int >= 1, got 0"),
        (lambda: metrics.ece(PROBABILITIES, LABELS, bins=2.0), ValueError, "bins must be an int >= 1, got 2.0"),
        (lambda: metrics.ece(LOGITS, LABELS), ValueError, "probabilities must be probabilities.*softmax the logits"),
        (lambda: metrics.ece(PROBABILITIES * torch.nan, LABELS), ValueError, "probabilities must be .*minimum of nan"),
        (
            lambda: metrics.ece(torch.tensor([[1.5, -0.5]]), torch.tensor([0])),
            ValueError,
            "probabilities must be probabilities.*minimum of -0.5",
        ),
        (lambda: metrics.total_variation(LOGITS, PROBABILITIES), ValueError, "p must be probabilities"),
        (lambda: metrics.total_variation(PROBABILITIES, LOGITS), ValueError, "q must be probabilities"),
        (
            lambda: metrics.total_variation(PROBABILITIES, PROBABILITIES[:3]),
            ValueError,
            r"p and q must agree in \(n, C\), got \(37, 10\) and \(3, 10\)",
        ),
        (
            lambda: metrics.barrier(T, T, against="lin"),
            ValueError,
            r"against must be one of 'line', 'mean', 'worse'; got 'lin' \(did you mean 'line'\?\)",
        ),
        (lambda: metrics.barrier(T, T[:2]), ValueError, "t and loss must have one length >= 2, got 4 and 2"),
        (lambda: metrics.barrier([0, 0, 1], [1, 2, 3]), ValueError, "t must increase strictly .*0.0 before 0.0 at pos"),
        (lambda: metrics.barrier(T, [1, np.nan, 2, 3]), ValueError, "loss must be finite, got nan at position 1"),
        (lambda: metrics.barrier([0.0], [1.0]), ValueError, "one length >= 2, got 1 and 1"),
        (lambda: metrics.along(T, T, T), ValueError, "distances must hold one value per step, 3 for 4 points, got 4"),
        (lambda: metrics.along(T, T, [0, 0, 0]), ValueError, "distances must be >= 0 and not all 0"),
        (lambda: metrics.along(T, T, [1, -1, 1]), ValueError, "distances must be >= 0 .*minimum -1.0"),
    ],
)
def test_bad_input_is_named(call, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_a_table_in_place_of_its_column_is_refused_by_name() -> None:
    table = pd.DataFrame({"t": [0.0, 1.0], "split": "test", "nll": [0.1, 0.2]})
    with pytest.raises(TypeError, match=r"t must hold numbers, such as the column table.t of one split, got DataFrame"):
        metrics.barrier(table, table.nll)
    with pytest.raises(TypeError, match=r"loss must hold numbers, such as the column table.nll .* got Series"):
        metrics.barrier(table.t, table.split)
