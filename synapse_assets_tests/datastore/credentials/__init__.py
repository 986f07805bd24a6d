"""The ways to log in, library by library."""
