"""HTML pages about runs, sweeps and comparisons: `report.html`, and the same page live (`board`)."""
