"""SLURM: what runs before a job on its nodes, and what submits jobs. The scripts are in slurm/."""
