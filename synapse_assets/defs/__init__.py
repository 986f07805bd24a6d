"""What Dagster shows: the Titanic pipeline, and the resources of each deployment."""
