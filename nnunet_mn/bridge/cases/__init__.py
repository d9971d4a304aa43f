"""Who is labeled, unlabeled or held out, and where the images are."""
