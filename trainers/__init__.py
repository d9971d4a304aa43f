"""nnU-Net trainer classes of M&N."""
