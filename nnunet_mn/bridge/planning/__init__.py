"""Plans for two networks: what they cost and whether they can be trained."""
