"""`nnunet-mn doctor`: checks that find what would stop a training."""
