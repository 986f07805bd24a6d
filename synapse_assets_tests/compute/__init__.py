"""Tests of synapse_assets.compute."""
