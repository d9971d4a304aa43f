"""Preprocessing of unlabeled cases."""
