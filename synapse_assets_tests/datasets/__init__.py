"""What flows between assets: references, commits, type handlers and the IO manager."""
