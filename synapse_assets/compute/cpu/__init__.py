"""Compute targets that run steps in a plain Python process."""

from synapse_assets.compute.cpu.azureml import AzureMLCpu
from synapse_assets.compute.cpu.local import LocalCpu
from synapse_assets.compute.cpu.options import CpuOptions

__all__ = ["AzureMLCpu", "CpuOptions", "LocalCpu"]
