"""Evaluation: models answer benchmarks, judges label the answers, labels become rates with intervals."""
