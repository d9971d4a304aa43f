"""The bridge to nnU-Net: its data, its files, its look-up of classes."""
