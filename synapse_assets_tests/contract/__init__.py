"""One test body per promise, run over every store or target."""
