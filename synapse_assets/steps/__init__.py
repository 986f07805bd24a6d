"""Steps of the Titanic pipeline: plain functions that run on a compute target, without Dagster."""
