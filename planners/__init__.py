"""nnU-Net experiment planners of M&N."""
