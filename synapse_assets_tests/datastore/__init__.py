"""Where datasets lie: locations, clouds and credentials."""
