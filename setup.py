"""The list of packages. All other metadata is in pyproject.toml.

pyproject.toml can either search for packages or name them, not both; here the packages under dcr_ds are searched for,
and the folders that `[tool.setuptools.package-dir]` maps into the distribution are named.
"""

from setuptools import find_packages, setup

SHIPPED = ("dcr_ds.shipped.recipes", "dcr_ds.shipped.ds_configs", "dcr_ds.shipped.slurm")

setup(packages=[*find_packages(include=["dcr_ds", "dcr_ds.*"]), "dcr_kernels", *SHIPPED])
