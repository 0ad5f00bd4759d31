"""Episodes in HDF5 files, one per file: our own format and other layouts of ACT."""
