"""Tests of synapse_assets.defs."""
