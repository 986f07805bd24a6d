"""What the pipeline costs, against plain scripts and against plain Dagster: `make bench`."""
