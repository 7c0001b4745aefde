import numpy as np
import pytest
from growth import least_seconds

from dcr_ds.statistics import (
    cohen_kappa,
    holm,
    mcnemar_p,
    mean_interval,
    paired_bootstrap,
    seeds_interval,
    student_t,
    wilson_interval,
)


def test_wilson_interval_has_known_values():
    assert wilson_interval(50, 100) == pytest.approx((0.403832, 0.596168), abs=1e-6)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.277533), abs=1e-6)
    assert wilson_interval(10, 10) == pytest.approx((0.722467, 1.0), abs=1e-6)
    assert wilson_interval(81, 263) == pytest.approx((0.255289, 0.366210), abs=1e-5)  # Newcombe 1998, table I
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_wilson_interval_is_symmetric_and_includes_the_rate():
    for total in (1, 7, 50, 1000):
        for successes in range(0, total + 1, max(1, total // 7)):
            low, high = wilson_interval(successes, total)
            mirrored = wilson_interval(total - successes, total)
            assert 0 <= low <= successes / total <= high <= 1
            assert (1 - high, 1 - low) == pytest.approx(mirrored)


def differences(worse, same, better):
    return np.array([-1] * worse + [0] * same + [1] * better)


def test_paired_bootstrap_is_that_of_resampling_prompts():
    """Multinomial counts replace drawing prompts with replacement: the same interval up to sampling error."""
    changes = differences(5, 30, 20)
    rng = np.random.default_rng(1)
    drawn = rng.choice(changes, size=(20_000, len(changes))).mean(axis=1)
    assert paired_bootstrap([changes]) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.5 / len(changes))


def test_paired_bootstrap_repeats_and_changes_sign_with_the_models():
    changes = differences(3, 40, 12)
    low, high = paired_bootstrap([changes])
    assert (low, high) == paired_bootstrap([changes]) == paired_bootstrap([changes[::-1]])
    assert paired_bootstrap([-changes]) == pytest.approx((-high, -low), abs=1 / len(changes))
    assert low < changes.mean() < high


def test_paired_bootstrap_covers_the_truth():
    rng = np.random.default_rng(0)
    drawn = rng.choice([-1, 0, 1], size=(400, 60), p=[0.05, 0.7, 0.25])
    intervals = [paired_bootstrap([changes], resamples=1000) for changes in drawn]
    assert 0.92 <= np.mean([low <= 0.2 <= high for low, high in intervals]) <= 0.98


@pytest.mark.parametrize(("value", "size"), [(0, 10), (0, 500), (1, 10), (-1, 10)])
def test_paired_bootstrap_has_a_width_where_all_prompts_are_alike(value, size):
    low, high = paired_bootstrap([np.full(size, value)])
    assert -1 <= low <= value <= high <= 1
    assert high - low == pytest.approx((2 if value == 0 else 1) * (1 - 0.025 ** (1 / size)))


def test_paired_bootstrap_over_benchmarks_weighs_them_alike():
    small, large = differences(0, 5, 15), differences(400, 500, 100)
    low, high = paired_bootstrap([small, large])
    assert low < (small.mean() + large.mean()) / 2 < high
    assert high - low < sum(np.diff(paired_bootstrap([benchmark]))[0] for benchmark in (small, large))


def test_the_bootstrap_costs_no_more_with_more_prompts():
    few, many = differences(50, 350, 100), differences(5_000, 35_000, 10_000)
    assert least_seconds(lambda: paired_bootstrap([many])) < 5 * least_seconds(lambda: paired_bootstrap([few]))


def test_mcnemar_p():
    assert mcnemar_p(differences(1, 100, 9)) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar_p(differences(0, 7, 0)) == mcnemar_p(differences(4, 0, 4)) == 1
    assert mcnemar_p(differences(0, 3, 6)) == mcnemar_p(differences(6, 80, 0)) == 2 / 2**6
    assert 0 < mcnemar_p(differences(400, 0, 900)) < 1e-30


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9]) and holm([]) == []


def test_mean_interval_has_a_width_where_rates_are_extreme_and_shrinks_with_benchmarks():
    single = wilson_interval(20, 20)
    assert mean_interval([1.0], [single]) == pytest.approx(single)
    low, high = mean_interval([1.0, 1.0], [single, single])
    assert high == 1 and 1 - low == pytest.approx((1 - single[0]) / 2**0.5)


def test_student_t():
    assert [round(student_t(freedom), 3) for freedom in (1, 2, 3.7, 10, 1e9)] == [12.706, 4.303, 2.868, 2.228, 1.960]


def draw(rng, seeds, prompts, spread):
    """Correct answers [seeds, prompts], from log-odds per prompt plus log-odds per seed."""
    log_odds = 0.5 + rng.normal(0, spread, (seeds, 1)) + rng.normal(0, 1.5, (1, prompts))
    return (rng.random((seeds, prompts)) < 1 / (1 + np.exp(-log_odds))).astype(int)


@pytest.mark.parametrize(("seeds", "spread"), [(3, 0.0), (3, 0.5), (5, 0.5)])
def test_intervals_over_seeds_cover_the_truth(seeds, spread):
    rng = np.random.default_rng(0)
    truth = draw(rng, 1000, 2000, spread).mean()
    intervals = [seeds_interval([draw(rng, seeds, 200, spread)]) for _ in range(200)]
    assert np.mean([low <= truth <= high for low, high in intervals]) >= 0.9


def test_intervals_over_seeds_do_not_depend_on_order_and_widen_with_the_spread():
    rng = np.random.default_rng(0)
    alike = draw(rng, 1, 80, 0).repeat(3, axis=0)
    low, high = seeds_interval([alike])
    assert seeds_interval([alike[::-1, ::-1]]) == pytest.approx((low, high))
    apart = alike.copy()
    apart[0, alike[0] == 0] = 1  # a seed whose answers are all correct
    assert np.diff(seeds_interval([apart]))[0] > 2 * (high - low)


def test_difference_between_models_of_several_seeds():
    rng = np.random.default_rng(0)
    first, second = draw(rng, 3, 80, 0.3), draw(rng, 4, 80, 0.3)
    low, high = seeds_interval([first], [second])
    assert low < first.mean() - second.mean() < high
    assert seeds_interval([second], [first]) == pytest.approx((-high, -low))
    assert seeds_interval([first], [first]) == pytest.approx(
        tuple(-edge for edge in seeds_interval([first], [first])[::-1])
    )


def test_mean_over_benchmarks_of_several_seeds():
    rng = np.random.default_rng(0)
    small, large = draw(rng, 3, 30, 0.3), draw(rng, 3, 300, 0.3)
    low, high = seeds_interval([small, large])
    assert low < (small.mean() + large.mean()) / 2 < high
    assert seeds_interval([small, large], [small, large])[0] < 0 < seeds_interval([small, large], [small, large])[1]
    assert seeds_interval([small[:, :1]])[0] < small[:, 0].mean()  # a single prompt shows only the variation over seeds


def test_seeds_whose_changes_cancel_leave_an_interval_around_the_difference():
    """Each seed answers another prompt, so that neither the prompts' means nor the seeds' vary."""
    ours, theirs = np.eye(20, dtype=int), np.zeros((20, 20), dtype=int)
    for first, second, value in ((ours, theirs, 0.05), (theirs, ours, -0.05)):
        low, high = seeds_interval([first], [second])
        assert low < value < high and (low + high) / 2 == pytest.approx(value)


def test_seeds_that_all_do_alike_leave_an_interval():
    assert seeds_interval([np.ones((3, 20))]) == wilson_interval(20, 20)
    assert seeds_interval([np.ones((3, 20))], [np.ones((2, 20))]) == paired_bootstrap([np.zeros(20)])


def test_cohen_kappa():
    labels = ["refusal"] * 25 + ["compliance"] * 25
    other = ["refusal"] * 20 + ["compliance"] * 5 + ["refusal"] * 10 + ["compliance"] * 15
    assert cohen_kappa(labels, other) == pytest.approx(0.4)
    assert cohen_kappa(labels, labels) == 1
    assert cohen_kappa(["a", "a"], ["a", "a"]) is None and cohen_kappa([], []) is None
