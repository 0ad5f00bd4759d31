"""Data sets in LeRobot's formats v2.0, v2.1 and v3.0, read in place without its package."""
