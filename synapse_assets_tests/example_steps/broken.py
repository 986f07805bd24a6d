"""A step whose module cannot even be imported where it runs."""

raise RuntimeError("this module fails when it is imported")
