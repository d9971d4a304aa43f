"""Plans for two networks: their cost, and mistakes in them."""
