"""Several runs compared: their models as columns, and what was measured on each."""

from collections.abc import Sequence
from dataclasses import dataclass

from dcr_ds.recipe.layout import ALIGNED
from dcr_ds.report.numbers.attacks import measured_attacks
from dcr_ds.report.numbers.columns import Column, result_columns
from dcr_ds.report.numbers.discernment import Discernment, measured_discernment
from dcr_ds.report.numbers.measured import Benchmark, measured_benchmarks
from dcr_ds.report.numbers.read import Run
from dcr_ds.report.numbers.tradeoff import ModelPoint, tradeoff_points


@dataclass(frozen=True)
class Comparison:
    """Runs, the models that their report compares, and what was measured on these."""

    runs: Sequence[Run]
    columns: list[Column]
    benchmarks: list[Benchmark]
    attacks: list[Benchmark]  # benchmarks under attack, and the worst case of each
    discernment: list[Discernment]

    @property
    def points(self) -> list[ModelPoint]:
        return tradeoff_points(self.columns, self.benchmarks, self.discernment)

    @property
    def unevaluated(self) -> list[Run]:
        """The runs whose columns are empty: nothing was measured; of several runs, nothing on the aligned model."""
        return [run for run in self.runs if not run.models or (len(self.runs) > 1 and ALIGNED not in run.models)]


def compare(runs: Sequence[Run]) -> Comparison:
    """Compare runs.

    Raises:
        UserError: the prompts of a benchmark differ between two runs, with none in common.
    """
    columns = result_columns(runs)
    benchmarks = measured_benchmarks(columns)
    return Comparison(runs, columns, benchmarks, measured_attacks(columns), measured_discernment(columns, benchmarks))
