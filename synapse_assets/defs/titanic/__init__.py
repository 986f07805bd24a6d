"""The how-to's pipeline as assets: Titanic.csv, prepared on Spark, trained on a CPU."""
