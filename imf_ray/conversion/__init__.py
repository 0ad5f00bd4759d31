"""Conversion of data sets: to LeRobot's format v3.0, or to HDF5 files, one per episode."""
