"""What flows between assets: references to dataset versions, and the commits that make them."""
