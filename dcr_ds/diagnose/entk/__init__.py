"""The empirical neural tangent kernel between prompts of several categories."""

from dcr_ds.diagnose.entk.kernel import check_entk, entk
from dcr_ds.diagnose.entk.result import EntkResult, difference, symmetric, write_entk

__all__ = ["EntkResult", "check_entk", "difference", "entk", "symmetric", "write_entk"]
