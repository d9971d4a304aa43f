"""What both networks of a training say about a case, by nnU-Net's own predictor."""
