"""Compute targets that run steps in a plain Python process."""

from synapse_assets.compute.cpu.local import LocalCpu

__all__ = ["LocalCpu"]
