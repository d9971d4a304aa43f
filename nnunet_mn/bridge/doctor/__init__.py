"""`nnunet-mn doctor`."""
