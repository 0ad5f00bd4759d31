"""Pages about runs, sweeps and comparisons: the file `report.html`, and the live board."""
