"""The cases of a dataset, labeled, unlabeled or held out, and their images."""
