"""Episodes on disk, the index of checked files, the order of samples, and the Ray Data pipeline."""
